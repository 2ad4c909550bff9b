"""The event log of a run: metrics.jsonl always, a progress bar or plain lines, trackers when asked.

A tracker that fails is left out with one warning; it never stops the training. It receives the rows, the samples, and
the arguments as `config.privacy` leaves them.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from stylegen.config import first_line
from stylegen.config.privacy import for_trackers, redacted
from stylegen.tracking.rows import AXIS, open_for_append
from stylegen.tracking.samples import Sample
from stylegen.tracking.services import FINISHED, Service, start_service
from stylegen.tracking.wandb_run import WandbRun

logger = logging.getLogger("stylegen")


class Tracker:
    """The event log of one run, on the first rank only; on other ranks every method does nothing."""

    def __init__(self, run_dir: Path, is_main: bool, num_steps: int, first_step: int):
        self.run_dir, self.is_main = run_dir, is_main
        self.num_steps, self.first_step = num_steps, first_step
        self.start_time = time.monotonic()
        self.services: list[Service] = []
        self.file: BinaryIO | None = None
        self._unwritten = b""  # of a full disk, for the next attempt
        self._warned = False
        self.bar: tqdm | None = None
        if is_main:
            self.file = open_for_append(run_dir / "metrics.jsonl")
            if sys.stderr.isatty():
                self.bar = tqdm(
                    total=num_steps, initial=first_step, unit="step", file=sys.stderr, dynamic_ncols=True
                )

    def start_trackers(
        self,
        names: Iterable[str],
        *,
        project: str,
        run_name: str,
        group: str | None,
        arguments: dict[str, Any],
        facts: dict[str, Any],
        was_killed: bool = False,
    ) -> None:
        """Start the named trackers.

        was_killed  whether the life before did not end by itself
        arguments  of the run, of which they receive what `for_trackers` leaves
        facts      what else they are to know: sizes, versions, fingerprints
        """
        for name in names if self.is_main else ():
            config = {**for_trackers(arguments), **facts}
            self._guarded(name, self._start, name, project, run_name, group, config, was_killed)

    def log(self, row: dict[str, Any]) -> None:
        """Append one event. `row` carries train/global_step, train/epoch and train/tokens_seen."""
        if not self.is_main:
            return
        self._unwritten += json.dumps(row).encode() + b"\n"
        self._write()
        self._each(lambda service: service.log(row))
        self._show(row)

    def log_sample(self, sample: Sample) -> None:
        """What the model wrote after a step."""
        self._each(lambda service: service.log_sample(sample))

    def log_figures(self, step: int, paths: list[Path]) -> None:
        """The figures that end a run."""
        self._each(lambda service: service.log_figures(step, paths))

    def log_model(self, folder: Path, files: list[Path], aliases: list[str], row: dict[str, Any]) -> None:
        """A model for whoever keeps models: files of a folder, and the evaluation that it had."""
        self._each(lambda service: service.log_model(folder, files, aliases, row))

    def alert(self, title: str, text: str, level: str = "WARN") -> None:
        """Tell whoever follows the run elsewhere. `level` is INFO, WARN or ERROR."""
        self._each(lambda service: service.alert(title, redacted(text), level))

    def where(self) -> dict[str, str]:
        """Where the run is to be seen elsewhere, by tracker."""
        places: dict[str, str] = {}
        self._each(lambda service: places.update({service.name: place} if (place := service.where()) else {}))
        return places

    def say(self, message: str) -> None:
        """A line for the user, beside the progress bar."""
        logger.info(message)

    def finish(self, outcome: str = FINISHED) -> None:
        """Close everything; safe to call twice."""
        self._each(lambda service: service.finish(outcome))
        self.services = []
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
        self,
        name: str,
        project: str,
        run_name: str,
        group: str | None,
        config: dict[str, Any],
        was_killed: bool,
    ) -> None:
        if name == "wandb":
            service: Service = WandbRun(
                self.run_dir, self.first_step, project=project, run_name=run_name, group=group, config=config,
                was_killed=was_killed,
            )  # fmt: skip
        else:
            service = start_service(name, self.run_dir, project, run_name, group, config)
        self.services.append(service)

    def _each(self, action: Callable[[Service], None]) -> None:
        for service in list(self.services):
            self._guarded(service.name, action, service)

    def _guarded(self, name: str, action: Callable[..., Any], *values: Any) -> None:
        try:
            action(*values)
        except (Exception, SystemExit) as error:
            said = redacted(f"{type(error).__name__}: {first_line(error)}")
            logger.warning(f"warning: {name} failed and is left out from here on: {said}")
            self.services = [service for service in self.services if service.name != name]

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


def _rate(row: dict[str, Any]) -> str:
    """Tokens a second, in words; a step that compiled tells none."""
    rate = row.get("perf/tokens_per_second")
    return "?" if rate is None else f"{rate:,.0f}"
