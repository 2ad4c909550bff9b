"""What a W&B Report shows: the words of the run directories, panels of what wandb has.

Imported only when a report is asked for: it needs wandb-workspaces.
"""

from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import yaml

from stylegen.report.differences import as_flags, as_text, differing, repetitions, shared
from stylegen.report.markdown import escaped
from stylegen.report.words import hardware_in_words, software_in_words
from stylegen.report.workspace_words import (
    Entry,
    evaluations_table,
    headline,
    in_words,
    runs_table,
    seeds_table,
    table,
)
from stylegen.tracking import AXIS, EPOCH, TOKENS

WIDTH, HEIGHT = 24, 8  # columns of a grid of panels, and the height of a panel in its rows
TITLE_CHARACTERS = 128  # the library takes no longer one
SAMPLE_CHARACTERS = 2000  # of each run's newest texts; the table has them whole
MOST_SAMPLES = 4  # runs whose newest texts stand one below the other
FIGURES = ("loss", "loss_steps", "accuracy", "learning_rate")
AXES = {EPOCH: "epoch", AXIS: "optimizer step", TOKENS: "tokens seen"}
LOG = "log scale"
LOSS = "loss (nats per token)"
Curve = tuple[str, tuple[str, ...], str, str]  # title, metrics, over what, unit
ONE_LOSS: tuple[Curve, ...] = (
    ("Loss by epoch", ("train/loss", "eval/loss"), EPOCH, LOSS),
    ("Loss by step", ("train/loss", "eval/loss"), AXIS, LOSS),
)
SEVERAL_LOSSES: tuple[Curve, ...] = (  # two curves of each run in one panel would be too many
    ("Validation loss by epoch", ("eval/loss",), EPOCH, LOSS),
    ("Training loss by epoch", ("train/loss",), EPOCH, LOSS),
    ("Validation loss by tokens seen", ("eval/loss",), TOKENS, LOSS),
)
ACCURACY: tuple[Curve, ...] = (
    ("Accuracy by epoch", ("eval/accuracy",), EPOCH, "share of next tokens that are right"),
    ("Bits per byte by epoch", ("eval/bits_per_byte",), EPOCH, "bits per byte of text"),
    ("Perplexity by epoch", ("eval/perplexity",), EPOCH, f"perplexity ({LOG})"),
)
TRAINING: tuple[Curve, ...] = (
    ("Learning rate by step", ("train/learning_rate",), AXIS, "learning rate"),
    ("Gradient norm by step", ("train/grad_norm",), AXIS, "norm before clipping"),
    ("Throughput by step", ("perf/tokens_per_second",), AXIS, "tokens per second"),
    ("Waiting for data by step", ("perf/data_wait_fraction",), AXIS, "share of the time"),
    ("MFU by step", ("perf/mfu",), AXIS, "share of the device's peak"),
    ("Memory by step", ("perf/max_memory_bytes",), AXIS, "most bytes so far"),
)
STYLE: tuple[Curve, ...] = (
    ("Distance from the style by step", ("style/distance",), AXIS, "distance (the author's unseen pages: 1)"),
    ("Copied 8-grams by step", ("style/copy_rate",), AXIS, "share that is in the training text"),
    ("Longest copied run by step", ("style/longest_copy",), AXIS, "words"),
)
LIMITS = (
    "A model that learnt to write in one style states no facts.",
    "It may repeat its training text word for word: see the copied 8-grams, where they were measured.",
    "The numbers are those of one validation text, and of one seed unless several runs differ in it.",
    "What a token is differs with the tokenizer: compare runs of different ones by bits per byte, not by loss.",
)


