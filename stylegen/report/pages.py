"""The local report of a run: report.md, report.html (self-contained), and figures/."""

import base64
import os
import re
from pathlib import Path
from typing import Any

import yaml

from stylegen.figures import draw_comparison, draw_figures, training_loss_between
from stylegen.report.card import write_card
from stylegen.report.record import RunRecord
from stylegen.report.templates import TEMPLATES
from stylegen.report.words import speed_in_words, style_in_words


def write_report(run_dir: Path) -> list[Path]:
    """Draw the figures and write the pages and the model card; returns the paths of the figures.

    Raises UsageError if `run_dir` is no run directory or has no metrics yet.
    """
    record = RunRecord.read(run_dir)
    figures = draw_figures(record.rows, run_dir / "figures")
    values = _page_values(record)
    images = {path.name: base64.b64encode(path.read_bytes()).decode() for path in figures}
    for name in ("report.md", "report.html"):
        page = TEMPLATES.get_template(f"{name}.j2").render(
            values, figures=[path.name for path in figures], images=images
        )
        (run_dir / name).write_text(page, encoding="utf-8")
    write_card(record)
    return figures


def compare_runs(run_dirs: list[Path]) -> Path:
    """Draw the validation curves of several runs into comparison.png in the folder that holds them all."""
    folder = Path(os.path.relpath(os.path.commonpath([path.resolve().parent for path in run_dirs])))
    runs = {os.path.relpath(path, folder): RunRecord.read(path).rows for path in run_dirs}
    return draw_comparison(runs, folder / "comparison.png")


def _page_values(record: RunRecord) -> dict[str, Any]:
    end, sample = record.rows[-1], ""
    if record.samples:
        last = record.samples[-1]
        header = f"# {last.header}\n" if last.header else ""
        sample = header + "\n====\n".join(last.texts) + "\n"
    return {
        "name": record.name,
        "steps": end["train/global_step"],
        "epochs": end["train/epoch"],
        "tokens": end["train/tokens_seen"],
        "evaluations": _with_training_loss(record.training, record.evaluations),
        "start": record.start,
        "best": record.best,
        "speed": speed_in_words(record.rows),
        "style": style_in_words(record.rows),
        "sample": sample,
        "fence": "`" * (1 + max(map(len, re.findall("`+", f"``{sample}")))),  # longer than any run in it
        "settings_yaml": yaml.safe_dump(record.settings, sort_keys=False, allow_unicode=True),
        "environment": record.environment,
    }


def _with_training_loss(
    training: list[dict[str, Any]], evaluations: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    previous, table = 0.0, []
    for row in evaluations:
        loss = training_loss_between(training, previous, row["train/epoch"])
        table.append({**row, "training": f"{loss:.4f}" if loss == loss else ""})
        previous = row["train/epoch"]
    return table
