"""The same prompts from several checkpoints, side by side on one page, with what they have learnt by heart marked."""

import functools
import itertools
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from stylegen.config import SHAKESPEARE, TrainArguments, UsageError, read_preset
from stylegen.corpus import Findings, Source, TextOptions, find_sources, read_pieces
from stylegen.generate.plan import Plan
from stylegen.generate.writer import Writer
from stylegen.report import TEMPLATES
from stylegen.style import StyleReference


def compare(plan: Plan) -> None:
    """Write the page that `compare` names. One model is in memory at a time."""
    path, texts_per_prompt = Path(plan.arguments.compare or ""), int(plan.arguments.texts_per_prompt)
    rows = list(plan.rows())
    page = TEMPLATES.get_template("compare.html.j2").render(
        columns=[_column(plan, name) for name in plan.arguments.checkpoints],
        rows=rows,
        completions=[plan.prompts[row["number"] // texts_per_prompt].completion for row in rows],
        several=len(plan.arguments.temperatures) > 1,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    print(path, file=sys.stderr)


def _column(plan: Plan, name: str) -> dict[str, Any]:
    """What one checkpoint writes: its name, a note on the marks, and each text as (piece, whether it is copied)."""
    writer = Writer(plan, name)
    texts = [row["text"] for row in plan.in_order(writer.fill(batch) for batch in plan.batches())]
    note = "Marked: runs of 8 words or more that stand in its training text."
    try:
        reference = _reference(*_training_text(Path(name).expanduser()))
        pieces = [_pieces(text, reference.copied_runs(text)) for text in texts]
    except UsageError as error:
        note, pieces = f"Nothing is marked: {error}", [_pieces(text, []) for text in texts]
    return {"name": name, "note": note, "texts": pieces}


def _pieces(text: str, runs: list[tuple[int, int]]) -> list[tuple[str, bool]]:
    edges = [0, *(edge for run in runs for edge in run), len(text)]
    return [(text[start:end], place % 2 == 1) for place, (start, end) in enumerate(itertools.pairwise(edges))]


def _training_text(checkpoint: Path) -> tuple[Source, TextOptions]:
    """What a checkpoint's run was trained on. Raises UsageError where nothing here says it, or holds it."""
    for folder in (checkpoint, checkpoint.parent):
        if (folder / "config.yaml").is_file():
            arguments = TrainArguments(**read_preset(TrainArguments, folder / "config.yaml"))
            source, _ = find_sources(arguments)
            if source.dataset and source.dataset != SHAKESPEARE and not Path(source.dataset).is_dir():
                raise UsageError(f"its training text, {source.dataset}, is not on this machine")
            return source, TextOptions(**{f.name: getattr(arguments, f.name) for f in fields(TextOptions)})
    raise UsageError("it is in no run directory, whose config.yaml would name its training text")


@functools.cache
def _reference(source: Source, options: TextOptions) -> StyleReference:
    return StyleReference.build(_documents(source, options), [])


def _documents(source: Source, options: TextOptions) -> Iterator[tuple[str, str]]:
    pieces: list[str] = []
    for piece in read_pieces(source, options, Findings()):
        pieces.append(piece.text)
        if piece.ends:
            yield str(source), "".join(pieces)
            pieces.clear()
