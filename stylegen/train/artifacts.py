"""Models that a tracker keeps beside the run: of every checkpoint, or the final one."""

from pathlib import Path

from stylegen.checkpoint import list_checkpoints, step_of
from stylegen.metrics import best_evaluation
from stylegen.tracking import AXIS, read_metrics
from stylegen.train.directory import model_files
from stylegen.train.state import Run, State


def log_checkpoints(run: Run, state: State) -> None:
    """Hand over the models of checkpoints that are new, where `wandb_log_model` asks for each."""
    if run.arguments.wandb_log_model != "checkpoint" or not run.accelerator.is_main_process:
        return
    for path in list_checkpoints(run.directory):
        if (step := step_of(path)) > max(run.models_logged, run.resumed_at or 0):
            run.models_logged = step
            _log(run, path, [f"step-{step}", *(["best"] if step == state.best_step else [])], {AXIS: step})


def log_final_model(run: Run) -> None:
    """Hand over the model that the run leaves, the best one, where `wandb_log_model` asks for one."""
    best = best_evaluation(read_metrics(run.directory / "metrics.jsonl"))
    if run.arguments.wandb_log_model and best:
        _log(run, run.directory, ["best"], best)


def _log(run: Run, folder: Path, aliases: list[str], row: dict[str, float]) -> None:
    run.tracker.log_model(folder, model_files(folder), aliases, row)
