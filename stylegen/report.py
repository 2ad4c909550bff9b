"""The local report of a run: report.md, report.html (self-contained) and the model card README.md.

Everything is read from the run directory, so it works on a running or a killed run too:
`python -m stylegen.report RUN_DIR`.
"""

import base64
import json
import os
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from stylegen.config import UsageError, run_command
from stylegen.figures import best_evaluation, draw_comparison, draw_figures, training_loss_between
from stylegen.tracking import read_metrics

COPIED = 0.01  # rise of the share of copied 8-grams that is no chance in the few texts of an evaluation
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("stylegen"),
    autoescape=jinja2.select_autoescape(["html.j2"]),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)


def write_report(run_dir: Path) -> list[Path]:
    """Draw the figures and write the three pages; returns the paths of the figures.

    Raises UsageError if `run_dir` is no run directory or has no metrics yet.
    """
    rows, settings = _read_run(run_dir)
    figures = draw_figures(rows, run_dir / "figures")
    values = _page_values(run_dir, rows, settings)
    images = {path.name: base64.b64encode(path.read_bytes()).decode() for path in figures}
    for name, template in (
        ("report.md", "report.md.j2"),
        ("report.html", "report.html.j2"),
        ("README.md", "card.md.j2"),
    ):
        page = TEMPLATES.get_template(template).render(
            values, figures=[path.name for path in figures], images=images
        )
        (run_dir / name).write_text(page, encoding="utf-8")
    return figures


def summarize(run_dir: Path) -> str:
    """The table that ends a run: start, best and last evaluation, and where everything lies."""
    rows, settings = _read_run(run_dir)
    values = _page_values(run_dir, rows, settings)
    lines = [
        f"{values['name']}: {values['steps']:,} steps, {values['epochs']:.2f} epochs, {values['tokens']:,} tokens"
    ]
    lines.append(
        f"{'':10}{'step':>8}{'epoch':>8}{'loss':>10}{'accuracy':>10}{'perplexity':>12}{'bits/byte':>11}"
    )
    for name in ("start", "best", "last"):
        if (row := values[name]) is not None:
            lines.append(
                f"{name:10}{row['train/global_step']:>8}{row['train/epoch']:>8.2f}{row['eval/loss']:>10.4f}"
                f"{row['eval/accuracy']:>10.2%}{row['eval/perplexity']:>12.2f}{row['eval/bits_per_byte']:>11.4f}"
            )
    lines += values["speed"] + values["style"]
    if values["got_worse"]:
        lines.append(
            "no evaluation after training was better than the one before it; try a lower --learning_rate"
        )
    return "\n".join(lines)


def speed_in_words(rows: list[dict[str, Any]]) -> list[str]:
    """How fast the run was and what it waited for: medians over its rows, seconds of all saves, the highest memory."""
    timed = [row for row in rows if "perf/tokens_per_second" in row]
    if not timed:
        return []

    def median(name: str) -> float:
        return statistics.median([row[name] for row in timed if name in row] or [0.0])

    used = f" (MFU {median('perf/mfu'):.1%})" if median("perf/mfu") else ""
    first = max(row.get("perf/first_step_seconds", 0.0) for row in rows)
    words = [
        f"speed: {median('perf/tokens_per_second'):,.0f} tokens/s{used}, {median('perf/step_seconds'):.3f} s a step",
        f"{median('perf/data_wait_fraction'):.1%} of it waiting for data",
        f"{sum(row.get('perf/save_seconds', 0.0) for row in rows):.1f} s for saves",
        *([f"first step {first:.1f} s after the command"] if first else []),
        f"at most {max(row.get('perf/max_memory_bytes', 0) for row in rows) / 1e6:,.0f} MB",
    ]
    return [", ".join(words)]


def style_in_words(rows: list[dict[str, Any]]) -> list[str]:
    """How near the author's style the last texts are, and since when the model learns the text by heart."""
    measured = [row for row in rows if "style/copy_rate" in row]
    if not measured:
        return []
    last = measured[-1]
    words = [f"style at step {last['train/global_step']}:"]
    if "style/distance" in last:
        words.append(
            f"distance {last['style/distance']:.2f} ({last['style/distance_low']:.2f} to "
            f"{last['style/distance_high']:.2f}; the author's unseen pages have 1),"
        )
    author = last.get("style/copy_rate_validation", 0.0)
    words.append(
        f"{last['style/copy_rate']:.2%} of its 8-grams stand in the training text (of unseen pages {author:.2%}), the "
        f"longest run has {last['style/longest_copy']:.0f} words"
    )
    return [" ".join(words), *_memorizing(rows, measured, author)]


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


def compare_runs(run_dirs: list[Path]) -> Path:
    """Draw the validation curves of several runs into comparison.png in the folder that holds them all."""
    folder = Path(os.path.relpath(os.path.commonpath([path.resolve().parent for path in run_dirs])))
    runs = {os.path.relpath(path, folder): _read_run(path)[0] for path in run_dirs}
    return draw_comparison(runs, folder / "comparison.png")


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m stylegen.report RUN_DIR [RUN_DIR ...]`: write the pages again and say where they are.

    Several runs are also drawn on top of each other.
    """

    def command(arguments: list[str]) -> int:
        if not arguments or arguments[0].startswith("-"):
            raise UsageError("which run? python -m stylegen.report RUN_DIR [RUN_DIR ...]")
        for name in arguments:
            write_report(Path(name))
            print(Path(name) / "report.html")
        if len(arguments) > 1:
            print(compare_runs([Path(name) for name in arguments]))
        return 0

    return run_command(command, argv)


def _read_run(run_dir: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    if not (run_dir / "config.yaml").is_file():
        raise UsageError(f"{run_dir} is not a run directory: it has no config.yaml")
    rows = read_metrics(run_dir / "metrics.jsonl") if (run_dir / "metrics.jsonl").is_file() else []
    if not rows:
        raise UsageError(f"{run_dir} has no metrics yet; wait for the first evaluation")
    try:
        settings = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError:
        settings = None
    if not isinstance(settings, dict):
        raise UsageError(f"{run_dir / 'config.yaml'} is damaged; restore it")
    return rows, settings


def _page_values(run_dir: Path, rows: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    evaluations = [row for row in rows if "eval/loss" in row]
    training = [row for row in rows if "train/loss" in row]
    best = best_evaluation(rows)
    start = next((row for row in evaluations if row["train/global_step"] == 0), None)
    samples = sorted((run_dir / "samples").glob("step-*.txt"))
    sample = samples[-1].read_text(encoding="utf-8") if samples else ""
    environment = run_dir / "environment.json"
    return {
        "name": run_dir.resolve().name,
        "steps": rows[-1]["train/global_step"],
        "epochs": rows[-1]["train/epoch"],
        "tokens": rows[-1]["train/tokens_seen"],
        "evaluations": _with_training_loss(training, evaluations),
        "start": start,
        "best": best,
        "last": evaluations[-1] if evaluations and evaluations[-1] is not start else None,
        "speed": speed_in_words(rows),
        "style": style_in_words(rows),
        "got_worse": bool(start and best and best["eval/loss"] > start["eval/loss"]),
        "sample": sample,
        "fence": "`" * (1 + max(map(len, re.findall("`+", f"``{sample}")))),  # longer than any run in it
        "settings": settings,
        "settings_yaml": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        "environment": json.loads(environment.read_text()) if environment.is_file() else {},
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


if __name__ == "__main__":
    sys.exit(main())
