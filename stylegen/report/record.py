"""What a run directory tells of its run, read once for every page; it works on a running or a killed run too."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stylegen.config import UsageError
from stylegen.metrics import best_evaluation
from stylegen.tracking import Sample, read_metrics, read_samples

Row = dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """One run: the rows of metrics.jsonl by step, its arguments, its environment, its samples by step."""

    directory: Path
    rows: list[Row]
    settings: dict[str, Any]
    environment: dict[str, Any]
    samples: list[Sample]

    @classmethod
    def read(cls, directory: Path) -> "RunRecord":
        """Raises UsageError if `directory` is no run directory, or has no metrics yet."""
        if not (directory / "config.yaml").is_file():
            raise UsageError(f"{directory} is not a run directory: it has no config.yaml")
        path = directory / "metrics.jsonl"
        rows = read_metrics(path) if path.is_file() else []
        if not rows:
            raise UsageError(f"{directory} has no metrics yet; wait for the first evaluation")
        settings, environment = _read_settings(directory), _read_environment(directory)
        return cls(directory, rows, settings, environment, read_samples(directory))

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.directory.resolve().name

    @property
    def evaluations(self) -> list[Row]:
        """Rows with eval/loss."""
        return [row for row in self.rows if "eval/loss" in row]

    @property
    def training(self) -> list[Row]:
        """Rows with train/loss."""
        return [row for row in self.rows if "train/loss" in row]

    @property
    def start(self) -> Row | None:
        """The evaluation before the first step."""
        return next((row for row in self.evaluations if row["train/global_step"] == 0), None)

    @property
    def best(self) -> Row | None:
        """The evaluation of the model that is kept."""
        return best_evaluation(self.rows)

    @property
    def last(self) -> Row | None:
        """The last evaluation after training began."""
        evaluations = self.evaluations
        return evaluations[-1] if evaluations and evaluations[-1] is not self.start else None


def _read_settings(directory: Path) -> dict[str, Any]:
    path = directory / "config.yaml"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        settings = None
    if not isinstance(settings, dict):
        raise UsageError(f"{path} is damaged; restore it")
    return settings


def _read_environment(directory: Path) -> dict[str, Any]:
    path = directory / "environment.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except ValueError:
        return {}
