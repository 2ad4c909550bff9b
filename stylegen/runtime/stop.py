"""When to stop: signals and a file, until the next step boundary, where all ranks agree."""

import signal
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from stylegen.config import STOP_FILE

OTHER_REASON = 1000  # above the numbers of signals
SECOND_INTERRUPT_SECONDS = 2.0  # launchers deliver the first Ctrl-C twice


class StopRequest:
    """Remembers SIGINT, SIGTERM or SIGUSR1, and sees a file STOP in the run directory; a second Ctrl-C leaves at once.

    What stands in the file is the reason that is told; an empty one is just STOP. Only the first rank looks for it.
    """

    def __init__(self, run_dir: Path | None = None) -> None:
        self.reason: str | None = None
        self.file = run_dir / STOP_FILE if run_dir else None
        self._since = 0.0
        self._old = {number: signal.signal(number, self._on_signal) for number in
                     (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}  # fmt: skip

    def _on_signal(self, number: int, frame: Any) -> None:
        if (
            self.reason
            and number == signal.SIGINT
            and time.monotonic() - self._since > SECOND_INTERRUPT_SECONDS
        ):
            raise KeyboardInterrupt
        if self.reason is None:
            self.reason, self._since = signal.Signals(number).name, time.monotonic()

    def agreed(self, accelerator: Accelerator) -> str | None:
        """Why to stop, or None; every rank gets an answer at the same step (a collective with several processes)."""
        if self.reason is None and accelerator.is_main_process:
            self.reason = self._asked_by_file()
        if accelerator.num_processes == 1:
            return self.reason
        known = signal.Signals.__members__.get(self.reason or "", OTHER_REASON if self.reason else 0)
        asked = int(accelerator.gather(torch.tensor([known], device=accelerator.device)).max())
        if not asked:
            return None
        return self.reason or (signal.Signals(asked).name if asked != OTHER_REASON else STOP_FILE)

    def restore(self) -> None:
        """Give the signals back to their handlers of before; a file that was obeyed is taken away."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self.file and self.reason:
            self.file.unlink(missing_ok=True)

    def _asked_by_file(self) -> str | None:
        try:
            return self.file.read_text(encoding="utf-8").strip() or STOP_FILE if self.file else None
        except OSError:
            return None
