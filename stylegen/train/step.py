"""One optimizer step, and what is logged of the steps."""

import math
import time
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from stylegen.metrics import mfu
from stylegen.optim import set_learning_rate
from stylegen.runtime import logger, max_memory_bytes
from stylegen.sharding import accumulating, whole_norm
from stylegen.train.feed import StepBlocks
from stylegen.train.health import is_sick, note_skipped, report_spike
from stylegen.train.memory import explained
from stylegen.train.state import Run, State, axes, sum_over_ranks


@dataclass
class Stopwatch:
    """What the steps since the last logged row took: seconds in all."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


def train_step(run: Run, state: State, watch: Stopwatch) -> float:
    """One optimizer step over the step's blocks; returns the gradient norm before clipping.

    The gradient is that of the mean loss over all tokens of the step, however it is cut into forward passes
    and processes: each pass contributes its sum, divided by the tokens of the whole step.
    If the norm is not finite the step is skipped: weights and optimizer stay as they were, the next blocks come next.
    Losses and norm come from the device together, once a step, when all of its work and the next batch are under way.
    Raises FloatingPointError after too many of these in a row, and RankError where memory runs out.
    """
    started = time.perf_counter()
    arguments, accelerator, feed = run.arguments, run.accelerator, run.feed
    blocks = feed.of_step(state.step)
    tokens, passes = run.train_blocks.num_labels(blocks.indices), len(blocks.shares)
    set_learning_rate(run.optimizer, run.schedule(state.step))
    losses = []
    with explained(run, state):
        for number in range(passes):
            where = f"step {state.step + 1}, pass {number + 1} of {passes}"
            run.watchdog.tick(f"{where}: reading")
            batch = feed.take(state.step, number, blocks)
            run.watchdog.tick(where)
            with accumulating(accelerator, run.model, is_last=number == passes - 1):
                loss, _ = run.model(**batch)
                # The ranks' gradients are averaged. A loss that is not finite has to show in that of every rank.
                scale = torch.where(loss.isfinite(), accelerator.num_processes / tokens, math.nan)
                accelerator.backward(loss * scale)
            losses.append(loss.detach())
            feed.prepare(state.step, number + 1, blocks)
        norm = accelerator.clip_grad_norm_(run.model.parameters(), arguments.max_grad_norm or math.inf)
        *values, grad_norm = torch.stack([*losses, whole_norm(norm, accelerator.device)]).tolist()
        loss_sum, spike = _add_losses(run, state, values, blocks)
        sick = is_sick(run, grad_norm, loss_sum)
        if not sick or accelerator.scaler:  # the scaler skips by itself, and is to know
            run.optimizer.step()
        run.optimizer.zero_grad()
    state.step += 1
    state.tokens_seen += tokens
    if sick:
        note_skipped(run, state, blocks.indices, blocks.epoch, loss_sum, grad_norm)
    else:
        state.loss_sum, state.loss_tokens = loss_sum, state.loss_tokens + tokens
        state.skipped_in_a_row = 0
    if spike:
        report_spike(run, state, *spike, blocks.epoch)
    watch.steps += 1
    watch.tokens += tokens
    watch.seconds += time.perf_counter() - started
    return grad_norm


def _add_losses(
    run: Run, state: State, values: list[float], blocks: StepBlocks
) -> tuple[float, tuple[str, np.ndarray] | None]:
    """(losses since the last logged row with these; what is to be told of the last one that stands out)."""
    loss_sum, spike = state.loss_sum, None
    for value, share in zip(values, blocks.shares, strict=True):
        loss_sum += value
        if words := run.spikes.add(value, run.train_blocks.num_labels(share)):
            spike = words, share
    return loss_sum, spike


def note_first_step(run: Run, watch: Stopwatch) -> Stopwatch:
    """Tell how long the command took to its first step; returns the watch for the steps to come.

    Where layers are compiled, that is the step that does it, and says nothing of the others.
    """
    run.seconds_to_first_step = time.time() - psutil.Process().create_time()
    if not run.arguments.torch_compile:
        return watch
    logger.info(f"the first step took {watch.seconds:.1f} s, with compiling")
    return Stopwatch()


def log_training(run: Run, state: State, watch: Stopwatch, grad_norm: float) -> None:
    """Log the mean training loss since the last row, and how fast it went; a collective.

    A value that does not exist, of steps that were skipped, is left out.
    """
    loss_sum = sum_over_ranks(run, state.loss_sum)
    run.tracker.log({
        **({"train/loss": loss_sum / state.loss_tokens} if state.loss_tokens else {}),
        "train/learning_rate": run.schedule(state.step - 1),
        **({"train/grad_norm": grad_norm} if math.isfinite(grad_norm) else {}),
        "train/skipped_steps": state.skipped_steps,
        **axes(run, state),
        **(_speed(run, watch) if watch.steps else {}),
        "perf/save_seconds": run.saver.stall_seconds,
        "perf/max_memory_bytes": max_memory_bytes(run.accelerator.device),
        **({"perf/first_step_seconds": run.seconds_to_first_step} if run.seconds_to_first_step else {}),
    })  # fmt: skip
    state.loss_sum, state.loss_tokens = 0.0, 0
    run.saver.stall_seconds = run.feed.waited_seconds = run.seconds_to_first_step = 0.0


def _speed(run: Run, watch: Stopwatch) -> dict[str, float]:
    tokens_per_second = watch.tokens / watch.seconds
    values = {
        "perf/tokens_per_second": tokens_per_second,
        "perf/step_seconds": watch.seconds / watch.steps,
        "perf/data_wait_fraction": run.feed.waited_seconds / watch.seconds,
    }
    if run.peak_flops:
        devices = run.accelerator.num_processes
        values["perf/mfu"] = mfu(tokens_per_second, run.flops_per_token, run.peak_flops, devices)
    return values
