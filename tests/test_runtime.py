"""The process: which precision and device, what stops it, and that its random generators come back exactly."""

import random
import re
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from stylegen.config import UsageError
from stylegen.runtime import (
    Watchdog,
    build_accelerator,
    environment,
    max_memory_bytes,
    pick_device,
    process,
    random_state,
    resolve_precision,
    restore_random_state,
    seed_everything,
)


@pytest.fixture
def launcher(monkeypatch):
    """`launcher(value)` sets the precision that `accelerate launch` hands on; None is no launcher."""

    def hand_on(precision: str | None) -> None:
        if precision is None:
            monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
        else:
            monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)

    return hand_on


# --- precision


@pytest.mark.parametrize("multiplies", [True, False])
@pytest.mark.parametrize("asked", ["no", "bf16", "fp16"])
def test_an_asked_precision_is_taken_whatever_the_hardware_does(asked, multiplies, launcher, monkeypatch):
    monkeypatch.setattr(process, "_multiplies_bf16", lambda: multiplies)
    launcher(None)
    assert resolve_precision(asked) == asked


@pytest.mark.parametrize(
    ("from_launcher", "multiplies", "expected"),
    [
        (None, True, "bf16"),
        (None, False, "no"),
        ("bf16", False, "bf16"),
        ("fp16", True, "fp16"),
        ("no", True, "bf16"),  # what `accelerate launch` says where nobody asked it
    ],
)
def test_auto_takes_the_launchers_precision_then_what_the_hardware_multiplies(
    from_launcher, multiplies, expected, launcher, monkeypatch
):
    monkeypatch.setattr(process, "_multiplies_bf16", lambda: multiplies)
    launcher(from_launcher)
    assert resolve_precision("auto") == expected


@pytest.mark.parametrize("asked", ["no", "bf16", "fp16"])
def test_a_launcher_that_says_nothing_or_the_same_agrees(asked, launcher):
    for said in (None, "no", asked):  # "no" is what accelerate launch says when nobody asked it
        launcher(said)
        assert resolve_precision(asked) == asked


@pytest.mark.parametrize(("asked", "said"), [("no", "bf16"), ("bf16", "fp16"), ("fp16", "bf16")])
def test_a_launcher_that_disagrees_is_refused_naming_both(asked, said, launcher):
    launcher(said)
    with pytest.raises(UsageError) as error:
        resolve_precision(asked)
    assert str(error.value) == (
        f"mixed_precision is {asked}, but the launcher's configuration says {said}; "
        f"take mixed_precision out of the launcher's configuration"
    )


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_accelerator_has_the_resolved_precision(precision, launcher):
    launcher(None)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = build_accelerator(precision)
    assert accelerator.mixed_precision == precision
    assert accelerator.num_processes == 1


