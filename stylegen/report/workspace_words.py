"""The words and tables of a W&B Report, from the run directories: they stand there even where no panel loads."""

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stylegen.config.privacy import for_trackers
from stylegen.report.differences import as_text
from stylegen.report.markdown import escaped
from stylegen.report.record import Row, RunRecord
from stylegen.report.tables import best_of, marked, shown
from stylegen.report.words import got_worse, joined, speed_in_words, style_in_words
from stylegen.tracking import AXIS, EPOCH, TOKENS


@dataclass(frozen=True)
class Entry:
    """One run of a report: its id on wandb, and the name that it has there."""

    record: RunRecord
    id: str
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """Its arguments as far as they may leave this machine."""
        return for_trackers(self.record.settings)

    @property
    def end(self) -> Row:
        """Its last row."""
        return self.record.rows[-1]

    def best(self, name: str) -> float | None:
        """A number of its best evaluation."""
        return self.record.best.get(name) if self.record.best else None

    def values(self, name: str) -> list[float]:
        """A number over all of the run."""
        return [row[name] for row in self.record.rows if name in row]


# The columns of the table of several runs: heading, value, format, and what of several is the best one.
COLUMNS: tuple[tuple[str, Callable[[Entry], float | None], str, Callable[..., float] | None], ...] = (
    ("best loss (nats per token)", lambda entry: entry.best("eval/loss"), ".4f", min),
    ("next token right", lambda entry: entry.best("eval/accuracy"), ".2%", max),
    ("perplexity", lambda entry: entry.best("eval/perplexity"), ",.2f", min),
    ("bits per byte", lambda entry: entry.best("eval/bits_per_byte"), ".4f", min),
    ("best after step", lambda entry: entry.best(AXIS), ",d", None),
    ("steps", lambda entry: entry.end[AXIS], ",d", None),
    ("epochs", lambda entry: entry.end[EPOCH], ".2f", None),
    ("tokens per second", lambda entry: _median(entry.values("perf/tokens_per_second")), ",.0f", max),
    ("8-grams copied", lambda entry: next(reversed(entry.values("style/copy_rate")), None), ".2%", None),
)
EVALUATION = (
    ("step", AXIS, ",d"), ("epoch", EPOCH, ".2f"), ("loss (nats per token)", "eval/loss", ".4f"),
    ("next token right", "eval/accuracy", ".2%"), ("perplexity", "eval/perplexity", ",.2f"),
    ("bits per byte", "eval/bits_per_byte", ".4f"),
)  # fmt: skip


def headline(entries: list[Entry]) -> str:
    """The best there is, in a sentence."""
    measured = [entry for entry in entries if entry.record.best]
    if not measured:
        return "No evaluation after training yet: the same command writes this page again when there is one."
    equal = list(
        itertools.compress(measured, best_of([entry.best("eval/loss") for entry in measured], ".4f", min))
    )
    entry, names = equal[0], joined([each.name for each in equal])
    whose = "is" if len(entries) == 1 else f"of {len(entries)} runs is that of {names}:"
    return (
        f"The best validation loss {whose} {shown(entry.best('eval/loss'), '.4f')} nats per token (perplexity "
        f"{shown(entry.best('eval/perplexity'), ',.2f')}, {shown(entry.best('eval/bits_per_byte'), '.4f')} bits per "
        f"byte, the next token is right in {shown(entry.best('eval/accuracy'), '.2%')}), after step "
        f"{shown(entry.best(AXIS), ',d')} of {shown(entry.end[AXIS], ',d')}."
    )


def evaluations_table(entry: Entry) -> str:
    """The evaluations that count of one run."""
    record = entry.record
    named = (("before training", record.start), ("best", record.best), ("last", record.last))
    rows = [
        [name, *(shown(row.get(metric), form) for _, metric, form in EVALUATION)]
        for name, row in named
        if row
    ]
    return table(["evaluation", *(heading for heading, _, _ in EVALUATION)], rows)


def runs_table(entries: list[Entry]) -> str:
    """The numbers of several runs, the best of a column in bold."""
    rows = [[escaped(entry.name)] for entry in entries]
    for _, read, form, choose in COLUMNS:
        values = [read(entry) for entry in entries]
        for row, value, is_best in zip(rows, values, marked(values, form, choose), strict=True):
            row.append(f"**{shown(value, form)}**" if is_best else shown(value, form))
    return table(["run", *(column[0] for column in COLUMNS)], rows)


def seeds_table(entries: list[Entry], groups: list[list[int]], kinds: list[str]) -> str:
    """The best losses of runs that differ in nothing but the seed; `kinds` are the arguments that groups differ in."""
    rows = []
    for places in groups:
        members = [entries[place] for place in places]
        settings = members[0].settings
        kind = ", ".join(
            f"{name} = {as_text(settings[name])}" if name in settings else f"no {name}" for name in kinds
        )
        losses = [loss for entry in members if (loss := entry.best("eval/loss")) is not None]
        told: list[float | None] = [None] * 3
        if losses:
            told = [statistics.fmean(losses), min(losses), max(losses)]
        numbers = [shown(loss, ".4f") for loss in told]
        rows.append([escaped(kind or "all"), f"{len(members)}", *numbers])
    return table(
        ["runs that are the same but for the seed", "runs", "mean best loss", "lowest", "highest"], rows
    )


def in_words(entries: list[Entry], place: tuple[str, str]) -> list[str]:
    """How far each run got, where its model lies, how fast it was, how near the style."""
    lines = []
    for entry in entries:
        rows, end = entry.record.rows, entry.end
        told = [
            f"{end[AXIS]:,} steps, {end[EPOCH]:.2f} epochs, {end[TOKENS]:,} tokens",
            *_model(entry, place), *speed_in_words(rows), *style_in_words(rows),
        ]  # fmt: skip
        if got_worse(entry.record):
            told.append("no evaluation after training was better than the one before it")
        lines += told if len(entries) == 1 else [f"{entry.name}: {'; '.join(told)}"]
    return lines


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, text in the first column and numbers in the others."""
    ruler = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ruler, *rows))


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _model(entry: Entry, place: tuple[str, str]) -> list[str]:
    if not entry.record.best:
        return []
    where = f"the best model lies in the run directory {entry.record.name}"
    artifact = "/".join(filter(None, [*place, f"model-{entry.id}:best"]))
    kept = entry.record.settings.get("wandb_log_model")
    return [f"{where}, and here as the artifact {artifact}" if kept else where]
