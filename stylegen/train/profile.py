"""Where the time of some steps goes: torch's profiler over a range of them, one trace for each rank."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from stylegen.config import first_line
from stylegen.config.checks import profile_range
from stylegen.runtime import logger

FOLDER = "profile"  # in the run directory
STEP_NAME = "optimizer step"  # of a step, in the trace
NUM_ROWS = 5
LONGEST_NAME = 60


class StepProfiler:
    """Records the optimizer steps that are asked for.

    `with profiler.step(number): ...` goes around each step, `profiler.finish()` comes when no more will: a run that
    ends within the range keeps what it has. Steps outside it cost nothing.
    """

    def __init__(self, steps: str | None, directory: Path, rank: int):
        """steps  "A:B", the first and the last one, counted from 1; None records none."""
        self.first, self.last = profile_range(steps) if steps else (0, 0)
        self.path = directory / FOLDER / f"rank-{rank}.json"
        self.profile: profile | None = None
        self.recorded: list[int] = []

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around optimizer step `number`; the trace is written at the end of the last one."""
        if not self.first <= number <= self.last:
            yield
            return
        if self.profile is None:
            self.profile = profile(activities=_activities())
            self.profile.start()
        with record_function(f"{STEP_NAME} {number}"):
            yield
        self.recorded.append(number)
        if number == self.last:
            self.finish()

    def finish(self) -> None:
        """Write the trace of what was recorded, if anything was, and log the largest costs."""
        if self.profile is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the last kernels belong to the last step
        recorder, self.profile = self.profile, None
        recorder.stop()
        if not self.recorded:  # the first one failed: there is nothing to say, and an error on its way
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            recorder.export_chrome_trace(str(self.path))
        except (
            OSError,
            RuntimeError,
        ) as error:  # a full disk, in torch's words: no reason to stop a training
            logger.warning(f"the profile was not written to {self.path}: {first_line(error)}")
            return
        span = f"{self.recorded[0]} to {self.recorded[-1]}"
        logger.info(
            f"steps {span} are in {self.path} (open it at https://ui.perfetto.dev); the largest costs:"
        )
        for line in largest_costs(recorder):
            logger.info(line)


def largest_costs(recorder: profile) -> list[str]:
    """A table of the operations with the most time of their own: on the GPU where there is one, else on the CPU."""
    # Each kernel also counts with the operation that launched it, whose name says more.
    events = [event for event in recorder.key_averages() if event.device_type == DeviceType.CPU]
    events = [event for event in events if not event.key.startswith(STEP_NAME)]
    on_device = any(event.self_device_time_total for event in events)
    kind = "self_device_time_total" if on_device else "self_cpu_time_total"
    total = sum(getattr(event, kind) for event in events) or 1
    largest = sorted(events, key=lambda event: getattr(event, kind), reverse=True)[:NUM_ROWS]
    return [
        f"{getattr(event, kind) / total:7.1%} {getattr(event, kind) / 1e3:11,.1f} ms {event.count:8,} calls  "
        f"{event.key[:LONGEST_NAME]}"
        for event in largest
    ]


def _activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
