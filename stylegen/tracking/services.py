"""What shows a run elsewhere: Accelerate's trackers, each given what it can take. wandb is in `wandb_run`."""

import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stylegen.tracking.rows import AXIS
from stylegen.tracking.samples import Sample

FINISHED, PREEMPTED, FAILED = "finished", "preempted", "failed"  # how a run ends
TEXTS = {"aim": "Text", "swanlab": "Text"}  # the class in which these trackers take a text
NUMBERS_ONLY = ("clearml", "dvclive", "mlflow")  # the others show texts too
# By themselves these record the code, its repository with its changes, what is printed, or the command line.
CLEARML_OFF = ("auto_connect_arg_parser", "auto_connect_frameworks", "auto_connect_streams")


class Service:
    """One tracker of one run. What a tracker cannot show, it is not given."""

    def __init__(self, name: str, tracker: Any):
        self.name, self.tracker = name, tracker

    def log(self, row: dict[str, Any]) -> None:
        """A row of metrics.jsonl."""
        self.tracker.log(row, step=row[AXIS])

    def log_sample(self, sample: Sample) -> None:
        """What the model wrote."""
        if self.name in NUMBERS_ONLY:
            return
        shown: Any = str
        if self.name in TEXTS:
            shown = getattr(importlib.import_module(self.name), TEXTS[self.name])
        values = {f"samples/{number}": shown(text) for number, text in enumerate(sample.texts)}
        self.tracker.log(values, step=sample.step)

    def log_figures(self, step: int, paths: Iterable[Path]) -> None:
        """The figures that end a run."""

    def log_model(self, folder: Path, files: Iterable[Path], aliases: list[str], row: dict[str, Any]) -> None:
        """A model in the files of a folder, and the evaluation that it had."""

    def alert(self, title: str, text: str, level: str) -> None:
        """Tell whoever follows the run. `level` is INFO, WARN or ERROR."""

    def where(self) -> str | None:
        """Where the run is to be seen, or how to send it there."""
        return None

    def finish(self, outcome: str) -> None:
        """Close it; `outcome` is FINISHED, PREEMPTED or FAILED."""
        self.tracker.finish()


def start_service(
    name: str, run_dir: Path, project: str, run_name: str, group: str | None, config: dict[str, Any]
) -> Service:
    """Start one of Accelerate's trackers. `config` is what `for_trackers` left of the arguments."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    options = _options(name, run_dir, run_name, group)
    tracker = LOGGER_TYPE_TO_CLASS[name](run_name if name in ("aim", "tensorboard") else project, **options)
    tracker.start()
    if name in ("tensorboard", "mlflow", "dvclive"):  # they keep numbers and text only
        config = {key: _scalar(value) for key, value in config.items()}
    tracker.store_init_configuration(config)
    return Service(name, tracker)


def _options(name: str, run_dir: Path, run_name: str, group: str | None) -> dict[str, Any]:
    """What the constructor of a tracker needs beside the project."""
    if name == "tensorboard":
        return {"logging_dir": str(run_dir / "tensorboard")}
    if name == "trackio":
        return {"name": run_name, "group": group, "resume": "allow"}
    if name == "aim":
        return {"capture_terminal_logs": False}
    if name == "mlflow":
        return {"run_name": run_name}
    if name == "swanlab":
        return {"experiment_name": run_name, "group": group}
    if name == "dvclive":
        return {"dir": str(run_dir / "dvclive"), "save_dvc_exp": False, "report": None, "dvcyaml": None}
    if name == "clearml":
        return {"task_name": run_name, "reuse_last_task_id": False, **dict.fromkeys(CLEARML_OFF, False)}
    if name == "comet_ml":
        import comet_ml

        quiet = comet_ml.ExperimentConfig(
            name=run_name, log_code=False, log_git_metadata=False, log_git_patch=False, log_env_details=False,
            auto_output_logging=False, auto_param_logging=False, auto_metric_logging=False, parse_args=False,
        )  # fmt: skip
        return {"experiment_config": quiet}
    return {}


def _scalar(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
