"""The report of several runs: comparison.html (self-contained), comparison.md and comparison.png beside them."""

import itertools
import math
import os
import statistics
import urllib.parse
from pathlib import Path
from typing import Any

from stylegen.figures import draw_comparison
from stylegen.report.charts import draw_runs
from stylegen.report.marks import Marks
from stylegen.report.pages import write_page
from stylegen.report.record import Row, RunRecord
from stylegen.report.samples import copied_passages, side_by_side
from stylegen.report.tables import (
    STYLE,
    STYLE_NOTE,
    Cell,
    Column,
    Look,
    best_of,
    compared_table,
    differences_table,
    shown,
)
from stylegen.report.templates import TEMPLATES
from stylegen.report.words import got_worse, joined, sentence, speed_in_words, style_in_words
from stylegen.tracking import AXIS, EPOCH

PAGES = ("comparison.md", "comparison.html", "comparison.png")
Records = dict[str, RunRecord]  # by the paths of the runs from the folder that holds them all
COLUMNS = (
    Column("lowest loss", "eval/loss", best=min),
    Column("at step", AXIS, ",d"),
    Column("average loss", "average", best=min),
    Column("highest loss", "highest", best=min),
    Column("accuracy", "eval/accuracy", ".2%", max),
    Column("perplexity", "eval/perplexity", ",.2f", min),
    Column("bits per byte", "eval/bits_per_byte", best=min),
    Column("steps", "steps", ",d"),
    Column("epochs", "epochs", ".2f"),
    Column("tokens/s", "speed", ",.0f", max),
)
NOTE = "Losses of the validation text after training began, in nats per token; accuracy and the like are of the lowest."


def compare_runs(run_dirs: list[Path]) -> Path:
    """Write the pages of several runs into the folder that holds them all; returns the path of comparison.html.

    Raises UsageError if one of `run_dirs` is no run directory or has no metrics yet.
    """
    folder = Path(os.path.relpath(os.path.commonpath([path.resolve().parent for path in run_dirs])))
    records = {os.path.relpath(path.resolve(), folder.resolve()): RunRecord.read(path) for path in run_dirs}
    draw_comparison({name: record.rows for name, record in records.items()}, folder / PAGES[2])
    values = _page_values(records)
    for name in PAGES[:2]:
        write_page(folder / name, TEMPLATES.get_template(f"{name}.j2").render(values))
    return folder / PAGES[1]


def _page_values(records: Records) -> dict[str, Any]:
    looks = [Look.of_run(place) for place in range(len(records))]
    names = [Cell(name, look=look) for name, look in zip(records, looks, strict=True)]
    linked = [
        Cell(cell.text, look=cell.look, link=urllib.parse.quote(f"{cell.text}/report.html")) for cell in names
    ]
    marks = [Marks(record.directory) for record in records.values()]
    rows = list(zip(records, looks, records.values(), marks, strict=True))
    strips = side_by_side(rows)
    styles = [_last_style(record) for record in records.values()]
    style_columns = [column for column in STYLE if any(column.metric in row for row in styles)]
    environments = [_flat(record.environment) for record in records.values()]
    return {
        "names": names,
        "title": f"{len(records)} runs compared",
        "headline": _headline(records),
        "caution": _caution(records),
        "runs": compared_table(linked, [_numbers(record) for record in records.values()], COLUMNS, NOTE),
        "words": [
            (cell, words)
            for cell, record in zip(names, records.values(), strict=True)
            if (words := _in_words(record))
        ],
        "drawings": draw_runs(records),
        "style": compared_table(names, styles, style_columns, STYLE_NOTE) if style_columns else None,
        "settings": differences_table(names, [record.settings for record in records.values()]),
        "environment": differences_table(names, environments),
        "strips": strips,
        "marks": _notes(list(records), [each.note for each in marks]),
        "passages": copied_passages(strips),
    }


def _numbers(record: RunRecord) -> Row:
    losses = [row["eval/loss"] for row in record.evaluations if row[AXIS] > 0]
    losses = [loss for loss in losses if math.isfinite(loss)]
    speeds = [row["perf/tokens_per_second"] for row in record.rows if "perf/tokens_per_second" in row]
    numbers = {
        **(record.best or {}), "steps": record.rows[-1][AXIS], "epochs": record.rows[-1]["train/epoch"],
        **({"average": statistics.fmean(losses), "highest": max(losses)} if losses else {}),
        **({"speed": statistics.median(speeds)} if speeds else {}),
    }  # fmt: skip
    return numbers


def _last_style(record: RunRecord) -> Row:
    rows = [row for row in record.rows if any(name.startswith("style/") for name in row)]
    return rows[-1] if rows else {}


def _validation_texts(records: Records) -> list[int]:
    """How many tokens they were evaluated on, each number once."""
    return sorted(
        {
            record.best["eval/tokens"]
            for record in records.values()
            if record.best and "eval/tokens" in record.best
        }
    )


def _headline(records: Records) -> tuple[str, str, str]:
    """The best there is, as what stands before the number that counts, the number, and what stands behind it."""
    best = {name: record.best for name, record in records.items() if record.best}
    if not best:
        return "No evaluation after training began yet.", "", ""
    by_tokens = len(_validation_texts(records)) < 2
    metric = "eval/loss" if by_tokens else "eval/bits_per_byte"
    words = "lowest validation loss: " if by_tokens else "fewest bits per byte: "
    chosen = best_of([row.get(metric) for row in best.values()], ".4f", min)
    equal = list(itertools.compress(best, chosen))
    if not equal:
        return "No best evaluation can be told: the numbers that compare are missing.", "", ""
    row = best[equal[0]]
    where = f" at step {row[AXIS]:,} (epoch {row[EPOCH]:.2f})" if len(equal) == 1 else ""
    unit = " nats per token" if by_tokens else ""
    has = "has" if len(equal) == 1 else "have"
    return (
        f"Of {len(records)} runs {joined(equal)} {has} the {words}",
        shown(row[metric], ".4f"),
        f"{unit}{where}.",
    )


def _caution(records: Records) -> str:
    counts = _validation_texts(records)
    if len(counts) < 2:
        return ""
    return (
        f"They were evaluated on different numbers of tokens ({', '.join(f'{count:,}' for count in counts)}): with "
        f"other tokenizers only bits per byte compare, with other validation texts nothing does."
    )


def _in_words(record: RunRecord) -> list[str]:
    worse = "no evaluation after training began was better than the one before it"
    words = speed_in_words(record.rows) + style_in_words(record.rows) + [worse] * got_worse(record)
    return [sentence(each) for each in words]


def _flat(environment: dict[str, Any]) -> dict[str, Any]:
    packages = environment.get("packages")
    rest = {name: value for name, value in environment.items() if name != "packages"}
    return rest | (packages if isinstance(packages, dict) else {})


def _notes(names: list[str], notes: list[str]) -> list[str]:
    """What the marks mean, once for all runs that it is the same for."""
    owners: dict[str, list[str]] = {}
    for name, note in zip(names, notes, strict=True):
        owners.setdefault(note, []).append(name)
    return [note if len(owners) == 1 else f"{', '.join(those)}: {note}" for note, those in owners.items()]
