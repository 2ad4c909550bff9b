"""Texts into a file, by one process or several, which the same command goes on with where it was stopped.

Rows are appended in order and handed to the system one by one, so a .jsonl is the beginning of the finished file at
any time, but for a last line that was torn. Of several processes each writes a batch at a time, the same ones that a
single process would write, and the first one keeps them all.
"""

import itertools
import json
import math
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylegen.config import UsageError, processes
from stylegen.generate.plan import Plan, Row


@dataclass
class _Progress:
    """Complete texts in the file, and the bytes that they take."""

    texts: int = 0
    size: int = 0


class _RowGuard:
    """Signals that interrupt, but for what is done `with` this one: they wait for its end.

    A row and its number go together: interrupted between them, the command would tell one text less than it wrote.
    """

    is_held = is_asked = False

    def on_signal(self, number: int, frame: Any) -> None:
        self.is_asked = True
        if not self.is_held:
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        self.is_held = True

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.is_held = False
        if self.is_asked and kind is None:
            raise KeyboardInterrupt


def write_output(plan: Plan) -> None:
    """Write what the file `output` lacks. Raises UsageError for a file of another command.

    Without an end, Ctrl-C and SIGTERM are one.
    """
    path = Path(plan.arguments.output or "")
    is_new = plan.arguments.overwrite_output or path.suffix == ".txt" or not path.exists()
    progress = _Progress() if is_new else _find_progress(path, plan)
    if progress.texts and processes.rank() == 0:
        state = "is complete with" if progress.texts == plan.total else "goes on after"
        print(f"{path} {state} {progress.texts:,} texts", file=sys.stderr)
    if progress.texts == plan.total and processes.world_size() == 1:
        return
    endless, guard = plan.total == math.inf, _RowGuard()
    ends = [
        number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN
    ]
    handlers = {number: signal.signal(number, guard.on_signal) for number in ends if endless}
    try:
        _append(path, plan, progress, guard)
    except KeyboardInterrupt:
        if not endless:
            raise
        print(f"stopped: {path} has {progress.texts:,} texts", file=sys.stderr)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _find_progress(path: Path, plan: Plan) -> _Progress:
    """How far an earlier run of the same command came."""
    progress, expected = _Progress(), plan.rows()
    with open(path, "rb") as file:
        for line in itertools.takewhile(lambda line: line.endswith(b"\n"), file):
            if why := _difference(line, next(expected, None)):
                raise UsageError(
                    f"output {path} is of another command: row {progress.texts + 1} {why}; choose another file, or "
                    f"begin it anew with --overwrite_output"
                )
            progress.texts, progress.size = progress.texts + 1, progress.size + len(line)
        file.seek(progress.size)
        torn = file.read()
    row = next(expected, None)
    head = json.dumps(row, ensure_ascii=False).partition('"text": "')[0].encode() if row else b""
    if torn and not (row and (torn.startswith(head) or head.startswith(torn))):
        raise UsageError(
            f"output {path} ends in a line that is no text of this command; choose another file, or begin it anew with "
            f"--overwrite_output"
        )
    return progress


def _difference(line: bytes, expected: Row | None) -> str | None:
    """How a line of the file is not the row that is to stand there, whatever its text."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        return "is no text of generate.py"
    if expected is None:
        return "is one more than this command writes"
    for name in {**expected, **found}:
        if name != "text" and found.get(name) != expected.get(name):
            old, new = (json.dumps(row.get(name), ensure_ascii=False)[:60] for row in (found, expected))
            return f"has {name} {old}, and this command {new}"
    return None


def _append(path: Path, plan: Plan, progress: _Progress, guard: _RowGuard) -> None:
    """Load the model, and write what is missing. A collective."""
    from stylegen.generate.writer import Writer

    device, is_main = None, processes.rank() == 0
    if processes.world_size() > 1:
        from accelerate.utils import broadcast_object_list

        from stylegen.runtime import build_accelerator

        device = build_accelerator("auto", timeout_seconds=24 * 3600).device
        # The first process alone may see the file.
        progress.texts, progress.size = broadcast_object_list([progress.texts, progress.size])
        if progress.texts == plan.total:
            return
    rows = _missing_rows(plan, Writer(plan, plan.arguments.checkpoints[0], device, is_main), progress.texts)
    if is_main:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with open(path, "r+b") as file:
            file.truncate(progress.size)
            file.seek(progress.size)
            for row in rows:
                in_words = plan.heading(row, progress.texts) + row["text"]
                text = in_words if path.suffix == ".txt" else json.dumps(row, ensure_ascii=False)
                with guard:
                    file.write(f"{text}\n".encode())
                    file.flush()
                    progress.texts += 1
    for _ in rows:  # the other processes take part
        pass


def _missing_rows(plan: Plan, writer: Any, done: int) -> Iterator[Row]:
    """The rows after the first `done`, on every process; a batch that was left unfinished is written again."""
    count, rank = processes.world_size(), processes.rank()
    batches = (
        batch
        for batch in plan.batches(done // plan.sorted_rows * plan.sorted_rows)
        if any(plan.place(row) >= done for row in batch)
    )

    def written() -> Iterator[list[Row]]:
        while of_ranks := list(itertools.islice(batches, count)):
            rows = writer.fill(of_ranks[rank]) if rank < len(of_ranks) else []
            if count > 1:
                from accelerate.utils import gather_object

                rows = gather_object(rows)
            yield rows

    return plan.in_order(written(), done)