def test_processes_that_do_not_know_each_other_are_refused(monkeypatch, launcher):
    """Two trainings writing into one directory: what `accelerate launch` starts on a host without GPUs."""
    launcher(None)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")  # the launcher has brought them together
    message = (
        "the launcher says 2 processes, but each of them trains alone; on a machine without GPUs "
        "set ACCELERATE_USE_CPU=true, or start one process"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        build_accelerator("no")


# --- devices


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match=f"^device {name} is not available here; use --device auto$"):
        pick_device(name)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_a_gpu_if_there_is_one(cuda, mps, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto") == torch.device(expected)
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's own count to compare with")
def test_the_most_memory_held_is_what_the_system_counted():
    torch.ones(32 << 20).sum()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert max_memory_bytes(torch.device("cpu")) == pytest.approx(int(peak) * 1024, rel=0.01)


# --- random generators


def draws() -> list:
    return [
        random.random(), random.gauss(0, 1), random.sample(range(100), 5), np.random.rand(3).tolist(),
        np.random.normal(), np.random.permutation(9).tolist(), torch.rand(3).tolist(), torch.randn(3).tolist(),
        torch.randperm(9).tolist(),
    ]  # fmt: skip


@pytest.mark.parametrize("through_a_file", [False, True], ids=["in memory", "through a file"])
def test_random_generators_come_back_exactly(through_a_file, tmp_path):
    seed_everything(3)
    draws()  # leaves the second Gaussian of a pair waiting in the generators of Python and numpy
    state = random_state()
    if through_a_file:
        torch.save(state, tmp_path / "random.pt")
    expected = [draws(), draws()]
    seed_everything(4)
    if through_a_file:
        state = torch.load(tmp_path / "random.pt", weights_only=True)
    restore_random_state(state)
    assert [draws(), draws()] == expected


def test_looking_at_the_state_draws_nothing():
    seed_everything(3)
    expected = draws()
    seed_everything(3)
    random_state()
    assert draws() == expected


def test_a_seed_seeds_every_generator():
    seed_everything(3)
    first = draws()
    seed_everything(3)
    assert draws() == first
    seed_everything(4)
    assert all(one != other for one, other in zip(draws(), first, strict=True))


# --- who hangs


def told(*rows: tuple[int, int]) -> dict[int, dict]:
    """What ranks 0, 1, ... told: (beat, count) each."""
    return {
        rank: {"beat": beat, "count": count, "work": f"pass {count}", "host": "n"}
        for rank, (beat, count) in enumerate(rows)
    }


@pytest.mark.parametrize(
    ("rank", "before", "after", "named", "has_stack"),
    [
        (0, told((1, 7), (1, 5)), told((4, 7), (4, 5)), [1], False),  # the one with fewer ticks is waited for
        (1, told((1, 7), (1, 5)), told((4, 7), (4, 5)), [1], True),  # and says so itself, if it comes first
        (0, told((1, 7), (1, 7)), told((4, 7), (1, 7)), [1], True),  # tells no more: stopped
        (
            1,
            told((1, 5), (1, 5)),
            told((4, 5), (4, 5)),
            [1],
            True,
        ),  # nobody can say who: each one shows where it is
        (0, told((1, 5), (1, 5)), told((4, 5), (4, 5)), [0, 1], True),
    ],
)
def test_the_watchdog_names_who_is_waited_for(rank, before, after, named, has_stack, capsys):
    watchdog = Watchdog(types.SimpleNamespace(process_index=rank, num_processes=2), seconds=0)
    watchdog._report(before, after)
    said = capsys.readouterr().err
    assert re.findall(r"error: rank (\d) on n (?:hangs|is stopped or gone)", said) == [
        str(number) for number in named
    ]
    assert ("test_the_watchdog_names_who_is_waited_for" in said) == has_stack


def test_the_watchdog_counts_from_when_it_is_armed():
    watchdog = Watchdog(types.SimpleNamespace(process_index=0, num_processes=2), seconds=0)
    watchdog._since -= 1000  # a first step that compiled
    before = time.monotonic()
    watchdog.arm()
    assert watchdog._since >= before
    watchdog.stop()


# --- memory


@pytest.mark.parametrize(("limit", "left"), [("5000", 3000), ("max", None), (None, None)])
def test_free_memory_is_what_a_control_group_leaves(tmp_path, monkeypatch, limit, left):
    """A scheduler's limit counts, which the memory of the machine does not show."""
    group = tmp_path / "cgroup/job_7/step_0"
    group.mkdir(parents=True)
    if limit:  # of the job, around the step
        (group.parent / "memory.max").write_text(limit + "\n")
        (group.parent / "memory.current").write_text("2000\n")
    own = tmp_path / "self"
    own.write_text("0::/job_7/step_0\n")
    places = {"/proc/self/cgroup": own, "/sys/fs/cgroup": tmp_path / "cgroup"}
    monkeypatch.setattr(environment, "Path", lambda text: places[text])
    assert list(environment._cgroup_memory()) == ([left] if left else [])
    free = environment.free_memory_bytes()
    assert free == left if left else free > 1 << 20
