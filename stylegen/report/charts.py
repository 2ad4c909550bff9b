"""Curves as SVG inside a page: sharp at any size, in the colours of the page, each point with its numbers as a tooltip.

Nothing here chooses a colour: a curve has the name of a look, and the page's style sheet says what that is in the light
and in the dark. The geometry is worked out here; templates/parts.html.j2 writes it down.
"""

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.ticker import MaxNLocator

from stylegen.report.record import Row, RunRecord
from stylegen.report.tables import SHAPES, Look, evenly, shown
from stylegen.tracking import AXIS, EPOCH

Point = tuple[float, float]
WIDTH, HEIGHT = 400, 225  # of a drawing, in units of which its letters are 11 high
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 34
MOST_POINTS, ALL_POINTS = 1000, 8000  # of a curve, and of all in a chart
MOST_TOOLTIPS, ALL_TOOLTIPS = 100, 400
BEYOND = 100  # times the median: a higher loss is drawn at the upper edge
MOST_DOTS = 60  # a curve of more measurements has no visible ones
AXIS_NAMES = {AXIS: "step", EPOCH: "epoch"}


@dataclass(frozen=True)
class Panel:
    """What a chart shows: metrics over `x`, each with the name and the look of its curve in a page of one run.

    A page of several runs shows the first metric of each of them. A chart without a `title` is not on a page of one
    run, one without `compared`, its title there, not on one of several. `least`: the axis begins at 0 and reaches at
    least there. `band` are the metrics of an interval around the first one, `level` is a value to go by, and its name.
    """

    title: str
    compared: str
    x: str
    unit: str
    form: str
    curves: tuple[tuple[str, str, str], ...]
    least: float | None = None
    has_best: bool = False
    band: tuple[str, ...] = ()
    level: tuple[float, str] | None = None


