"""What a run tells while it runs: metrics.jsonl always, a progress bar or plain lines, trackers when asked.

Trackers are Accelerate's. A tracker that fails is left out with one warning; it never stops the training. It receives
the rows, the samples, and of the arguments those that `config.privacy` lists.
"""

import atexit
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from stylegen.config import first_line
from stylegen.config.privacy import for_trackers, redacted

logger = logging.getLogger("stylegen")
AXIS = "train/global_step"
KINDS = ("train", "eval", "style")  # of rows, in the order in which they come in a step
FINISHED, PREEMPTED, FAILED = "finished", "preempted", "failed"  # how a run ends
# By itself wandb records the command line, the path and the code of the program, the repository's address and changes,
# and all that is printed. An upload that never ends would keep a finished run from ending.
WANDB_SETTINGS = {
    "console": "off", "disable_code": True, "disable_git": True, "disable_job_creation": True, "save_code": False,
    "x_disable_meta": True, "program": "run_clm.py", "finish_timeout": 600.0, "finish_timeout_raises": True,
}  # fmt: skip


class Tracker:
    """The event log of one run, on the first rank only; on other ranks every method does nothing."""

    def __init__(self, run_dir: Path, is_main: bool, num_steps: int, first_step: int):
        self.run_dir, self.is_main = run_dir, is_main
        self.num_steps, self.first_step = num_steps, first_step
        self.start_time = time.monotonic()
        self.trackers: list[Any] = []
        self.file: BinaryIO | None = None
        self._unwritten = b""  # of a full disk, for the next attempt
        self._warned = False
        self.bar: tqdm | None = None
        if is_main:
            self.file = _open_for_append(run_dir / "metrics.jsonl")
            if sys.stderr.isatty():
                self.bar = tqdm(
                    total=num_steps, initial=first_step, unit="step", file=sys.stderr, dynamic_ncols=True
                )

    def start_trackers(
        self, names: Iterable[str], *, project: str, run_name: str, group: str | None, config: dict[str, Any]
    ) -> None:
        """Start the named trackers of Accelerate; wandb goes on in the run that wandb_run_id names.

        config  the arguments, of which they receive what `for_trackers` leaves
        """
        for name in names if self.is_main else ():
            self._guarded(name, self._start, name, project, run_name, group, for_trackers(config))

    def log(self, row: dict[str, Any]) -> None:
        """Append one event. `row` carries train/global_step, train/epoch and train/tokens_seen."""
        if not self.is_main:
            return
        self._unwritten += json.dumps(row).encode() + b"\n"
        self._write()
        for tracker in list(self.trackers):
            # wandb drops rows that go back in its own step, so it gets the axis as a value instead.
            self._guarded(tracker.name, tracker.log, row, step=None if tracker.name == "wandb" else row[AXIS])
        self._show(row)

    def log_samples(self, step: int, texts: list[str]) -> None:
        """Samples as text, to trackers that show text."""
        for tracker in list(self.trackers):
            if tracker.name == "wandb":
                import wandb

                table = wandb.Table(columns=["step", "text"], data=[[step, text] for text in texts])
                self._guarded("wandb", tracker.log, {"samples": table, AXIS: step})
            else:
                values = {f"samples/{number}": text for number, text in enumerate(texts)}
                self._guarded(tracker.name, tracker.log, values, step=step)

    def say(self, message: str) -> None:
        """A line for the user, beside the progress bar."""
        logger.info(message)

    def finish(self, outcome: str = FINISHED) -> None:
        """Close everything; safe to call twice. wandb hears how the run has ended, and whether it will go on.

        Of one that has failed it hears at the exit of the process: the error comes first, and other ranks may wait.
        """
        for tracker in list(self.trackers):
            if tracker.name != "wandb" or outcome == FINISHED:
                self._guarded(tracker.name, tracker.finish)
            elif outcome == PREEMPTED:
                self._guarded(tracker.name, _preempt, tracker)
            else:
                atexit.register(tracker.run.finish, exit_code=1)
        self.trackers = []
        if self.bar is not None:
            self.bar.close()
        if self.file is not None:
            self._write()
            if lost := self._unwritten.count(b"\n"):
                logger.warning(
                    f"warning: {self.file.name} could not be written: its last {lost} rows are lost"
                )
            self.file.close()
            self.file = None

    def _write(self) -> None:
        """Append what is not written yet to metrics.jsonl; on a full disk it waits for the next row."""
        assert self.file
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self.file.write(self._unwritten) :]
            self._warned = False
        except OSError as error:
            if not self._warned:
                logger.warning(
                    f"warning: {self.file.name} cannot be written ({error}); its rows are kept until it can"
                )
            self._warned = True

    def _start(
        self, name: str, project: str, run_name: str, group: str | None, config: dict[str, Any]
    ) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        options: dict[str, Any] = {}
        if name == "wandb":
            options = {"name": run_name, "group": group, "id": self._wandb_run_id(), "resume": "allow"}
            options["settings"] = dict(WANDB_SETTINGS)
            project = os.environ.get("WANDB_PROJECT", project)
        elif name == "tensorboard":
            project, options = run_name, {"logging_dir": str(self.run_dir / "tensorboard")}
        tracker = LOGGER_TYPE_TO_CLASS[name](project, **options)
        tracker.start()
        self.trackers.append(tracker)
        if name == "tensorboard":  # it keeps numbers and text only
            config = {key: _scalar(value) for key, value in config.items()}
        tracker.store_init_configuration(config)
        if name == "wandb":
            tracker.run.define_metric("*", step_metric=AXIS)

    def _wandb_run_id(self) -> str:
        path = self.run_dir / "wandb_run_id"
        if not path.exists():
            path.write_text(os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
        return path.read_text().strip()

    def _guarded(self, name: str, action: Callable[..., Any], *values: Any, **options: Any) -> None:
        try:
            action(*values, **options)
        except (Exception, SystemExit) as error:
            said = redacted(f"{type(error).__name__}: {first_line(error)}")
            logger.warning(f"warning: {name} failed and is left out from here on: {said}")
            self.trackers = [tracker for tracker in self.trackers if tracker.name != name]

    def _show(self, row: dict[str, Any]) -> None:
        step = row[AXIS]
        if "eval/loss" in row:
            self.say(
                f"step {step}: validation loss {row['eval/loss']:.4f}, accuracy {row['eval/accuracy']:.2%}, "
                f"perplexity {row['eval/perplexity']:.2f}"
            )
        elif "train/loss" in row and self.bar is not None:
            self.bar.n = step
            self.bar.set_postfix(
                loss=f"{row['train/loss']:.4f}", lr=f"{row['train/learning_rate']:.2e}", tok_s=_rate(row)
            )
        elif "train/loss" in row:
            elapsed = time.monotonic() - self.start_time
            left = elapsed / max(step - self.first_step, 1) * (self.num_steps - step)
            self.say(
                f"step {step}/{self.num_steps}: loss {row['train/loss']:.4f}, lr {row['train/learning_rate']:.2e}, "
                f"{_rate(row)} tokens/s, {tqdm.format_interval(left)} left"
            )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl by step, the later one where a step was done again after a kill.

    Lines that do not parse (the last one of a killed run) are left out. What one step has of training, evaluation and
    style are different rows.
    """
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    last = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row[AXIS] < last:  # a run that went on from before: what came later was left
            rows = {key: value for key, value in rows.items() if key[1] <= row[AXIS]}
        last = row[AXIS]
        rows[(_kind(row), last)] = row
    return [rows[key] for key in sorted(rows, key=lambda key: (key[1], KINDS.index(key[0])))]


def _kind(row: dict[str, Any]) -> str:
    """What a row is about: "train", "eval" or "style"."""
    return next((kind for kind in KINDS[1:] if any(name.startswith(f"{kind}/") for name in row)), KINDS[0])


def _rate(row: dict[str, Any]) -> str:
    """Tokens a second, in words; a step that compiled tells none."""
    rate = row.get("perf/tokens_per_second")
    return "?" if rate is None else f"{rate:,.0f}"


def _open_for_append(path: Path) -> BinaryIO:
    """Open the log, unbuffered; a half-written last line of a killed run is ended first, so that it spoils no other."""
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    file: BinaryIO = open(path, "ab", buffering=0)  # noqa: SIM115  closed by finish
    if torn:
        file.write(b"\n")
    return file


def _preempt(tracker: Any) -> None:
    """End a wandb run as preempted: it was stopped and will go on under the same id."""
    tracker.run.mark_preempting()
    tracker.run.finish(exit_code=1)  # wandb takes exit code 0 for the end of the work


def _scalar(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
