"""Names the rank that hangs: a thread on every rank tells the others how far it is, and where it stands when all stop.

The main thread calls `tick` before each piece of work of a step. Where ranks wait for each other all clocks stop, and
the one that made the fewest ticks is the one waited for; one whose thread is silent too is stopped or gone. Every rank
that can prints its own stack, and all end, so that the launcher or the scheduler can start again from the checkpoint.
"""

import json
import os
import platform
import sys
import threading
import time
import traceback
from datetime import timedelta
from typing import Any

from accelerate import Accelerator

LONGEST_PULSE_SECONDS = 5.0


class Watchdog:
    """Watches from the first `tick` after `arm`; at rest it never ends a job.

    seconds  without a tick until the job ends; 0 never watches, and one process has nobody to wait for
    """

    def __init__(self, accelerator: Accelerator, seconds: float):
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.seconds = seconds
        self.pulse = min(LONGEST_PULSE_SECONDS, seconds / 4)
        self._armed, self._count, self._work, self._since = False, 0, "start", time.monotonic()
        self._done = threading.Event()
        if seconds > 0 and self.world_size > 1:
            # A client of its own: the store of the process group serves one caller at a time, and may be waited in.
            self._store = _own_store()
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def arm(self) -> None:
        """Begin to watch, once the slow first step is over."""
        self._armed = True

    def tick(self, work: str) -> None:
        """Say what the main thread does next, in words for a message."""
        self._count, self._work, self._since = self._count + 1, work, time.monotonic()

    def rest(self) -> None:
        """Not watched until the next `arm`: one rank works while the others wait for it, for as long as it takes."""
        self._armed = False

    def stop(self) -> None:
        """End the thread."""
        self._armed = False
        self._done.set()

    def _watch(self) -> None:
        heard: dict[int, tuple[bytes, float]] = {}  # rank: its last message, and when that was new
        while True:
            now = time.monotonic()
            message = {"count": self._count, "work": self._work, "host": platform.node(), "alive": now}
            try:
                self._store.set(f"watchdog/{self.rank}", json.dumps(message))
                for other in range(self.world_size):
                    if self._store.check([f"watchdog/{other}"]):
                        text = self._store.get(f"watchdog/{other}")
                        if other not in heard or heard[other][0] != text:
                            heard[other] = (text, now)
            except RuntimeError:  # the store went with the rank or the launcher that held it
                heard.setdefault(self.rank, (json.dumps(message).encode(), now))
            if self._armed and now - self._since > self.seconds:
                self._end(heard, now)
            if self._done.wait(self.pulse):
                return

    def _end(self, heard: dict[int, tuple[bytes, float]], now: float) -> None:
        silent: dict[str, Any] = {"count": 0, "work": "no message of it", "host": "an unknown host"}
        rows = {
            other: json.loads(heard[other][0]) if other in heard else silent
            for other in range(self.world_size)
        }
        mute = [other for other in rows if other not in heard or now - heard[other][1] > 3 * self.pulse]
        blamed = mute or [min(rows, key=lambda other: rows[other]["count"])]
        if self.rank == min(set(rows) - set(mute), default=self.rank):
            what = "is stopped or gone" if mute else "hangs"
            for other in blamed:
                print(
                    f"error: rank {other} on {rows[other]['host']} {what}: nothing for {self.seconds:g} s, last seen "
                    f"in {rows[other]['work']}; the other ranks wait for it. The job ends; the same command goes on "
                    f"from the last checkpoint (--watchdog_seconds)",
                    file=sys.stderr,
                )
        if self.rank in blamed or mute:
            frame = sys._current_frames()[threading.main_thread().ident or 0]
            stack = "".join(traceback.format_stack(frame))
            print(f"rank {self.rank} of {self.world_size} stands in {self._work}:\n{stack}", file=sys.stderr)
        sys.stderr.flush()
        time.sleep(self.pulse * 2)  # the others find the same, and say it
        os._exit(1)


def _own_store() -> Any:
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=30))
