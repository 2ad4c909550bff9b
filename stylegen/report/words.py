"""A run in words: how good it got, how fast it was, how near the style, and since when it learns by heart."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stylegen.metrics import best_evaluation
from stylegen.report.record import RunRecord
from stylegen.report.tables import shown
from stylegen.tracking import AXIS

COPIED = 0.01  # rise of the share of copied 8-grams that is no chance in the few texts of an evaluation


def summarize(run_dir: Path) -> str:
    """The table that ends a run: start, best and last evaluation, and where everything lies."""
    record = RunRecord.read(run_dir)
    end = record.rows[-1]
    lines = [
        f"{record.name}: {end['train/global_step']:,} steps, {end['train/epoch']:.2f} epochs, "
        f"{end['train/tokens_seen']:,} tokens"
    ]
    lines.append(
        f"{'':10}{'step':>8}{'epoch':>8}{'loss':>10}{'accuracy':>10}{'perplexity':>12}{'bits/byte':>11}"
    )
    for name, row in (("start", record.start), ("best", record.best), ("last", record.last)):
        if row is not None:
            lines.append(
                f"{name:10}{row['train/global_step']:>8}{row['train/epoch']:>8.2f}{row['eval/loss']:>10.4f}"
                f"{shown(row.get('eval/accuracy'), '.2%'):>10}{shown(row.get('eval/perplexity'), '.2f'):>12}"
                f"{shown(row.get('eval/bits_per_byte'), '.4f'):>11}"
            )
    lines += speed_in_words(record.rows) + style_in_words(record.rows)
    if got_worse(record):
        lines.append(
            "no evaluation after training was better than the one before it; try a lower --learning_rate"
        )
    return "\n".join(lines)


def best_in_words(record: RunRecord) -> tuple[str, str, str]:
    """How good it got, as what stands before the number that counts, the number, and what stands behind it."""
    best, start = record.best, record.start
    if best is None:
        return "No evaluation after training began yet.", "", ""
    words = f" nats per token at step {best[AXIS]:,} (epoch {best['train/epoch']:.2f})"
    known = [
        f"{name} {shown(best[metric], form)}"
        for name, metric, form in (
            ("accuracy", "eval/accuracy", ".2%"),
            ("perplexity", "eval/perplexity", ",.2f"),
            ("bits per byte", "eval/bits_per_byte", ".4f"),
        )
        if metric in best
    ]
    words += f": {', '.join(known)}." if known else "."
    if start:
        words += f" Before training: loss {shown(start['eval/loss'], '.4f')}"
        words += f", perplexity {shown(start.get('eval/perplexity'), ',.2f')}."
    return "Best validation loss ", shown(best["eval/loss"], ".4f"), words


def losses_in_words(record: RunRecord) -> list[str]:
    """Lowest, average and highest loss of the evaluations after training began, and of the training."""
    lines = []
    for name, metric, rows in (
        ("Validation loss after training began", "eval/loss", record.evaluations),
        ("Training loss", "train/loss", record.training),
    ):
        numbers = [(row[metric], row[AXIS]) for row in rows if row[AXIS] > 0 and math.isfinite(row[metric])]
        if numbers:
            (low, at_low), (high, at_high) = min(numbers), max(numbers)
            average = statistics.fmean(loss for loss, _ in numbers)
            lines.append(
                f"{name}: lowest {shown(low, '.4f')} (step {at_low:,}), average {shown(average, '.4f')}, highest "
                f"{shown(high, '.4f')} (step {at_high:,})."
            )
    return lines


def joined(names: Sequence[str]) -> str:
    """a, b and c."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def sentence(words: str) -> str:
    """Words that stand by themselves."""
    return f"{words[:1].upper()}{words[1:]}."


def got_worse(record: RunRecord) -> bool:
    """Whether no evaluation after training was better than the one before it."""
    return bool(record.start and record.best and record.best["eval/loss"] > record.start["eval/loss"])


