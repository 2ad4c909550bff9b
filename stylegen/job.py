"""What the job scripts in configs/slurm/ ask: where a run lies, how far it got, and whether its job goes on.

    python -m stylegen.job directory [PRESET.yaml] [--flag value ...]    checks a training's arguments; its output_dir
    python -m stylegen.job step RUN_DIR                                  the step of the newest checkpoint
    python -m stylegen.job verdict RUN_DIR LIVES BEFORE CODE yes|no      what is decided, and why

A job has several lives: when its time is up it stops, saves, and is queued again. `verdict` is for the end of a life
that began at step BEFORE, and whose training ended with exit code CODE when the time was up (yes) or before that (no).
It adds a line to the file LIVES; its exit code is 0 if the job is to be queued again, 1 if not. No torch: it is quick.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stylegen.config import (
    REQUEUE,
    TrainArguments,
    UsageError,
    check_arguments,
    parse_arguments,
    run_command,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done, or to be queued again; 1 not to be; 2 a usage error)."""
    return run_command(_answer, argv)


def newest_state(run_dir: Path) -> dict[str, Any] | None:
    """The state of the loop in the newest checkpoint of a run, or None if it has none. Only the manifest is read."""
    manifests = [
        path for path in run_dir.glob("checkpoint-*/manifest.json") if _number(path.parent).isdigit()
    ]
    if not manifests:
        return None
    newest = max(manifests, key=lambda path: int(_number(path.parent)))
    try:
        return dict(json.loads(newest.read_text(encoding="utf-8"))["state"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{newest} cannot be read; is {newest.parent} damaged?") from None


def verdict(
    state: dict[str, Any] | None, before: int, code: int, time_is_up: bool, idle_before: bool
) -> tuple[bool, str]:
    """Whether a job whose training ended like this is to be queued again, and why.

    time_is_up   the end of the time was near, so that the job script asked the training to stop
    idle_before  the life before this one did no step
    """
    if code:
        return False, f"the training ended with exit code {code}"
    if state is None:
        return False, "there is no checkpoint"
    if state["finished"]:
        return False, "the run is finished"
    if state["stopped_by"] not in (None, REQUEUE):
        return False, f"it was stopped by {state['stopped_by']}"
    if not time_is_up:
        return False, "the training ended by itself"
    if idle_before and state["step"] <= before:
        return False, "two lives in a row without a step; give a longer --time, or a smaller step"
    return True, "the time was up before the run was finished"


def _answer(argv: list[str]) -> int:
    match argv:
        case ["directory", *arguments]:
            parsed = parse_arguments(TrainArguments, arguments, positional="preset", usage=str(__doc__))
            check_arguments(parsed)
            print(parsed.output_path)
            return 0
        case ["step", run_dir]:
            print((newest_state(Path(run_dir)) or {"step": 0})["step"])
            return 0
        case ["verdict", run_dir, lives, before, code, "yes" | "no" as time_is_up]:
            return _end_life(Path(run_dir), Path(lives), int(before), int(code), time_is_up == "yes")
    raise UsageError("python -m stylegen.job directory|step|verdict ...: see configs/slurm/life.sh")


def _end_life(run_dir: Path, lives: Path, before: int, code: int, time_is_up: bool) -> int:
    rows = [line.split("\t") for line in lives.read_text().splitlines()] if lives.exists() else []
    idle_before = bool(rows) and int(rows[-1][2]) <= int(rows[-1][1])
    state = newest_state(run_dir)
    after = state["step"] if state else before
    again, why = verdict(state, before, code, time_is_up, idle_before)
    decision = f"{'requeued' if again else 'not requeued'}: {why}"
    with lives.open("a") as file:
        file.write(f"{time.strftime('%F %T')}\t{before}\t{after}\t{decision}\n")
    print(f"life {len(rows) + 1}, step {before} -> {after}: {decision}")
    return 0 if again else 1


def _number(checkpoint: Path) -> str:
    return checkpoint.name.removeprefix("checkpoint-")


if __name__ == "__main__":
    sys.exit(main())