class Page:
    """The title and the blocks of the report of one run or several.

    place  (entity, project) that the panels look in; empty strings leave that open
    """

    def __init__(self, entries: list[Entry], place: tuple[str, str]):
        self.entries, self.place = entries, place
        self.is_single = len(entries) == 1
        settings = [entry.record.settings for entry in entries]
        self.apart, self.common = differing(settings), set(shared(settings))
        self.groups = repetitions(settings)

    @property
    def title(self) -> str:
        """The names of the runs, as far as they fit."""
        names = ", ".join(entry.name for entry in self.entries)
        title = f"Training of {names}" if self.is_single else f"{len(self.entries)} runs compared: {names}"
        return title if len(title) <= TITLE_CHARACTERS else f"{title[: TITLE_CHARACTERS - 1]}…"

    def blocks(self) -> list[Any]:
        """All of it, from the summary to the limits; a section without content is left out."""
        sections: dict[str, list[Any]] = {
            "Summary": self._summary(),
            "Loss and accuracy": self._learning(),
            "Learning rate and throughput": self._grid(self._curves(TRAINING)),
            "Style": self._style(),
            "Samples": self._samples(),
            "Configuration": self._configuration(),
            "How to reproduce": self._reproduction(),
            "Limits": [wr.UnorderedList(items=[*LIMITS])],
        }
        blocks: list[Any] = [wr.CalloutBlock(text=headline(self.entries)), wr.TableOfContents()]
        for heading, content in sections.items():
            blocks += [wr.H2(text=heading), *content] if content else []
        return blocks

    def _summary(self) -> list[Any]:
        words = wr.UnorderedList(items=[*in_words(self.entries, self.place)])
        if self.is_single:
            return [wr.MarkdownBlock(text=evaluations_table(self.entries[0])), words]
        blocks: list[Any] = [wr.MarkdownBlock(text=runs_table(self.entries))]
        if self.groups:
            kinds = [name for name in self.apart if name != "seed"]
            seeds = seeds_table(self.entries, self.groups, kinds)
            blocks += [wr.H3(text="Over seeds"), wr.MarkdownBlock(text=seeds)]
        return [*blocks, wr.H3(text="Run by run"), words]

    def _learning(self) -> list[Any]:
        panels = self._curves([*(ONE_LOSS if self.is_single else SEVERAL_LOSSES), *ACCURACY])
        if not self.is_single:
            best = wr.BarPlot(
                title="Best validation loss", metrics=[wr.SummaryMetric("best/loss")], title_x=LOSS
            )
            panels.append(best)
        words = "A training loss is the mean since the one before, a validation loss that of the whole validation text."
        if self.groups:
            words += (
                " Runs that differ in their seed only are one curve: their mean, in the range that they span."
            )
        return [wr.P(text=words), *self._grid(panels, shows_runs=True)]

    def _style(self) -> list[Any]:
        panels = self._curves(STYLE)
        words = (
            "How far the texts that the model writes are from the author's, and how much of them stands word for word "
            "in the training text. More copies while the validation loss rises: it is learning by heart."
        )
        return [wr.P(text=words), *self._grid(panels, columns=len(panels))] if panels else []

    def _samples(self) -> list[Any]:
        written = [entry for entry in self.entries if entry.record.samples]
        blocks: list[Any] = []
        for entry in written[:MOST_SAMPLES]:
            sample = entry.record.samples[-1]
            whose = "What the model" if self.is_single else f"What the model of {entry.name}"
            text = "\n====\n".join(sample.texts)
            cut = text if len(text) <= SAMPLE_CHARACTERS else f"{text[:SAMPLE_CHARACTERS]}…"
            blocks += [
                wr.P(text=f"{whose} wrote after step {sample.step:,}:"),
                wr.CodeBlock(code=cut, language="markdown"),
            ]
        if not written:
            return []
        # The library reads a table's panel back without its size, so it has the size that it is read back with.
        panels: list[Any] = [
            wr.WeavePanelSummaryTable(table_name="samples", layout=wr.Layout(x=0, y=0, w=8, h=6)),
            wr.MediaBrowser(
                title="Figures", media_keys=[f"figures/{name}" for name in FIGURES], num_columns=2,
                layout=wr.Layout(x=8, y=0, w=16, h=6),
            ),
        ]  # fmt: skip
        grid = wr.PanelGrid(runsets=[self._runset([])], panels=panels, hide_run_sets=True)
        return [*blocks, wr.P(text="The samples of all steps, and the figures of the end of a run:"), grid]

    def _configuration(self) -> list[Any]:
        layout = wr.Layout(x=0, y=0, w=WIDTH, h=12)
        comparer = wr.RunComparer(diff_only=None if self.is_single else "split", layout=layout)
        grid = wr.PanelGrid(runsets=[self._runset([])], panels=[comparer], hide_run_sets=True)
        if self.is_single:
            return [wr.P(text="All that wandb knows of the run: arguments, versions, last numbers."), grid]
        told: Any = wr.P(text="The runs have the same arguments.")
        if self.apart:
            every = [entry.settings for entry in self.entries]
            rows = [
                [escaped(name), *(escaped(as_text(each[name])) if name in each else "" for each in every)]
                for name in self.apart
            ]
            told = wr.MarkdownBlock(text=table(["argument", *(escaped(e.name) for e in self.entries)], rows))
        return [told, wr.P(text="All else that differs, last numbers included:"), grid]

    def _reproduction(self) -> list[Any]:
        first = self.entries[0].settings
        preset = {name: value for name, value in first.items() if name in self.common}
        commands = []
        for entry in self.entries:
            own = {name: entry.settings[name] for name in self.apart if name in entry.settings}
            flags = as_flags({**own, "output_dir": f"out/{entry.record.name}"})
            commands.append(f"python run_clm.py preset.yaml {flags}")
        whose = "The arguments" if self.is_single else "The arguments that the runs share"
        words = f"{whose}, to be saved as preset.yaml; files stand in it without their folders:"
        text = yaml.safe_dump(preset, sort_keys=False, allow_unicode=True).rstrip()
        return [
            wr.P(text=words),
            wr.CodeBlock(code=text, language="yaml"),
            wr.CodeBlock(code="\n".join(commands), language="markdown"),  # there is no language for a shell
            wr.P(text="Versions and hardware:"),
            wr.UnorderedList(items=[*_environments(self.entries)]),
        ]

    # --- panels

    def _curves(self, curves: Sequence[Curve]) -> list[Any]:
        """A panel for each of which any run has measured anything."""
        options: dict[str, Any] = {}
        if self.groups:
            options |= {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
        if len(self.entries) > 10:  # as many are drawn where nothing is said
            options["max_runs_to_show"] = len(self.entries)
        return [
            wr.LinePlot(
                title=title, x=x, y=[*metrics], title_x=AXES[x], title_y=unit, log_y=LOG in unit or None, **options
            )
            for title, metrics, x, unit in curves
            if any(entry.values(metric) for entry in self.entries for metric in metrics)
        ]  # fmt: skip

    def _grid(self, panels: list[Any], *, columns: int = 2, shows_runs: bool = False) -> list[Any]:
        """Panels side by side, runs that are the same but for the seed as one; `shows_runs` puts their table below."""
        width = WIDTH // columns
        for number, panel in enumerate(panels):
            x, y = number % columns * width, number // columns * HEIGHT
            panel.layout = wr.Layout(x=x, y=y, w=width, h=HEIGHT)
        runset = self._runset(self._group_keys() if self.groups else [])
        return [wr.PanelGrid(runsets=[runset], panels=panels, hide_run_sets=not shows_runs)] if panels else []

    def _runset(self, group_keys: list[str]) -> Any:
        """Exactly these runs, the best first."""
        entity, project = self.place
        return wr.Runset(
            entity=entity, project=project, name="Run" if self.is_single else "Runs", groupby=group_keys,
            filters=f"Metric('ID') in {[entry.id for entry in self.entries]!r}",
            order=[wr.OrderBy(name=wr.SummaryMetric("best/loss"), ascending=True)],
        )  # fmt: skip

    def _group_keys(self) -> list[str]:
        """What to group by, so that the runs of a group differ in their seed only."""
        keys = []
        for name in self.apart:
            values = [entry.settings.get(name) for entry in self.entries]
            if any(isinstance(value, dict) for value in values):  # there is no group of mappings
                parts = [value if isinstance(value, dict) else {} for value in values]
                keys += [f"config.{name}.{part}" for part in differing(parts)]
            elif name != "seed":
                keys.append(f"config.{name}")
        return keys or ["config.optim"]  # one group of all, by what they share


def _environments(entries: list[Entry]) -> list[str]:
    """What the runs ran on, those on the same together."""
    names: dict[str, list[str]] = {}
    for entry in entries:
        names.setdefault(_environment(entry.record.environment), []).append(entry.name)
    return [f"{', '.join(those)}: {words}" if len(names) > 1 else words for words, those in names.items()]


def _environment(environment: dict[str, Any]) -> str:
    told = {"commit": environment.get("git_commit"), "precision": environment.get("mixed_precision")}
    parts = [
        software_in_words(environment),
        hardware_in_words(environment),
        *(f"{name} {value}" for name, value in told.items() if value),
    ]
    return ", ".join(filter(None, parts)) or "the versions are not known, for want of an environment.json"
