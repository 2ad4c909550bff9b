"""The same prompts from several checkpoints, side by side on one page, with what they have learnt by heart marked."""

import sys
from pathlib import Path
from typing import Any

from stylegen.generate.plan import Plan
from stylegen.generate.writer import Writer
from stylegen.report import TEMPLATES, Marks


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
    marks = Marks(Path(name).expanduser())
    return {"name": name, "note": marks.note, "texts": [marks.pieces(text) for text in texts]}
