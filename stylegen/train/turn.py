"""What is done between two steps when it is due: evaluation, samples, checkpoint. Each is a collective."""

import itertools
import math
import shutil
from dataclasses import asdict
from typing import Any

from accelerate.utils import gather_object

from stylegen.checkpoint import files_in, is_disk_error, put_in_place, settle_files, write_manifest
from stylegen.config import first_line
from stylegen.config.checks import deciding
from stylegen.evaluate import evaluate, first_block_loss
from stylegen.export import BEST
from stylegen.model import save_model
from stylegen.runtime import code_fingerprint, cuts_weights, logger
from stylegen.sampling import SamplingSettings, write_texts
from stylegen.sharding import callable_inside, collected_weights
from stylegen.tracking import Sample, sample_path, write_sample
from stylegen.train.state import Run, State, axes, sum_over_ranks, watch

BATCH_SIZE = 16  # texts written at a time
SAMPLE_SEED = 0  # every sample of a run draws the same numbers, so that only the model makes the difference


def evaluate_model(run: Run, state: State) -> bool:
    """Evaluate and log; the best model after training began is kept aside. A collective.

    False if it was interrupted, because the run is to stop.
    """
    run.watchdog.rest()
    with run.uncompiled():
        result = evaluate(
            run.model, run.validation_blocks, run.arguments.per_device_eval_batch_size, run.accelerator,
            lambda: run.stop.agreed(run.accelerator) is not None,
        )  # fmt: skip
    if result is None:
        return False
    run.tracker.log({**result.metrics(run.validation_bytes), **axes(run, state)})
    if state.step == 0 and run.num_steps > 0:
        return True  # the baseline is no candidate: the user asked for a trained model
    watch(run, state, {"eval/loss": result.loss})
    if not result.loss < (math.inf if state.best_loss is None else state.best_loss):  # nor is NaN better
        return True
    with run.uncompiled():
        check_loss = first_block_loss(run.model, run.validation_blocks, run.accelerator.device)
    if _keep_best(run, {"step": state.step, "loss": result.loss, "check_loss": check_loss}):
        state.best_loss, state.best_step, state.check_loss = result.loss, state.step, check_loss
    return True


def _keep_best(run: Run, values: dict[str, Any]) -> bool:
    """Put the model in the place of the best one, which stays if the disk will not have it. A collective."""
    best, temporary = run.directory / BEST, run.directory / f"{BEST}.tmp"
    weights = collected_weights(run.accelerator, run.base_model, keep=run.writes)
    run.saver.wait()
    error = None
    if run.writes:
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            save_model(run.base_model, run.tokenizer, temporary, weights)
            write_manifest(temporary, values, settle_files(temporary, files_in(temporary)))
            put_in_place(temporary, best)
        except Exception as problem:
            if not is_disk_error(problem):
                raise
            error = first_line(problem)
            shutil.rmtree(temporary, ignore_errors=True)
    errors = gather_object([error])
    if any(errors):
        logger.warning(
            f"warning: the best model could not be saved in {best}: {next(filter(None, errors))}; the one before stays"
        )
    return not any(errors)


def write(run: Run, count: int) -> list[tuple[str, str]]:
    """(prompt, continuation) of `count` texts by the model as it is, its prompts in turn. A collective.

    They are drawn from the same numbers every time. Empty on ranks that only wait for the first one.
    """
    run.watchdog.rest()
    run.saver.wait()  # writing changes the model's settings for a while
    arguments, together = run.arguments, cuts_weights(run.accelerator)
    pairs: list[tuple[str, str]] = []
    if run.accelerator.is_main_process or together:
        settings = SamplingSettings(
            max_new_tokens=arguments.sample_max_new_tokens,
            temperature=arguments.sample_temperature,
            seed=SAMPLE_SEED,
        )
        prompts = list(itertools.islice(itertools.cycle(arguments.sample_prompts), count))
        with run.accelerator.autocast(), callable_inside(run.accelerator, run.model), run.uncompiled():
            texts = write_texts(
                run.base_model, run.tokenizer, prompts, settings, together=together, batch_size=BATCH_SIZE
            )
            pairs = list(texts)
    run.accelerator.wait_for_everyone()
    return pairs


def keep_samples(run: Run, state: State, pairs: list[tuple[str, str]]) -> None:
    """Put texts that `write` wrote into samples/, one a prompt, and hand them to the trackers."""
    if not run.accelerator.is_main_process:
        return
    arguments = run.arguments
    texts = [prompt + continuation for prompt, continuation in pairs[: len(arguments.sample_prompts)]]
    header = (
        f"step {state.step}, epoch {state.step / run.steps_per_epoch:.2f}, seed {SAMPLE_SEED}, "
        f"temperature {arguments.sample_temperature:g}, {arguments.sample_max_new_tokens} tokens, "
        f"prompts {arguments.sample_prompts}"
    )
    sample = Sample(state.step, header, tuple(texts))
    try:
        write_sample(run.directory, sample)
    except OSError as error:
        path = sample_path(run.directory, state.step)
        logger.warning(f"warning: {path} could not be written: {error}; the training goes on")
    run.tracker.log_sample(sample)


def save(run: Run, state: State) -> None:
    """Begin to write a checkpoint of this step. A collective."""
    run.watchdog.rest()
    total = sum_over_ranks(run, state.loss_sum)
    state.loss_sum = total if run.accelerator.is_main_process else 0.0
    arguments = run.arguments
    epoch, position = divmod(state.step, run.steps_per_epoch)
    blocks = len(run.train_blocks)
    in_epoch = min(position * (arguments.total_batch_size or 0), blocks)
    values = {
        "state": {**asdict(state), "loss_sum": total},
        "samples_seen": epoch * blocks + in_epoch,
        "total_batch_size": arguments.total_batch_size,
        "fingerprints": run.fingerprints,
        "arguments": deciding(arguments),
        "versions": code_fingerprint(),
    }
    # Steps that are skipped may mean spoilt weights: what is saved then pushes nothing out.
    run.saver.keep = None if state.skipped_in_a_row else arguments.save_total_limit
    run.saver.begin(
        state.step, values, run.base_model, run.optimizer,
        lambda folder, weights: save_model(run.base_model, run.tokenizer, folder, weights),
    )  # fmt: skip