def speed_in_words(rows: list[dict[str, Any]]) -> list[str]:
    """How fast the run was and what it waited for: medians over its rows, seconds of all saves, the highest memory."""
    timed = [row for row in rows if "perf/tokens_per_second" in row]
    if not timed:
        return []

    def median(name: str, form: str) -> str:
        values = [row[name] for row in timed if name in row]
        return shown(statistics.median(values), form) if values else ""

    used, step = median("perf/mfu", ".1%"), median("perf/step_seconds", ".3f")
    waiting = median("perf/data_wait_fraction", ".1%")
    first = max(row.get("perf/first_step_seconds", 0.0) for row in rows)
    memory = max(row.get("perf/max_memory_bytes", 0) for row in rows) / 1e6
    words = [
        f"speed: {median('perf/tokens_per_second', ',.0f')} tokens/s" + (f" (MFU {used})" if used else ""),
        f"{step} s a step" if step else "",
        f"{waiting} of it waiting for data" if waiting else "",
        f"{sum(row.get('perf/save_seconds', 0.0) for row in rows):.1f} s for saves",
        f"first step {first:.1f} s after the command" if first else "",
        f"at most {memory:,.0f} MB" if memory else "",
    ]
    return [", ".join(filter(None, words))]


def style_in_words(rows: list[dict[str, Any]]) -> list[str]:
    """How near the author's style the last texts are, and since when the model learns the text by heart."""
    measured = [row for row in rows if "style/copy_rate" in row]
    if not measured:
        return []
    last = measured[-1]
    words = [f"style at step {last['train/global_step']}:"]
    if "style/distance" in last:
        low, high = (shown(last.get(f"style/distance_{end}"), ".2f") for end in ("low", "high"))
        words.append(
            f"distance {last['style/distance']:.2f} ({low} to {high}; the author's unseen pages have 1),"
        )
    author = last.get("style/copy_rate_validation")
    words.append(
        f"{last['style/copy_rate']:.2%} of its 8-grams stand in the training text (of unseen pages "
        f"{shown(author, '.2%')}), the longest run has {shown(last.get('style/longest_copy'), '.0f')} words"
    )
    return [" ".join(words), *_memorizing(rows, measured, author or 0.0)]


def _memorizing(rows: list[dict[str, Any]], measured: list[dict[str, Any]], author: float) -> list[str]:
    """Both signs together: the validation loss has turned up, and more is copied than the author himself repeats."""
    best = best_evaluation(rows)
    if best is None:
        return []
    step = best["train/global_step"]
    worse = {
        row["train/global_step"]: row["eval/loss"]
        for row in rows
        if "eval/loss" in row and row["train/global_step"] > step and row["eval/loss"] > best["eval/loss"]
    }
    before = max(
        [row["style/copy_rate"] for row in measured if row["train/global_step"] <= step], default=0.0
    )
    for row in measured:
        number, copied = row["train/global_step"], row["style/copy_rate"]
        if number in worse and copied > max(before, author) + COPIED:
            return [
                f"memorising since step {number}: the validation loss has turned up from {best['eval/loss']:.4f} (step "
                f"{step}) to {worse[number]:.4f}, and {copied:.2%} of the 8-grams are copied, {before:.2%} before; the "
                f"model kept is that of step {step}"
            ]
    return []


def software_in_words(environment: dict[str, Any]) -> str:
    """The versions that a run had; empty if nothing tells."""
    packages = environment.get("packages")
    named = {"Python": environment.get("python"), "stylegen": environment.get("stylegen")}
    named |= packages if isinstance(packages, dict) else {}
    return ", ".join(f"{name} {version}" for name, version in named.items() if version)


def hardware_in_words(environment: dict[str, Any]) -> str:
    """How many processes a run had, and on what; empty if nothing tells."""
    processes, device = environment.get("world_size"), environment.get("device")
    return f"{processes} process{'es' if processes != 1 else ''} on {device}" if processes and device else ""
