"""When a run stops: signals, a file, the time; and that a launcher's end is heard of."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

from stylegen.stop import OTHER_REASON, StopRequest


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved: `clock.append(seconds)`."""
    times = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: times[-1])
    return times


@pytest.fixture
def stop(clock, monkeypatch):
    monkeypatch.setattr(os, "_exit", sys.exit)
    request = StopRequest()
    yield request
    request.restore()


def send(number: int) -> None:
    os.kill(os.getpid(), number)


class Processes:
    """What `agreed` asks an accelerator for; `other` is what one of the other processes says."""

    device = torch.device("cpu")
    is_main_process = True

    def __init__(self, num_processes: int = 1, other: int = 0):
        self.num_processes, self.other = num_processes, other

    def gather(self, asked: torch.Tensor) -> torch.Tensor:
        return torch.cat([asked, torch.tensor([self.other])])


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=lambda made: made.name
)
def test_a_signal_is_remembered_until_the_step_boundary(stop, number):
    assert (stop.reason, stop.agreed(Processes())) == (None, None)
    send(number)
    assert stop.reason == number.name
    assert stop.agreed(Processes()) == number.name
    assert stop.agreed(Processes()) == number.name  # asking does not forget it


def test_all_ranks_stop_when_one_was_asked_to(stop):
    assert stop.agreed(Processes(4)) is None
    assert stop.agreed(Processes(4, other=signal.SIGUSR1)) == "SIGUSR1"
    assert stop.agreed(Processes(4, other=OTHER_REASON)) == "STOP"
    send(signal.SIGTERM)
    assert stop.agreed(Processes(4)) == stop.agreed(Processes(4, other=signal.SIGINT)) == "SIGTERM"


def test_a_file_asks_to_stop_and_says_why_and_goes_when_obeyed(tmp_path):
    for content, reason in (("", "STOP"), ("requeue\n", "requeue")):
        stop = StopRequest(tmp_path)
        assert stop.agreed(Processes()) is None
        (tmp_path / "STOP").write_text(content)
        assert stop.agreed(Processes()) == reason
        stop.restore()
        assert not (tmp_path / "STOP").exists()


def test_the_first_signal_is_the_reason(stop):
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        send(number)
    assert stop.reason == "SIGUSR1"


@pytest.mark.parametrize("later", [0.0, 0.1, 2.0])
def test_a_second_interrupt_at_once_is_the_same_one(stop, clock, later):
    """Launchers deliver one Ctrl-C twice: from the terminal and from themselves."""
    send(signal.SIGINT)
    clock.append(100.0 + later)
    send(signal.SIGINT)
    assert stop.reason == "SIGINT"


def test_a_second_interrupt_after_two_seconds_leaves_at_once(stop, clock):
    send(signal.SIGINT)
    clock.append(102.1)
    with pytest.raises(SystemExit, match="130"):
        send(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda made: made.name)
def test_a_scheduler_may_repeat_itself(stop, clock, number):
    for moment in (100.0, 110.0, 200.0):
        clock.append(moment)
        send(number)
    assert stop.reason == number.name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda made: made.name)
def test_an_interrupt_after_another_signal_leaves_at_once_if_it_comes_later(stop, clock, number):
    send(number)
    send(signal.SIGINT)  # torchrun forwards both at once
    clock.append(103.0)
    with pytest.raises(SystemExit, match="130"):
        send(signal.SIGINT)


def test_a_second_interrupt_is_handed_on_by_torchrun_as_another_signal(stop, clock, monkeypatch):
    """One that comes from a launcher's death, of the first Ctrl-C, is no second one."""
    send(signal.SIGINT)
    clock.append(103.0)
    send(signal.SIGTERM)
    assert stop.reason == "SIGINT"
    monkeypatch.setattr("stylegen.stop.is_launched", lambda: True)
    with pytest.raises(SystemExit, match="130"):
        send(signal.SIGTERM)


def test_the_handlers_of_before_are_given_back():
    received = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda got, _: received.append(got)) for number in numbers}
    try:
        request = StopRequest()
        send(signal.SIGTERM)
        assert (request.reason, received) == ("SIGTERM", [])
        request.restore()
        for number in numbers:
            send(number)
        assert received == list(numbers)
        assert request.reason == "SIGTERM"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_training_gives_the_handlers_back(train):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    train("run", "--max_train_steps", "1", "--sample_steps", "end")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_the_end_of_the_time_that_was_given_is_a_reason(clock):
    stop = StopRequest(hours=0.5)
    clock.append(100.0 + 1799)
    assert stop.agreed(Processes()) is None
    clock.append(100.0 + 1800)
    assert stop.agreed(Processes()) == stop.agreed(Processes(4)) == "max_train_hours"
    stop.restore()


LAUNCHER = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[2]]).wait()  # torchrun
"""
TRAINING = """
import time
from stylegen.stop import StopRequest
stop = StopRequest()
print("listens", flush=True)
until = time.monotonic() + 20
while stop.reason is None and time.monotonic() < until:
    time.sleep(0.05)
print(stop.reason, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a request to the Linux kernel")
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL], ids=lambda made: made.name
)
def test_a_training_hears_when_its_launcher_is_killed(number):
    """As `accelerate launch` with one process dies of a signal, without a word to the training."""
    command = [sys.executable, "-c", LAUNCHER, "accelerate launch", TRAINING]
    environment = {**os.environ, "ACCELERATE_MIXED_PRECISION": "no"}
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    assert launcher.stdout and launcher.stdout.readline() == "listens\n"
    launcher.send_signal(number)
    assert launcher.wait() == -number
    assert launcher.stdout.readline() == "SIGTERM\n"


def test_a_training_without_a_launcher_outlives_the_shell_that_started_it():
    """`nohup python run_clm.py ... &` goes on when its shell ends."""
    command = [sys.executable, "-c", LAUNCHER, "bash", TRAINING]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert launcher.stdout and launcher.stdout.readline() == "listens\n"
    (child,) = subprocess.check_output(["pgrep", "-P", str(launcher.pid)], text=True).split()
    launcher.kill()
    launcher.wait()
    time.sleep(0.3)
    os.kill(int(child), signal.SIGUSR1)  # it is still there, and nothing had stopped it
    assert launcher.stdout.readline() == "SIGUSR1\n"
