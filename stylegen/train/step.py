"""One optimizer step, and what is logged of the steps."""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from stylegen.blocks import micro_batches, step_indices
from stylegen.optim import set_learning_rate
from stylegen.runtime import max_memory_bytes
from stylegen.sharding import accumulating, whole_norm
from stylegen.train.health import is_sick, note_skipped, report_spike
from stylegen.train.memory import explained
from stylegen.train.state import Run, State, axes, sum_over_ranks


@dataclass
class Stopwatch:
    """What the steps since the last logged row took: seconds in all, and of these waiting for data."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0


def train_step(run: Run, state: State, watch: Stopwatch) -> float:
    """One optimizer step over the step's blocks; returns the gradient norm before clipping.

    The gradient is that of the mean loss over all tokens of the step, however it is cut into forward passes
    and processes: each pass contributes its sum, divided by the tokens of the whole step.
    If the norm is not finite the step is skipped: weights and optimizer stay as they were, the next blocks come next.
    Raises FloatingPointError after too many of these in a row, and RankError where memory runs out.
    """
    started = time.perf_counter()
    arguments, accelerator = run.arguments, run.accelerator
    epoch, position = divmod(state.step, run.steps_per_epoch)
    indices = step_indices(
        arguments.seed, epoch, position, len(run.train_blocks), arguments.total_batch_size or 0
    )
    tokens = run.train_blocks.num_labels(indices)
    set_learning_rate(run.optimizer, run.schedule(state.step))
    loss_sum, spike = state.loss_sum, None
    shares = micro_batches(
        indices, arguments.per_device_train_batch_size, accelerator.num_processes, accelerator.process_index
    )
    with explained(run, state):
        for number, share in enumerate(shares):
            batch = _read_batch(
                run, watch, share, epoch, f"pass {number + 1} of {len(shares)}", state.step + 1
            )
            with accumulating(accelerator, run.model, is_last=number == len(shares) - 1):
                loss, _ = run.model(**batch)
                # The ranks' gradients are averaged. A loss that is not finite has to show in that of every rank.
                scale = torch.where(loss.isfinite(), accelerator.num_processes / tokens, math.nan)
                accelerator.backward(loss * scale)
            value = loss.item()
            loss_sum += value
            if words := run.spikes.add(value, run.train_blocks.num_labels(share)):
                spike = words, share
        grad_norm = whole_norm(
            accelerator.clip_grad_norm_(run.model.parameters(), arguments.max_grad_norm or math.inf)
        )
        sick = is_sick(run, grad_norm, loss_sum)
        if not sick or accelerator.scaler:  # the scaler skips by itself, and is to know
            run.optimizer.step()
        run.optimizer.zero_grad()
    state.step += 1
    state.tokens_seen += tokens
    if sick:
        note_skipped(run, state, indices, epoch, loss_sum, grad_norm)
    else:
        state.loss_sum, state.loss_tokens = loss_sum, state.loss_tokens + tokens
        state.skipped_in_a_row = 0
    if spike:
        report_spike(run, state, *spike, epoch)
    watch.steps += 1
    watch.tokens += tokens
    watch.seconds += time.perf_counter() - started
    return grad_norm


def _read_batch(
    run: Run, watch: Stopwatch, share: np.ndarray, epoch: int, where: str, step: int
) -> dict[str, torch.Tensor]:
    waiting = time.perf_counter()
    run.watchdog.tick(f"step {step}, reading {where}")
    batch = run.train_blocks.batch(share, epoch)
    moved = {name: tensor.to(run.accelerator.device) for name, tensor in batch.items()}
    watch.data_seconds += time.perf_counter() - waiting
    run.watchdog.tick(f"step {step}, {where}")
    return moved


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
        "perf/tokens_per_second": watch.tokens / watch.seconds,
        "perf/step_seconds": watch.seconds / watch.steps,
        "perf/data_wait_fraction": watch.data_seconds / watch.seconds,
        "perf/save_seconds": run.saver.stall_seconds,
        "perf/max_memory_bytes": max_memory_bytes(run.accelerator.device),
    })  # fmt: skip
    state.loss_sum, state.loss_tokens = 0.0, 0
    run.saver.stall_seconds = 0.0
