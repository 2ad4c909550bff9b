"""The local report of a run: report.md, report.html (self-contained), and figures/."""

import shlex
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from stylegen.figures import draw_figures, training_loss_between
from stylegen.report.card import write_card
from stylegen.report.charts import draw_run
from stylegen.report.marks import Marks
from stylegen.report.record import Row, RunRecord
from stylegen.report.samples import MOST_CHARACTERS, as_text, copied_passages, learning, shown_samples
from stylegen.report.tables import evaluations_table, shown, style_table
from stylegen.report.templates import TEMPLATES
from stylegen.report.words import (
    best_in_words,
    got_worse,
    hardware_in_words,
    losses_in_words,
    sentence,
    software_in_words,
    speed_in_words,
    style_in_words,
)
from stylegen.style import StyleReference
from stylegen.tracking import AXIS

# What stands large at the head of the page, of the best evaluation and of all the run: heading, metric, format.
BEST_TILES = (
    ("best validation loss", "eval/loss", ".4f"),
    ("perplexity", "eval/perplexity", ",.2f"),
    ("next token right", "eval/accuracy", ".2%"),
    ("bits per byte", "eval/bits_per_byte", ".4f"),
)
OTHER_TILES = (
    ("tokens per second", "perf/tokens_per_second", ",.0f"),
    ("style distance", "style/distance", ".2f"),
    ("8-grams copied", "style/copy_rate", ".2%"),
)


def write_report(run_dir: Path, reference: StyleReference | None = None) -> list[Path]:
    """Draw the figures and write the pages and the model card; returns the paths of the figures.

    reference  the run's training text, if it is indexed already; else it is read, to mark what is copied
    Raises UsageError if `run_dir` is no run directory or has no metrics yet.
    """
    record = RunRecord.read(run_dir)
    figures = draw_figures(record.rows, run_dir / "figures")
    values = _page_values(with_mean_losses(record), Marks(run_dir, reference) if record.samples else None)
    for name in ("report.md", "report.html"):
        page = TEMPLATES.get_template(f"{name}.j2").render(values, figures=[path.name for path in figures])
        write_page(run_dir / name, page)
    write_card(record)
    return figures


def write_page(path: Path, page: str) -> None:
    """Write a page; half a character, which a tokenizer of bytes may write, is no reason to have none."""
    path.write_text(page, encoding="utf-8", errors="replace")


def with_mean_losses(record: RunRecord) -> RunRecord:
    """The same, with the mean training loss since the evaluation before in the row of each evaluation."""
    rows, training, previous = [], record.training, 0.0
    for row in record.rows:
        if "eval/loss" in row:
            mean = training_loss_between(training, previous, row["train/epoch"])
            previous = row["train/epoch"]
            row = row if mean != mean else {**row, "train/mean_loss": mean}
        rows.append(row)
    return replace(record, rows=rows)


def reproduction(record: RunRecord) -> str:
    """The commands that train the same model again."""
    commit, said = record.environment.get("git_commit"), str(record.settings.get("output_dir") or "")
    place = said if Path(said).name == record.name else record.name
    preset, again = (shlex.quote(f"{place}{end}") for end in ("/config.yaml", "-again"))
    lines = [f"git checkout {shlex.quote(str(commit))}"] if commit else []
    return "\n".join([*lines, f"python run_clm.py {preset} --output_dir {again}"])


def _page_values(record: RunRecord, marks: Marks | None) -> dict[str, Any]:
    end, strips = record.rows[-1], learning(record, marks) if marks else []
    worse = "No evaluation after training began was better than the one before it."
    samples = shown_samples(record)
    return {
        "name": record.name,
        "extent": f"{end[AXIS]:,} steps, {end['train/epoch']:,.2f} epochs, {end['train/tokens_seen']:,} tokens",
        "best_words": best_in_words(record),
        "words": losses_in_words(record) + [worse] * got_worse(record),
        "more_words": [*map(sentence, speed_in_words(record.rows) + style_in_words(record.rows))],
        "tiles": _tiles(record),
        "drawings": draw_run(record),
        "evaluations": evaluations_table(record),
        "style": style_table(record.rows),
        "strips": strips,
        "samples": [(sample, as_text(sample, MOST_CHARACTERS // len(samples))) for sample in samples],
        "num_samples": len(record.samples),
        "marks": marks.note if marks else "",
        "passages": copied_passages(strips),
        "reproduction": reproduction(record),
        "versions": ", ".join(
            filter(None, (software_in_words(record.environment), hardware_in_words(record.environment)))
        ),
        "settings_yaml": yaml.safe_dump(record.settings, sort_keys=False, allow_unicode=True),
        "environment": record.environment,
    }


def _tiles(record: RunRecord) -> list[tuple[str, str]]:
    best: Row = record.best or {}
    tiles = [(name, shown(best[metric], form)) for name, metric, form in BEST_TILES if metric in best]
    for name, metric, form in OTHER_TILES:
        values = [row[metric] for row in record.rows if metric in row]
        if values:
            value = statistics.median(values) if metric.startswith("perf/") else values[-1]
            tiles.append((name, shown(value, form)))
    return tiles
