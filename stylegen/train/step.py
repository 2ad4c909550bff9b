"""One optimizer step, and what is logged of the steps."""

import math
import time
from dataclasses import dataclass

from stylegen.blocks import micro_batches, step_indices
from stylegen.checkpoint import list_checkpoints
from stylegen.optim import set_learning_rate
from stylegen.runtime import max_memory_bytes
from stylegen.sharding import accumulating, whole_norm
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
    Raises FloatingPointError, before the weights are touched (but for DeepSpeed, which takes its step within the
    backward pass), if the gradient is not finite.
    """
    started = time.perf_counter()
    arguments, accelerator = run.arguments, run.accelerator
    epoch, position = divmod(state.step, run.steps_per_epoch)
    indices = step_indices(
        arguments.seed, epoch, position, len(run.train_blocks), arguments.total_batch_size or 0
    )
    tokens = run.train_blocks.num_labels(indices)
    set_learning_rate(run.optimizer, run.schedule(state.step))
    world_size = accelerator.num_processes
    shares = micro_batches(
        indices, arguments.per_device_train_batch_size, world_size, accelerator.process_index
    )
    for number, share in enumerate(shares):
        waiting = time.perf_counter()
        run.watchdog.tick(f"step {state.step + 1}, reading pass {number + 1} of {len(shares)}")
        batch = {
            name: tensor.to(accelerator.device)
            for name, tensor in run.train_blocks.batch(share, epoch).items()
        }
        watch.data_seconds += time.perf_counter() - waiting
        run.watchdog.tick(f"step {state.step + 1}, pass {number + 1} of {len(shares)}")
        with accumulating(accelerator, run.model, is_last=number == len(shares) - 1):
            loss_sum, _ = run.model(**batch)
            accelerator.backward(loss_sum * (world_size / tokens))  # the ranks' gradients are averaged
        state.loss_sum += loss_sum.item()
    grad_norm = whole_norm(
        accelerator.clip_grad_norm_(run.model.parameters(), arguments.max_grad_norm or math.inf)
    )
    if (
        not math.isfinite(grad_norm) and arguments.mixed_precision != "fp16"
    ):  # its scaling meets infinities and copes
        raise FloatingPointError(_not_finite(run, state, grad_norm))
    run.optimizer.step()
    run.optimizer.zero_grad()
    state.step += 1
    state.tokens_seen += tokens
    state.loss_tokens += tokens
    watch.steps += 1
    watch.tokens += tokens
    watch.seconds += time.perf_counter() - started
    return grad_norm


def log_training(run: Run, state: State, watch: Stopwatch, grad_norm: float) -> None:
    """Log the mean training loss since the last row, and how fast it went; a collective."""
    loss_sum = sum_over_ranks(run, state.loss_sum)
    run.tracker.log({
        "train/loss": loss_sum / state.loss_tokens,
        "train/learning_rate": run.schedule(state.step - 1),
        "train/grad_norm": grad_norm,
        **axes(run, state),
        "perf/tokens_per_second": watch.tokens / watch.seconds,
        "perf/step_seconds": watch.seconds / watch.steps,
        "perf/data_wait_fraction": watch.data_seconds / watch.seconds,
        "perf/max_memory_bytes": max_memory_bytes(run.accelerator.device),
    })  # fmt: skip
    state.loss_sum, state.loss_tokens = 0.0, 0


def _not_finite(run: Run, state: State, grad_norm: float) -> str:
    saved = list_checkpoints(run.directory)
    kept = f"{saved[-1]} is unharmed" if saved else "no checkpoint was written yet"
    return (
        f"the gradient is {grad_norm} at step {state.step + 1} (learning rate {run.schedule(state.step):.3g}): the "
        f"training has diverged; {kept}; start again with a lower --learning_rate or more --num_warmup_steps"
    )
