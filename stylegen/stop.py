"""When to stop: signals, a file, or the time that was given, until the next step boundary, where all ranks agree.

Listening begins before anything heavy is imported, so that a signal at any time of a run is obeyed and not lost. No
torch up here.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stylegen.config import STOP_FILE
from stylegen.config.launcher import is_launched

OTHER_REASON = 1000  # above the numbers of signals
SECOND_INTERRUPT_SECONDS = 2.0  # launchers deliver the first Ctrl-C twice
OUT_OF_TIME = "max_train_hours"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StopRequest:
    """Remembers SIGINT, SIGTERM or SIGUSR1, sees a file STOP in the run directory and the end of the time.

    What stands in the file is the reason that is told; an empty one is just STOP. Only the first rank looks for it and
    at the clock. A second Ctrl-C leaves at once.

    hours  from now until the run is to stop, or None
    """

    def __init__(self, run_dir: Path | None = None, hours: float | None = None) -> None:
        self.reason: str | None = None
        self.file = run_dir / STOP_FILE if run_dir else None
        self._deadline = time.monotonic() + hours * 3600 if hours is not None else None
        self._since = 0.0
        self._old = {number: signal.signal(number, self._on_signal) for number in
                     (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}  # fmt: skip
        self._is_launched = is_launched()
        if self._is_launched:
            _hear_of_the_launchers_end()

    def _on_signal(self, number: int, frame: Any) -> None:
        since = time.monotonic() - self._since
        # torchrun hands a second Ctrl-C on as SIGTERM. One of a launcher that died of the first is none.
        as_interrupt = number == signal.SIGTERM and self.reason == signal.SIGINT.name and is_launched()
        if self.reason and (number == signal.SIGINT or as_interrupt) and since > SECOND_INTERRUPT_SECONDS:
            # At once: what cleans up could wait for a tracker or another rank. Checkpoints are whole or not there.
            os.write(2, b"interrupted\n")
            os._exit(130)
        if self.reason is None:
            self.reason, self._since = signal.Signals(number).name, time.monotonic()
            if number == signal.SIGINT:
                os.write(2, b"\nstopping at the next step; Ctrl-C once more leaves at once\n")

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """Within, a signal ends the process at once: where it only waits for others, and there is nothing to save."""
        handlers = {number: signal.signal(number, signal.SIG_DFL) for number in self._old}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def agreed(self, accelerator: Any) -> str | None:
        """Why to stop, or None; every rank gets an answer at the same step (a collective with several processes)."""
        if self.reason is None and accelerator.is_main_process:
            self.reason = self._asked_by_file() or self._out_of_time()
        if accelerator.num_processes == 1:
            return self.reason
        import torch

        known = signal.Signals.__members__.get(self.reason or "", OTHER_REASON if self.reason else 0)
        asked = int(accelerator.gather(torch.tensor([known], device=accelerator.device)).max())
        if not asked:
            return None
        return self.reason or (signal.Signals(asked).name if asked != OTHER_REASON else STOP_FILE)

    def restore(self) -> None:
        """Give the signals back to their handlers of before; a file that was obeyed is taken away."""
        if self._is_launched:  # one that dies now, of the same Ctrl-C, is not to kill what has done its work
            _ask_for_signal_at_its_end(0)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self.remove_file()

    def remove_file(self) -> None:
        """Take away a file that was obeyed, before the process ends in a way that restores nothing."""
        if self.file and self.reason:
            with contextlib.suppress(OSError):
                self.file.unlink(missing_ok=True)

    def _asked_by_file(self) -> str | None:
        try:
            return (
                self.file.read_text(encoding="utf-8", errors="replace").strip() or STOP_FILE
                if self.file
                else None
            )
        except OSError:
            return None

    def _out_of_time(self) -> str | None:
        return OUT_OF_TIME if self._deadline is not None and time.monotonic() >= self._deadline else None


def _hear_of_the_launchers_end() -> None:
    """Have SIGTERM when the launcher dies: a signal that kills it would leave us without a word."""
    _ask_for_signal_at_its_end(signal.SIGTERM)
    if sys.platform == "linux" and not is_launched():  # it died before we had asked
        signal.raise_signal(signal.SIGTERM)


def _ask_for_signal_at_its_end(number: int) -> None:
    """Ask the kernel for a signal when the parent process dies, or for none."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
