"""The end of a run: the saved model is checked, the figures drawn, and what there is is printed."""

import json
import math
import shutil
import sys
from pathlib import Path

import torch

from stylegen.checkpoint import MANIFEST, list_checkpoints, put_in_place
from stylegen.config import RunError, SourceArguments, UsageError
from stylegen.evaluate import first_block_loss
from stylegen.export import BEST, export, load_for_writing
from stylegen.lora import ADAPTER
from stylegen.loss import LanguageModelLoss
from stylegen.runtime import free_memory_bytes, logger
from stylegen.train.artifacts import log_checkpoints, log_final_model
from stylegen.train.directory import has_model, promote_best
from stylegen.train.state import Run, State


def finish(run: Run, state: State, stopped_by: str | None) -> None:
    """Check the model that was saved, draw, report, and print what there is."""
    if stopped_by is None:
        if not has_model(run.directory):
            raise RunError(
                f"there is no model in {run.directory}: no evaluation gave a loss that is a number, or best/ was taken "
                f"away; the checkpoints are there"
            )
        _check_saved_model(run, state)
    from stylegen.report import summarize, write_report  # here, for what draws takes long to import

    figures: list[Path] = []
    try:
        figures = write_report(run.directory, run.style)
        print(summarize(run.directory))
    except UsageError as error:  # stopped before anything was measured
        logger.info(str(error))
    except OSError as error:  # a full disk: what counts is saved
        logger.warning(
            f"warning: no report: {error}; python -m stylegen.report {run.directory} writes it later"
        )
    run.tracker.log_figures(state.step, figures)
    log_checkpoints(run, state)
    if stopped_by is None:
        log_final_model(run)
    samples = sorted((run.directory / "samples").glob("step-*.txt"))
    if samples:
        print(f"\n{samples[-1].read_text(encoding='utf-8')}")
    where = {
        "model": next((path for path in (run.directory / BEST, run.directory) if has_model(path)), None),
        "checkpoint": next(reversed(list_checkpoints(run.directory)), None),
        "report": run.directory / "report.html",
        "figures": " ".join(map(str, figures)),
    }
    for name, value in {**where, **run.tracker.where()}.items():
        print(f"{name:12}{value}")
    if stopped_by:
        asked = run.arguments.resume_from_checkpoint not in ("auto", "never")
        without = " without --resume_from_checkpoint" if asked else ""
        print(f"stopped by {stopped_by}; the same command{without} goes on from here")
    sys.stdout.flush()


def promote(run: Run, state: State) -> None:
    """Make the best model the final one, where this rank writes.

    That is the one of `state`, but where a run fell back, and did not get as far again as the life before.
    """
    path = run.directory / BEST / MANIFEST
    if run.writes and path.is_file():
        best = json.loads(path.read_text(encoding="utf-8"))
        if best["step"] != state.best_step:
            logger.warning(
                f"warning: the best model is that of step {best['step']} in an earlier life of the run"
            )
            state.check_loss = best["check_loss"]
    if run.writes:
        places = (run.directory / BEST, run.directory)
        adapted = next((place for place in places if (place / ADAPTER).is_file()), None)
        if run.arguments.merge_lora and adapted:
            _merge(adapted, run.directory)
        promote_best(run.directory)


def _merge(adapted: Path, folder: Path) -> None:
    """Put a plain model, with the adapter merged in, in the place of a run's best one."""
    temporary = folder / f"{BEST}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    export(str(adapted), SourceArguments(), temporary)
    put_in_place(temporary, folder / BEST)


def _check_saved_model(run: Run, state: State) -> None:
    """Load the final folder as anybody would, and compare its loss on a block with what training measured.

    Raises RuntimeError if they differ by more than the precision of the training explains.
    """
    if state.check_loss is None:
        return
    folders = (
        [run.directory, Path(run.arguments.model_name_or_path or ".")]
        if run.arguments.lora_r
        else [run.directory]
    )
    needed = 2 * sum(path.stat().st_size for each in folders for path in each.glob("model*.safetensors"))
    if (free := free_memory_bytes()) < needed:
        logger.info(f"{run.directory} was not loaded to check it: {free / 2**30:.1f} GB of memory are free")
        return
    written, _ = load_for_writing(str(run.directory), SourceArguments(), torch.device("cpu"))
    model = LanguageModelLoss(written)
    loss = first_block_loss(model, run.validation_blocks, torch.device("cpu"))
    if not math.isclose(
        loss, state.check_loss, rel_tol=1e-4 if run.arguments.mixed_precision == "no" else 5e-2
    ):
        raise RuntimeError(
            f"the model in {run.directory} has loss {loss:.6f} on the first validation block, but had "
            f"{state.check_loss:.6f} when it was saved: its files are damaged, or saving it went wrong"
        )
    logger.info(f"{run.directory} loads in Transformers and gives the loss it was saved with")
