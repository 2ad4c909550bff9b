"""What is done between two steps when it is due: evaluation, samples, checkpoint. Each is a collective."""

import os
import shutil
from dataclasses import asdict
from pathlib import Path

from stylegen.checkpoint import save_checkpoint
from stylegen.evaluate import evaluate, first_block_loss
from stylegen.export import BEST
from stylegen.model import save_model
from stylegen.runtime import cuts_weights, logger
from stylegen.sampling import SamplingSettings, write_texts
from stylegen.sharding import callable_inside, holds_pieces, whole_weights
from stylegen.train.state import Run, State, axes, sum_over_ranks

SAMPLE_SEED = 0  # every sample of a run draws the same numbers, so that only the model makes the difference


def evaluate_model(run: Run, state: State) -> None:
    """Evaluate and log; the best model after training began is kept aside. A collective."""
    run.watchdog.rest()
    result = evaluate(
        run.model, run.validation_blocks, run.arguments.per_device_eval_batch_size, run.accelerator
    )
    run.tracker.log({**result.metrics(run.validation_bytes), **axes(run, state)})
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
    total = sum_over_ranks(run, state.loss_sum)
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
