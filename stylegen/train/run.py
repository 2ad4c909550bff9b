"""The run: one loop, one paragraph a periodic job, one optimizer step.

Evaluation, samples and checkpoint of a step are done, in this order, before the next step; one extra last turn
does those of the last step. All of them are functions of the step, so a run that goes on after a stop does
what the uninterrupted one would have done.
"""

import math
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from stylegen.blocks import micro_batches, step_indices
from stylegen.checkpoint import list_checkpoints, save_checkpoint
from stylegen.config import TrainArguments, UsageError
from stylegen.corpus import Source
from stylegen.evaluate import evaluate, first_block_loss
from stylegen.export import BEST
from stylegen.model import LanguageModelLoss, load_model, save_model
from stylegen.optim import set_learning_rate
from stylegen.report import summarize, write_report
from stylegen.runtime import StopRequest, cuts_weights, free_memory_bytes, logger, max_memory_bytes
from stylegen.sampling import SamplingSettings, write_texts
from stylegen.sharding import accumulating, callable_inside, holds_pieces, whole_norm, whole_weights
from stylegen.train.directory import promote_best
from stylegen.train.setup import Run, State, set_up

SAMPLE_SEED = 0  # every sample of a run draws the same numbers, so that only the model makes the difference


@dataclass
class Stopwatch:
    """What the steps since the last logged row took: seconds in all, and of these waiting for data."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0


def train(arguments: TrainArguments, train_source: Source, validation_source: Source | None) -> int:
    """Train as `arguments` say, on the text of the two sources; returns the exit code."""
    run, state = set_up(arguments, train_source, validation_source)
    stop = StopRequest(run.directory)
    try:
        if run.resumed_at is not None and _is_last(run, state):
            logger.info(f"{run.directory} finished at step {state.step}; give more epochs or steps to go on")
            reason = None
        else:
            _start_trackers(run)
            reason = loop(run, state, stop)
        if run.writes and reason is None:
            promote_best(run.directory)
        if run.accelerator.is_main_process:
            _finish(run, state, reason)
        run.accelerator.wait_for_everyone()
    finally:
        run.watchdog.stop()
        run.tracker.finish()
        stop.restore()
    run.accelerator.end_training()
    return 0


def loop(run: Run, state: State, stop: StopRequest) -> str | None:
    """Train to the last step; returns the reason if it was asked to stop before."""
    arguments, watch, first = run.arguments, Stopwatch(), state.step
    run.model.train()
    while True:
        run.watchdog.tick(f"the end of step {state.step}")
        reason = stop.agreed(run.accelerator)
        last = _is_last(run, state)
        # What a resumed step asks for was done before its checkpoint was written.
        if state.step != run.resumed_at:
            if (
                last
                or _is_due(arguments.eval_steps, state.step, run)
                or (state.step == 0 and arguments.eval_on_start)
            ):
                evaluate_model(run, state)
                last = _is_last(run, state)
            if last or _is_due(arguments.sample_steps, state.step, run):
                write_samples(run, state)
            if last or reason or _is_due(arguments.checkpointing_steps, state.step, run):
                state.finished, state.stopped_by = last, None if last else reason
                save(run, state)
        if last or reason:
            return None if last else reason
        if state.step > first:  # the first step may compile
            run.watchdog.arm()
        grad_norm = train_step(run, state, watch)
        if state.step % arguments.logging_steps == 0 or state.step == run.num_steps:
            log_training(run, state, watch, grad_norm)
            watch = Stopwatch()


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
    loss_sum = _sum_over_ranks(run, state.loss_sum)
    run.tracker.log({
        "train/loss": loss_sum / state.loss_tokens,
        "train/learning_rate": run.schedule(state.step - 1),
        "train/grad_norm": grad_norm,
        **_axes(run, state),
        "perf/tokens_per_second": watch.tokens / watch.seconds,
        "perf/step_seconds": watch.seconds / watch.steps,
        "perf/data_wait_fraction": watch.data_seconds / watch.seconds,
        "perf/max_memory_bytes": max_memory_bytes(run.accelerator.device),
    })  # fmt: skip
    state.loss_sum, state.loss_tokens = 0.0, 0


def evaluate_model(run: Run, state: State) -> None:
    """Evaluate and log; the best model after training began is kept aside. A collective."""
    run.watchdog.rest()
    result = evaluate(
        run.model, run.validation_blocks, run.arguments.per_device_eval_batch_size, run.accelerator
    )
    run.tracker.log({**result.metrics(run.validation_bytes), **_axes(run, state)})
    if state.step == 0 and run.num_steps > 0:
        return  # the baseline is no candidate: the user asked for a trained model
    if state.best_loss is not None and result.loss >= state.best_loss:
        state.stale_evaluations += 1
        return
    state.best_loss, state.best_step, state.stale_evaluations = result.loss, state.step, 0
    state.check_loss = first_block_loss(run.model, run.validation_blocks, run.accelerator.device)
    best, temporary = run.directory / BEST, run.directory / f"{BEST}.tmp"
    if run.writes:
        shutil.rmtree(temporary, ignore_errors=True)
    _write_model(run, temporary)
    if run.writes:
        shutil.rmtree(best, ignore_errors=True)
        os.rename(temporary, best)
    run.accelerator.wait_for_everyone()


def write_samples(run: Run, state: State) -> None:
    """Let the model write from the fixed prompts, into samples/ and to the trackers. A collective.

    Where no process has the whole model all of them write, the same, and the first one keeps it.
    """
    run.watchdog.rest()
    together = cuts_weights(run.accelerator)
    if not (run.accelerator.is_main_process or together):
        run.accelerator.wait_for_everyone()
        return
    arguments = run.arguments
    settings = SamplingSettings(
        max_new_tokens=arguments.sample_max_new_tokens,
        temperature=arguments.sample_temperature,
        seed=SAMPLE_SEED,
    )
    prompts = arguments.sample_prompts
    with run.accelerator.autocast(), callable_inside(run.accelerator, run.model):
        pairs = list(write_texts(run.base_model, run.tokenizer, prompts, settings, together=together))
    texts = [prompt + continuation for prompt, continuation in pairs]
    header = (
        f"# step {state.step}, epoch {state.step / run.steps_per_epoch:.2f}, seed {settings.seed}, "
        f"temperature {settings.temperature:g}, {settings.max_new_tokens} tokens, prompts {prompts}\n"
    )
    if run.accelerator.is_main_process:
        path = run.directory / "samples" / f"step-{state.step:06d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(header + "\n====\n".join(texts) + "\n", encoding="utf-8")
        run.tracker.log_samples(state.step, texts)
    run.accelerator.wait_for_everyone()


def save(run: Run, state: State) -> None:
    """Write a checkpoint of this step. A collective."""
    run.watchdog.rest()
    total = _sum_over_ranks(run, state.loss_sum)
    state.loss_sum = total if run.accelerator.is_main_process else 0.0
    path = save_checkpoint(
        run.directory, state.step, {**asdict(state), "loss_sum": total}, run.fingerprint, run.accelerator,
        run.base_model, run.optimizer, lambda folder: _write_model(run, folder), run.arguments.save_total_limit,
        run.arguments.save_on_each_node,
    )  # fmt: skip
    logger.info(f"saved {path}")


def _write_model(run: Run, folder: Path) -> None:
    """Write model and tokenizer, where this rank writes. A collective if the weights have to be collected."""
    weights = None
    if holds_pieces(run.accelerator):
        weights = whole_weights(run.accelerator, run.base_model, keep=run.writes)
    if run.writes:
        save_model(run.base_model, run.tokenizer, folder, weights)


def _start_trackers(run: Run) -> None:
    arguments = run.arguments
    run.tracker.start_trackers(
        arguments.report_to,
        project=arguments.project,
        run_name=arguments.run_name or "",
        group=arguments.group,
        config={**asdict(arguments), "data_fingerprint": run.fingerprint},
    )


def _finish(run: Run, state: State, stopped_by: str | None) -> None:
    """Check the model that was saved, draw, report, and print what there is."""
    if stopped_by is None:
        _check_saved_model(run, state)
    figures: list[Path] = []
    try:
        figures = write_report(run.directory)
        print(summarize(run.directory))
    except UsageError as error:  # stopped before anything was measured
        logger.info(str(error))
    samples = sorted((run.directory / "samples").glob("step-*.txt"))
    if samples:
        print(f"\n{samples[-1].read_text(encoding='utf-8')}")
    where = {
        "model": run.directory if stopped_by is None else run.directory / BEST,
        "checkpoint": next(reversed(list_checkpoints(run.directory)), None),
        "report": run.directory / "report.html",
        "figures": " ".join(map(str, figures)),
    }
    for name, value in where.items():
        print(f"{name:12}{value}")
    if stopped_by:
        print(f"stopped by {stopped_by}; the same command goes on from here")
    sys.stdout.flush()


def _check_saved_model(run: Run, state: State) -> None:
    """Load the final folder as anybody would, and compare its loss on a block with what training measured.

    Raises RuntimeError if they differ by more than the precision of the training explains.
    """
    if state.check_loss is None:
        return
    needed = 2 * sum(path.stat().st_size for path in run.directory.glob("model*.safetensors"))
    if (free := free_memory_bytes()) < needed:
        logger.info(f"{run.directory} was not loaded to check it: {free / 2**30:.1f} GB of memory are free")
        return
    model = LanguageModelLoss(load_model(str(run.directory), dtype="float32"))
    loss = first_block_loss(model, run.validation_blocks, torch.device("cpu"))
    if not math.isclose(
        loss, state.check_loss, rel_tol=1e-4 if run.arguments.mixed_precision == "no" else 5e-2
    ):
        raise RuntimeError(
            f"the model in {run.directory} has loss {loss:.6f} on the first validation block, but had "
            f"{state.check_loss:.6f} when it was saved: its files are damaged, or saving it went wrong"
        )
    logger.info(f"{run.directory} loads in Transformers and gives the loss it was saved with")


def _is_last(run: Run, state: State) -> bool:
    patience = run.arguments.early_stopping_patience
    return state.step >= run.num_steps or (patience is not None and state.stale_evaluations >= patience)


def _is_due(rhythm: int | str, step: int, run: Run) -> bool:
    """Whether something done every `rhythm` steps, or "epoch", or only at the "end", is done after `step` steps."""
    if rhythm == "end" or step == 0:
        return False
    return step % (run.steps_per_epoch if rhythm == "epoch" else int(rhythm)) == 0


def _axes(run: Run, state: State) -> dict[str, float]:
    return {
        "train/epoch": state.step / run.steps_per_epoch,
        "train/global_step": state.step,
        "train/tokens_seen": state.tokens_seen,
    }


def _sum_over_ranks(run: Run, value: float) -> float:
    if run.accelerator.num_processes == 1:
        return value
    return run.accelerator.reduce(
        torch.tensor(value, dtype=torch.float64, device=run.accelerator.device)
    ).item()


def _not_finite(run: Run, state: State, grad_norm: float) -> str:
    saved = list_checkpoints(run.directory)
    kept = f"{saved[-1]} is unharmed" if saved else "no checkpoint was written yet"
    return (
        f"the gradient is {grad_norm} at step {state.step + 1} (learning rate {run.schedule(state.step):.3g}): the "
        f"training has diverged; {kept}; start again with a lower --learning_rate or more --num_warmup_steps"
    )
