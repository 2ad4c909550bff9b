"""The rows of metrics.jsonl, which every figure and page is made from."""

import json
from pathlib import Path
from typing import Any, BinaryIO

AXIS, EPOCH, TOKENS = IN_EVERY_ROW = ("train/global_step", "train/epoch", "train/tokens_seen")
KINDS = ("train", "eval", "style")  # of rows, in the order in which they come in a step


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl by step, the later one where a step was done again after a kill.

    Lines that are no rows (the last one of a killed run) are left out. What one step has of training, evaluation and
    style are different rows.
    """
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    last = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict) or not all(
            isinstance(row.get(name), (int, float)) for name in IN_EVERY_ROW
        ):
            continue
        if row[AXIS] < last:  # a run that went on from before: what came later was left
            rows = {key: value for key, value in rows.items() if key[1] <= row[AXIS]}
        last = row[AXIS]
        rows[(_kind(row), last)] = row
    return [rows[key] for key in sorted(rows, key=lambda key: (key[1], KINDS.index(key[0])))]


def open_for_append(path: Path) -> BinaryIO:
    """Open the log, unbuffered; a half-written last line of a killed run is ended first, so that it spoils no other."""
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    file: BinaryIO = open(path, "ab", buffering=0)  # noqa: SIM115  for the caller to close
    if torn:
        file.write(b"\n")
    return file


def _kind(row: dict[str, Any]) -> str:
    """What a row is about: "train", "eval" or "style"."""
    return next((kind for kind in KINDS[1:] if any(name.startswith(f"{kind}/") for name in row)), KINDS[0])
