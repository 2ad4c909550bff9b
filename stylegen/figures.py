"""The plots of a run, drawn from the rows of metrics.jsonl."""

import bisect
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from stylegen.metrics import best_evaluation, weighted_mean

Rows = list[dict[str, Any]]
MOST_NAMES = 16  # of runs in a legend: more of them leave the curves no room
TRAINING, VALIDATION, BEST, GREY = "#7a8ba3", "#c2452d", "#1d7a4c", "#5a5a5a"


def draw_figures(rows: Rows, folder: Path) -> list[Path]:
    """Write loss.png, loss_steps.png, accuracy.png and learning_rate.png; returns the paths of those with data."""
    folder.mkdir(parents=True, exist_ok=True)
    evaluations = [row for row in rows if "eval/loss" in row]
    training = [row for row in rows if "train/loss" in row]
    paths = []
    if evaluations:
        paths.append(_loss_by_epoch(training, evaluations, folder / "loss.png"))
    if training:
        paths.append(_loss_by_step(training, evaluations, folder / "loss_steps.png"))
    if accurate := [row for row in evaluations if "eval/accuracy" in row]:
        paths.append(_accuracy(accurate, folder / "accuracy.png"))
    if rates := [row for row in training if "train/learning_rate" in row]:
        paths.append(_learning_rate(rates, folder / "learning_rate.png"))
    return paths


def draw_lengths(lengths: np.ndarray, block_size: int, path: Path) -> Path:
    """A histogram of document lengths in tokens, int (N,), with the block size marked."""
    figure, axes = _axes("Document lengths", "tokens", "documents")
    low, high = max(int(lengths.min()), 1), max(int(lengths.max()), 2)
    if high > 100 * low:
        axes.set_xscale("log")
        bins = np.geomspace(low, high, 40)
    else:
        bins = np.linspace(low, high, 40) if high > low else np.array([low - 0.5, low + 0.5])
    axes.hist(np.maximum(lengths, 1), bins=bins, color=TRAINING)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.axvline(block_size, color=VALIDATION, linewidth=1.5, label=f"block size {block_size:,}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return _save(figure, axes, path)


def draw_comparison(runs: dict[str, Rows], path: Path) -> Path:
    """Validation loss and bits per byte of several runs by name, on top of each other, best values in the legend."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    panels = (
        ("eval/loss", "loss (nats per token)", "{:.4f}"),
        ("eval/bits_per_byte", "bits per byte", "{:.4f}"),
    )
    for axes, (key, label, form) in zip(figure.subplots(1, 2), panels, strict=True):
        _style(axes, label.split(" (")[0].capitalize(), "epoch", label)
        for name, rows in runs.items():
            evaluations = [row for row in rows if key in row]
            best = min((row[key] for row in evaluations if row[key] == row[key]), default=float("nan"))
            axes.plot(
                [row["train/epoch"] for row in evaluations],
                [row[key] for row in evaluations],
                marker="o",
                markersize=3,
                label=f"{name}: {form.format(best)}",
            )
        if len(runs) <= MOST_NAMES:
            axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    return path


def training_loss_between(training: Rows, after: float, until: float) -> float:
    """Mean training loss per token over the epochs (after, until]; rows that straddle an end count by their share.

    training  in the order of their epochs
    """
    first = bisect.bisect_right(training, after, key=lambda row: row["train/epoch"])
    before = training[first - 1] if first else {"train/epoch": 0.0, "train/tokens_seen": 0}
    values, weights = [], []
    previous_epoch, previous_tokens = before["train/epoch"], before["train/tokens_seen"]
    for row in itertools.islice(training, first, None):
        if previous_epoch >= until:
            break
        epoch, tokens = row["train/epoch"], row["train/tokens_seen"]
        overlap = min(epoch, until) - max(previous_epoch, after)
        if overlap > 0 and epoch > previous_epoch:
            values.append(row["train/loss"])
            weights.append((tokens - previous_tokens) * overlap / (epoch - previous_epoch))
        previous_epoch, previous_tokens = epoch, tokens
    return weighted_mean(values, weights)


def _loss_by_epoch(training: Rows, evaluations: Rows, path: Path) -> Path:
    figure, axes = _axes("Loss by epoch", "epoch", "loss (nats per token)")
    epochs = [row["train/epoch"] for row in evaluations]
    spans = list(itertools.pairwise(epochs if epochs[0] == 0 else [0.0, *epochs]))
    means = [(until, training_loss_between(training, after, until)) for after, until in spans]
    means = [(epoch, loss) for epoch, loss in means if loss == loss]
    if means:
        axes.plot(
            *zip(*means, strict=True),
            color=TRAINING,
            marker="o",
            markersize=4,
            label="training (mean since the last evaluation)",
        )
    axes.plot(
        epochs,
        [row["eval/loss"] for row in evaluations],
        color=VALIDATION,
        marker="o",
        markersize=4,
        label="validation",
    )
    _mark_best(axes, evaluations, "train/epoch", "eval/loss", "{:.4f}")
    return _save(figure, axes, path)


def _loss_by_step(training: Rows, evaluations: Rows, path: Path) -> Path:
    figure, axes = _axes("Loss by step", "optimizer step", "loss (nats per token)")
    axes.plot(
        [r["train/global_step"] for r in training],
        [r["train/loss"] for r in training],
        color=TRAINING,
        linewidth=1,
        marker="." if len(training) == 1 else None,
        label="training",
    )
    if evaluations:
        axes.plot([r["train/global_step"] for r in evaluations], [r["eval/loss"] for r in evaluations],
                  color=VALIDATION, marker="o", markersize=4, label="validation")  # fmt: skip
        _mark_best(axes, evaluations, "train/global_step", "eval/loss", "{:.4f}")
    return _save(figure, axes, path)


def _accuracy(evaluations: Rows, path: Path) -> Path:
    figure, axes = _axes("Validation accuracy", "epoch", "next token guessed right")
    axes.plot([r["train/epoch"] for r in evaluations], [r["eval/accuracy"] for r in evaluations],
              color=VALIDATION, marker="o", markersize=4, label="validation")  # fmt: skip
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _mark_best(axes, evaluations, "train/epoch", "eval/accuracy", "{:.1%}")
    return _save(figure, axes, path)


def _learning_rate(training: Rows, path: Path) -> Path:
    figure, axes = _axes("Learning rate", "optimizer step", "learning rate")
    axes.plot(
        [r["train/global_step"] for r in training],
        [r["train/learning_rate"] for r in training],
        color=TRAINING,
        marker="." if len(training) == 1 else None,
    )
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.set_ylim(bottom=0)
    return _save(figure, axes, path)


def _axes(title: str, x: str, y: str):
    figure = Figure(figsize=(7.5, 4.5))  # a layout engine would draw everything twice
    figure.subplots_adjust(left=0.125, right=0.975, bottom=0.12, top=0.92)
    axes = figure.add_subplot()
    _style(axes, title, x, y)
    return figure, axes


def _style(axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_axisbelow(True)
    axes.grid(True, color="#e4e4e4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10], integer="step" in x))


def _mark_best(axes, evaluations: Rows, x: str, y: str, form: str) -> None:
    best = best_evaluation(evaluations)
    if best is None:
        return
    text = f"best: {form.format(best[y])} (epoch {best['train/epoch']:.3g})"
    axes.plot(best[x], best[y], marker="*", markersize=15, color=BEST, linestyle="none", label=text, zorder=5)


def _save(figure: Figure, axes, path: Path) -> Path:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    return path
