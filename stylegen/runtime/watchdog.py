"""Names the rank that hangs: every rank tells how far it is, and where it stands when one has waited for too long.

The main thread calls `tick` before each piece of work of a step. Where ranks wait for each other all clocks stop, and
the ones that made the fewest ticks are those waited for; one that does not even tell is stopped or gone. Those print
their stack, and all end, so that the launcher or the scheduler can start again from the checkpoint.

One thread tells, by the store that the processes met at; another one looks at the clock and never waits for the store,
which may be what is gone.
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
ALARM = "watchdog/alarm"
MOST_STACKS = 8


class Watchdog:
    """Watches between `arm` and `rest`; at rest it never ends a job.

    seconds  without a tick until the job ends; 0 never watches, and one process has nobody to wait for
    """

    def __init__(self, accelerator: Accelerator, seconds: float):
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.seconds = seconds
        self.pulse = min(LONGEST_PULSE_SECONDS, seconds / 4)
        self._armed, self._count, self._work, self._since = False, 0, "the start", time.monotonic()
        self._done, self._alarm = threading.Event(), False
        watched = seconds > 0 and self.world_size > 1
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._tell, self._watch) if watched
        ]
        for thread in self._threads:
            thread.start()

    def arm(self) -> None:
        """Watch from now on."""
        self._since = time.monotonic()
        self._armed = True

    def tick(self, work: str) -> None:
        """Say what the main thread does next, in words for a message."""
        self._count, self._work, self._since = self._count + 1, work, time.monotonic()

    def rest(self) -> None:
        """Not watched until the next `arm`: one rank works while the others wait for it, for as long as it takes."""
        self._armed = False

    def stop(self) -> None:
        """End the threads, which must not be in the store's library when Python ends."""
        self._armed = False
        self._done.set()
        for thread in self._threads:
            thread.join(timeout=LONGEST_PULSE_SECONDS)

    def _tell(self) -> None:
        try:
            store = _own_store()
            beat = 0
            while True:
                beat += 1
                message = {"beat": beat, "count": self._count, "work": self._work, "host": platform.node()}
                store.set(f"watchdog/{self.rank}", json.dumps(message))
                self._alarm |= store.check([ALARM])
                if self._done.wait(self.pulse):
                    return
        except (
            RuntimeError
        ):  # the store went with the rank or the launcher that held it, and that is noticed elsewhere
            return

    def _watch(self) -> None:
        while not self._done.wait(self.pulse):
            if self._armed and (self._alarm or time.monotonic() - self._since > self.seconds):
                self._end()

    def _end(self) -> None:
        answers: list[dict[int, Any]] = []
        asking = threading.Thread(target=self._ask, args=(answers,), daemon=True)
        asking.start()
        asking.join(timeout=4 * self.pulse + 5)
        if len(answers) < 2:
            print(
                f"error: rank {self.rank} on {platform.node()} got no further for {self.seconds:g} s in {self._work}, "
                f"and what keeps the ranks together at {_address()} does not answer: that machine or its first process "
                f"is stopped or gone. The job ends; the same command goes on from the last checkpoint",
                file=sys.stderr,
            )
        else:
            self._report(*answers)
        sys.stderr.flush()
        time.sleep(2 * self.pulse)  # the others find the same, and say it
        os._exit(1)

    def _ask(self, answers: list[dict[int, Any]]) -> None:
        """Read what every rank told last, twice with time for a few beats between."""
        store = _own_store()
        store.set(ALARM, "1")
        for wait in (3 * self.pulse, 0):
            keys = {other: f"watchdog/{other}" for other in range(self.world_size)}
            answers.append(
                {other: json.loads(store.get(key)) for other, key in keys.items() if store.check([key])}
            )
            time.sleep(wait)

    def _report(self, before: dict[int, Any], after: dict[int, Any]) -> None:
        ranks = range(self.world_size)
        mute = [
            rank
            for rank in ranks
            if rank not in after or after[rank]["beat"] == before.get(rank, {}).get("beat")
        ]
        fewest = min(row["count"] for row in after.values())
        blamed = mute or [rank for rank in ranks if after[rank]["count"] == fewest]
        speaker = min(rank for rank in ranks if rank not in mute)
        named = blamed if self.rank == speaker else [self.rank] if self.rank in blamed else []
        what = "is stopped or gone" if mute else "hangs"
        for rank in named[:MOST_STACKS]:
            row = after.get(rank, {"host": "an unknown host", "work": "nothing that it told"})
            print(
                f"error: rank {rank} on {row['host']} {what}: nothing for {self.seconds:g} s, last seen in "
                f"{row['work']}; the other ranks wait for it. The job ends; the same command goes on "
                f"from the last checkpoint (--watchdog_seconds)",
                file=sys.stderr,
            )
        if self.rank in (blamed[:MOST_STACKS] if not mute else [speaker]):
            frame = sys._current_frames()[threading.main_thread().ident or 0]
            stack = "".join(traceback.format_stack(frame))
            print(f"rank {self.rank} of {self.world_size} stands in {self._work}:\n{stack}", file=sys.stderr)


def _address() -> str:
    return f"{os.environ['MASTER_ADDR']} port {os.environ['MASTER_PORT']}"


def _own_store() -> Any:
    """A client for one thread: the one of the process group serves one caller at a time, and may be waited in."""
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=30))
