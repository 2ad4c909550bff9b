"""The end of a run: the saved model is checked, the figures drawn, and what there is is printed."""

import math
import sys
from pathlib import Path

import torch

from stylegen.checkpoint import list_checkpoints
from stylegen.config import UsageError
from stylegen.evaluate import first_block_loss
from stylegen.export import BEST
from stylegen.model import LanguageModelLoss, load_model
from stylegen.report import summarize, write_report
from stylegen.runtime import free_memory_bytes, logger
from stylegen.train.state import Run, State


def finish(run: Run, state: State, stopped_by: str | None) -> None:
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