_VALIDATION = ("eval/loss", "validation", "valid")
PANELS = (
    Panel("Loss by epoch", "Validation loss by epoch", EPOCH, "nats per token", ".4f",
          (_VALIDATION, ("train/mean_loss", "training (mean)", "train")), has_best=True),
    Panel("Loss by step", "Validation loss by step", AXIS, "nats per token", ".4f",
          (_VALIDATION, ("train/loss", "training", "train")), has_best=True),
    Panel("", "Training loss by step", AXIS, "nats per token", ".4f", (("train/loss", "training", "train"),)),
    Panel("", "Bits per byte by epoch", EPOCH, "of the validation text", ".4f",
          (("eval/bits_per_byte", "validation", "valid"),), has_best=True),
    Panel("Accuracy by epoch", "Accuracy by epoch", EPOCH, "next token right", ".2%",
          (("eval/accuracy", "validation", "valid"),), has_best=True),
    Panel("Learning rate", "Learning rate", AXIS, "by step", ".3g",
          (("train/learning_rate", "", "train"),), least=0.0),
    Panel("Throughput", "Throughput", AXIS, "tokens per second", ",.0f",
          (("perf/tokens_per_second", "", "train"),), least=0.0),
    Panel("Style: distance", "Style: distance", AXIS, "1 is as near as the author", ".2f",
          (("style/distance", "by words", "valid"), ("style/distance_chars", "by characters", "train")),
          band=("style/distance_low", "style/distance_high"), level=(1.0, "the author's unseen pages")),
    Panel("Style: copied", "Style: copied", AXIS, "8-grams of the training text", ".2%",
          (("style/copy_rate", "the model", "valid"), ("style/copy_rate_validation", "unseen pages", "train")),
          least=0.01),
    Panel("Style: longest copy", "Style: longest copy", AXIS, "words", ",.0f",
          (("style/longest_copy", "", "valid"),), least=8.0),
    Panel("Style: new words", "Style: new words", AXIS, "not in the training text", ".2%",
          (("style/new_words", "", "valid"),), least=0.0),
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """The points of a curve; what is no number is left out."""

    name: str
    look: Look
    points: list[Point]
    band: list[tuple[float, float, float]]
    best: Point | None
    is_sparse: bool  # measured now and then, so that its points are dots

    @classmethod
    def read(cls, name: str, look: Look, record: RunRecord, panel: Panel, metric: str) -> "Series":
        """The curve of a metric of a run."""
        points = list(_numbers(record.rows, panel.x, metric))
        is_first = metric == panel.curves[0][0]
        band = list(_numbers(record.rows, panel.x, *panel.band)) if panel.band and is_first else []
        best = list(_numbers([record.best], panel.x, metric)) if panel.has_best and record.best else []
        sparse = not metric.startswith(("train/l", "perf/"))
        return cls(name, look, points, band, best[0] if best and is_first else None, sparse)


def _numbers(rows: Sequence[Row], *names: str) -> Iterator[tuple]:
    for row in rows:
        if names[1] in row:  # most rows of a long run have another metric
            values = tuple(row.get(name, math.nan) for name in names)
            if all(map(math.isfinite, values)):
                yield values


@dataclass(frozen=True)
class Curve:
    """A curve in the units of the drawing: `dots` and `best` are (x, y, tooltip)."""

    name: str
    look: Look
    line: str
    band: str
    dots: list[tuple[float, float, str]]
    has_dots: bool
    best: tuple[float, float, str] | None


@dataclass(frozen=True)
class Drawing:
    """A chart in units of its drawing; `words` are for who cannot see it."""

    size: ClassVar = (WIDTH, HEIGHT)
    edges: ClassVar = (
        LEFT,
        WIDTH - RIGHT,
        HEIGHT - BOTTOM,
    )  # of the field with the curves: left, right, bottom
    title: str
    unit: str
    x_name: str
    words: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    curves: list[Curve]
    level: tuple[float, str] | None


def draw_run(record: RunRecord) -> list[Drawing]:
    """The charts of one run that have something to show."""
    drawings = []
    for panel in PANELS:
        series = [
            Series.read(name, Look(look, SHAPES[place]), record, panel, metric)
            for place, (metric, name, look) in enumerate(panel.curves)
        ]
        drawings.append(_draw(panel, panel.title, series))
    return [drawing for drawing in drawings if drawing]


def draw_runs(records: dict[str, RunRecord]) -> list[Drawing]:
    """The charts of several runs over each other; `records` by their names, in the order of their looks."""
    drawings = []
    for panel in PANELS:
        series = [
            Series.read(name, Look.of_run(place), record, panel, panel.curves[0][0])
            for place, (name, record) in enumerate(records.items())
        ]
        drawings.append(_draw(panel, panel.compared, series))
    return [drawing for drawing in drawings if drawing]


def thin(points: list[Point], most: int) -> list[Point]:
    """At most about `most` points: of each stretch the lowest and the highest, and the first and the last of all."""
    if len(points) <= most:
        return points
    edges = evenly(range(len(points) + 1), max(most // 2, 2))
    kept = {0, len(points) - 1}
    for start, end in itertools.pairwise(edges):
        kept.add(min(range(start, end), key=lambda index: points[index][1]))
        kept.add(max(range(start, end), key=lambda index: points[index][1]))
    return [points[index] for index in sorted(kept)]


def _draw(panel: Panel, title: str, series: list[Series]) -> Drawing | None:
    """None for a chart without a title, or with less than two points on each curve."""
    shown_series = [each for each in series if each.points]
    if not title or max((len(each.points) for each in shown_series), default=0) < 2:
        return None
    level = panel.level
    xs = [x for each in shown_series for x, _ in each.points]
    ys = [y for each in shown_series for _, y in each.points]
    ys += [y for each in shown_series for _, *ends in each.band for y in ends]
    if panel.least is None:  # one value beyond all measure would leave nothing of the others to see
        ceiling = BEYOND * abs(statistics.median(ys))
        ys = [min(y, ceiling) for y in ys]
    ys += [level[0]] if level else []
    ys += [0.0, panel.least] if panel.least is not None else []
    across = Scale(min(0.0, *xs), max(xs), LEFT, WIDTH - RIGHT)
    margin = 0.06 * (max(ys) - min(ys)) or 0.1 * abs(max(ys)) or 1.0
    low = min(ys) - (margin if panel.least is None else 0.0)
    up = Scale(low, max(ys) + margin, HEIGHT - BOTTOM, TOP)
    many = len(shown_series)
    limits = (min(MOST_POINTS, ALL_POINTS // many), min(MOST_TOOLTIPS, ALL_TOOLTIPS // many))
    return Drawing(
        title, panel.unit, AXIS_NAMES[panel.x], _in_words(title, panel, shown_series),
        across.ticks(7, is_whole=panel.x == AXIS), up.ticks(5, is_share=panel.form.endswith("%")),
        [_curve(panel, each, across, up, *limits) for each in shown_series],
        (up(level[0]), level[1]) if level else None,
    )  # fmt: skip


def _curve(panel: Panel, series: Series, across: "Scale", up: "Scale", points: int, tooltips: int) -> Curve:
    def dot(x: float, y: float, before: str = "") -> tuple[float, float, str]:
        where = f"{AXIS_NAMES[panel.x]} {shown(x, ',d' if panel.x == AXIS else '.2f')}"
        name = f"{series.name}, " if series.name else ""
        return across(x), up(y), f"{before}{name}{where}: {shown(y, panel.form)}"

    thinned = thin(series.points, max(points, 20))
    line = "M" + "L".join(f"{across(x):g} {up(y):g}" for x, y in thinned)
    edges = [(x, high) for x, _, high in series.band] + [(x, low) for x, low, _ in reversed(series.band)]
    band = "M" + "L".join(f"{across(x):g} {up(y):g}" for x, y in edges) + "z" if len(series.band) > 1 else ""
    return Curve(
        series.name, series.look, line, band,
        [dot(x, y) for x, y in evenly(thinned, max(tooltips, 2))],
        series.is_sparse and len(series.points) <= MOST_DOTS,
        dot(*series.best, "best: ") if series.best else None,
    )  # fmt: skip


def _in_words(title: str, panel: Panel, series: list[Series]) -> str:
    parts = [
        f"{each.name or title} from {shown(each.points[0][1], panel.form)} to {shown(each.points[-1][1], panel.form)}"
        for each in series
    ]
    return f"{title}: {'; '.join(parts)}"


@dataclass(frozen=True)
class Scale:
    """From numbers between `low` and `high` to places between `start` and `end` of a drawing; not beyond `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(value, self.high) - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int, is_whole: bool = False, is_share: bool = False) -> list[tuple[float, str]]:
        """Round numbers on it, as (place, text)."""
        locator = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=is_whole)
        values = [
            float(value)
            for value in locator.tick_values(self.low, self.high)
            if self.low <= value <= self.high
        ]
        return [(self(value), _tick(value, max(map(abs, values)), is_share)) for value in values]


def _tick(value: float, largest: float, is_share: bool) -> str:
    if is_share:
        return f"{100 * value:.4g}%"
    for least, divisor, name in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if least <= largest < 1e13:
            return f"{value / divisor:g}{name}" if value else "0"
    if value and not 0.005 <= largest < 1e13:
        exponent = math.floor(math.log10(abs(value)) + 1e-9)
        return f"{value / 10.0**exponent:.3g}e{exponent}"
    return f"{value:.6g}"
