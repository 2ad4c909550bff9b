"""The tables of the local report, the same for both of its pages: cells of text, the best ones marked."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stylegen.report.differences import as_text, differing
from stylegen.report.record import Row, RunRecord
from stylegen.tracking import AXIS, EPOCH

MOST_ROWS = 200  # of a table by step
LONGEST_VALUE = 300  # characters of an argument that is shown beside others
NOTHING = "–"


# Circle, square, diamond, triangle.
SHAPES = ("M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0", "M-3-3h6v6h-6z", "M0-4l4 4l-4 4l-4-4z", "M0-4l4 7h-8z")
NUM_COLOURS = 8  # of runs, in the style sheet


@dataclass(frozen=True)
class Look:
    """What tells a curve or a run from others: a name in the style sheet (colour, dashes) and the shape of its dots."""

    name: str
    dot: str = SHAPES[0]

    @classmethod
    def of_run(cls, place: int) -> "Look":
        """The same for the same run on all of a page. Runs of one colour have other dots."""
        return cls(f"run{place % NUM_COLOURS}", SHAPES[(place + place // 4) % len(SHAPES)])


@dataclass(frozen=True)
class Cell:
    """One cell. `look` is that of the run that it names, `link` leads there, `note` stands smaller behind the text."""

    text: str
    is_best: bool = False
    note: str = ""
    look: Look | None = None
    link: str = ""


@dataclass(frozen=True)
class Table:
    """Cells below headings; the first cell of a row is its heading. `is_text` says that the others are no numbers."""

    head: list[Cell]
    rows: list[list[Cell]]
    is_text: bool = False
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A metric in a table: its heading, its format, and which of several values is the best, if any is."""

    heading: str
    metric: str
    form: str = ".4f"
    best: Callable[..., float] | None = None


EVALUATION = (
    Column("step", AXIS, ",d"),
    Column("epoch", EPOCH, ".2f"),
    Column("training loss", "train/mean_loss"),
    Column("validation loss", "eval/loss", best=min),
    Column("accuracy", "eval/accuracy", ".2%", max),
    Column("perplexity", "eval/perplexity", ",.2f", min),
    Column("bits per byte", "eval/bits_per_byte", best=min),
)
STYLE = (
    Column("step", AXIS, ",d"),
    Column("distance", "style/distance", ".2f", lambda values: min(values, key=lambda value: abs(value - 1))),
    Column("by characters", "style/distance_chars", ".2f"),
    Column("8-grams copied", "style/copy_rate", ".2%"),
    Column("of unseen pages", "style/copy_rate_validation", ".2%"),
    Column("longest copy", "style/longest_copy", ",.0f"),
    Column("distinct-2", "style/distinct_2", ".3f"),
    Column("distinct-3", "style/distinct_3", ".3f"),
    Column("repeated-4", "style/repetition_4", ".2%"),
    Column("new words", "style/new_words", ".2%"),
    Column("sentence", "style/sentence_words", ".2f"),
    Column("line", "style/line_words", ".2f"),
)
STYLE_NOTE = (
    "Distance and its 95 % interval: 1 is as near as the author's own unseen pages. Sentence and line: their length "
    "in words over the author's. Longest copy: words."
)


def shown(value: Any, form: str) -> str:
    """A number in its format; an en dash where there is none, few digits where it has grown beyond all measure."""
    if not isinstance(value, (int, float)):
        return NOTHING
    if not math.isfinite(value):
        return "∞" if value == math.inf else "NaN"
    if form.endswith("d"):
        return format(int(value), form)
    return format(value, form) if abs(value) < 1e7 or not form.endswith("f") else format(value, ".3g")


def best_of(values: Sequence[Any], form: str, best: Callable[..., float]) -> list[bool]:
    """Which of them are the best one, in the digits that are shown: none is better than its equal."""
    known = [value for value in values if _is_number(value)]
    text = shown(best(known), form) if known else None
    return [_is_number(value) and shown(value, form) == text for value in values]


def marked(values: Sequence[Any], form: str, best: Callable[..., float] | None) -> list[bool]:
    """Which of them are marked in a table: the best ones, where not all are."""
    chosen = best_of(values, form, best) if best else []
    is_told = sum(chosen) < sum(map(_is_number, values))
    return chosen if chosen and is_told else [False] * len(values)


def _is_number(value: Any) -> bool:
    return value is not None and not math.isnan(value)


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items at equal distances, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def headings(columns: Sequence[Column]) -> list[Cell]:
    """The row above."""
    return [Cell(column.heading) for column in columns]


def evaluations_table(record: RunRecord) -> Table:
    """The evaluations, the best one marked."""
    best, rows = record.best, record.evaluations
    chosen = evenly(rows, MOST_ROWS)
    if best and best not in chosen:
        chosen = sorted([*chosen, best], key=lambda row: row[AXIS])

    def cell(row: Row, column: Column) -> Cell:
        return Cell(shown(row.get(column.metric), column.form), row is best and column.metric == "eval/loss")

    note = "" if len(chosen) == len(rows) else f"{len(chosen)} of {len(rows):,} evaluations."
    cells = [[cell(row, column) for column in EVALUATION] for row in chosen]
    return Table(headings(EVALUATION), cells, note=note)


def style_table(rows: Sequence[Row]) -> Table | None:
    """What was measured of the style, by step; None if nothing was."""
    measured = [row for row in rows if any(name.startswith("style/") for name in row)]
    if not measured:
        return None
    columns = [column for column in STYLE if any(column.metric in row for row in measured)]
    chosen = evenly(measured, MOST_ROWS)
    cells = [[measure(row, column) for column in columns] for row in chosen]
    count = "" if len(chosen) == len(measured) else f" {len(chosen)} of {len(measured):,} measurements."
    return Table(headings(columns), cells, note=STYLE_NOTE + count)


def measure(row: Row, column: Column) -> Cell:
    """One number, the distance with its interval."""
    interval = ""
    if column.metric == "style/distance" and "style/distance_low" in row:
        interval = " to ".join(shown(row.get(f"style/distance_{end}"), ".2f") for end in ("low", "high"))
    return Cell(shown(row.get(column.metric), column.form), note=interval)


def compared_table(names: Sequence[Cell], rows: Sequence[Row], columns: Sequence[Column], note: str) -> Table:
    """One row a run, the best of a column marked where they are not all the same."""
    cells: list[list[Cell]] = [[name] for name in names]
    for column in columns:
        best = marked([row.get(column.metric) for row in rows], column.form, column.best)
        for row, row_cells, is_best in zip(rows, cells, best, strict=True):
            row_cells.append(replace(measure(row, column), is_best=is_best))
    return Table([Cell("run"), *headings(columns)], cells, note=note)


def differences_table(names: Sequence[Cell], values: Sequence[dict[str, Any]]) -> Table | None:
    """What is not the same in all runs, one column a run; None if all is."""
    apart = differing(values)
    if not apart:
        return None
    rows = [[Cell(name), *(Cell(_value(each.get(name))) for each in values)] for name in apart]
    return Table([Cell("argument"), *names], rows, is_text=True)


def _value(value: Any) -> str:
    text = NOTHING if value is None else as_text(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
