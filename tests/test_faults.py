"""The table of faults, a row a test: what goes wrong, what the run does, and that it ends as if nothing had happened.

"Bit-equal" is: final weights, and every logged number that is not a time, against the run that was never disturbed.
Steps that are done twice, after a kill, are to be logged twice with the same numbers.
"""

import contextlib
import ctypes
import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ACCELERATE, ROOT, TINY, make_text
from lives import (
    EVALUATION,
    FORWARD,
    MANIFEST,
    RENAME,
    REPLACE,
    ROTATION,
    SAVE_BEGINS,
    SET_UP,
    SET_UP_ENDS,
    SETTLE,
    STEP,
    SYNC,
    UNLINK,
    Fault,
    Life,
    as_variable,
)
from safetensors.torch import load_file
from test_tracking import history, offline_runs

from stylegen.checkpoint import find_damage, list_checkpoints, read_manifest, step_of
from stylegen.stop import SECOND_INTERRUPT_SECONDS
from stylegen.tracking import AXIS

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

# Twelve steps of two passes each, four epochs with a short last step; every rhythm meets every other one.
RHYTHM = (
    "--max_train_steps 12 --logging_steps 1 --eval_steps 4 --checkpointing_steps 3 --sample_steps end "
    "--sample_max_new_tokens 4 --lr_scheduler_type cosine --max_train_samples 21 --total_batch_size 8"
).split()


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """The text of all lives, their token cache, and the runs that nothing happens to."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "text.txt").write_text(make_text(300), encoding="utf-8")
    return folder


def flags_of(store: Path, folder: Path, flags: tuple[str, ...], ranks: int = 1) -> list[str]:
    """The arguments of a life; what `flags` say goes before."""
    size = ("--per_device_train_batch_size", str(4 // ranks))
    data = ("--train_file", str(store / "text.txt"), "--cache_dir", str(store / "cache"))
    return [*data, *TINY, "--mixed_precision", "no", *RHYTHM, *size, "--output_dir", str(folder), *flags]


@pytest.fixture
def live(store, tmp_path):
    """`live("name", "--flag", ..., faults=[...], ranks=2)` starts a training in `tmp_path / "name"`."""
    lives = []

    def start(name: str, *flags: str, ranks: int = 1, **options) -> Life:
        place = tmp_path / f"{name}-printed"
        place.mkdir(exist_ok=True)
        life = Life(flags_of(store, tmp_path / name, flags, ranks), place, ranks=ranks, **options)
        lives.append(life)
        return life

    yield start
    for life in lives:
        life.kill()


@pytest.fixture
def finish(live):
    """The same, to its end; returns the life after a look at its exit code."""

    def run(name: str, *flags: str, code: int = 0, **options) -> Life:
        life = live(name, *flags, **options)
        codes = life.wait()
        assert set(codes) == {code}, (codes, life.log)
        return life

    return run


@pytest.fixture
def whole(store):
    """`whole("--flag", ..., ranks=2)`: the run directory of a training that nothing happens to, made once."""

    def run(*flags: str, ranks: int = 1) -> Path:
        folder = store / "-".join(["whole", str(ranks), *flags]).replace("/", "_")
        if not folder.exists():
            place = folder.with_name(folder.name + "-printed")
            place.mkdir()
            life = Life(flags_of(store, folder, flags, ranks), place, ranks=ranks)
            assert set(life.wait()) == {0}, life.log
        return folder

    return run


def rows(folder: Path) -> list[dict]:
    """What a run has logged, without the times."""
    logged = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # of a kill
            continue
        logged.append({key: value for key, value in row.items() if not key.startswith("perf/")})
    return logged


def assert_bit_equal(folder: Path, whole: Path, once: bool) -> None:
    """`once`: no row was logged twice."""
    ours, theirs = rows(folder), rows(whole)
    if once:
        assert ours == theirs
    else:
        assert [row for row in ours if row not in theirs] == []
        assert [row for row in theirs if row not in ours] == []
    one, two = (load_file(path / "model.safetensors") for path in (folder, whole))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def leftovers(folder: Path) -> list[str]:
    """What is only there while something is written or deleted."""
    return sorted(path.name for path in folder.glob("*") if path.suffix in (".tmp", ".old"))


# --- 8: requests to stop

REASONS = {
    "SIGTERM": "SIGTERM",
    "SIGUSR1": "SIGUSR1",
    "SIGINT": "SIGINT",
    "STOP": "STOP",
    "hours": "max_train_hours",
}
# (where it is asked to stop, at which call), one after the other in the same run
CHAIN = [
    ("before the first step", SET_UP, 1),
    ("between two passes of step 2", FORWARD, 4),
    ("in the evaluation of step 4", EVALUATION, 1),
    ("in the save of step 6", SETTLE, 1),
    ("in step 12", STEP, 0),
    ("in the evaluation of step 12", EVALUATION, 1),
]


def stop_at_every_place(
    finish, folder: Path, what: str, flags: tuple = (), ranks: int = 1, rank=None
) -> list:
    """Stop a run at each place of CHAIN and go on; returns the steps it stopped at."""
    steps, step = [], 0
    for where, place, call in CHAIN:
        if what == "STOP" and place == SET_UP:  # a file of before the start is of another run
            place = SET_UP_ENDS
        fault = Fault(place, what, call or 12 - step, "before" if call else "after", rank=rank)
        life = finish(folder.name, "--max_train_hours", "1", *flags, faults=[fault], ranks=ranks)
        assert (
            f"stopped by {REASONS[what]}; the same command goes on from here" in life.printed.read_text()
        ), where
        newest = list_checkpoints(folder)[-1]
        state = read_manifest(newest)["state"]
        step = step_of(newest)
        assert (state["step"], state["stopped_by"]) == (step, REASONS[what]), where
        assert find_damage(newest) is None, where
        assert rows(folder)[-1:] == [] or rows(folder)[-1]["train/global_step"] == step, where
        assert not (folder / "model.safetensors").exists() and not (folder / "STOP").exists(), where
        assert leftovers(folder) == [], where
        steps.append(step)
    finish(folder.name, *flags, ranks=ranks)
    return steps


@pytest.mark.parametrize("what", REASONS)
def test_row_08_a_run_is_asked_to_stop_at_every_place_and_ends_bit_equal(finish, whole, tmp_path, what):
    steps = stop_at_every_place(finish, tmp_path / "run", what)
    assert steps[:3] == [0, 2, 4] and steps[3] in range(6, 9) and steps[4:] == [12, 12]
    assert_bit_equal(tmp_path / "run", whole(), once=True)


@pytest.mark.parametrize(
    ("what", "rank"),
    [
        ("SIGTERM", 1),
        *(
            pytest.param(what, rank, marks=pytest.mark.slow)
            for what in REASONS
            for rank in (0, 1, None)
            if (what, rank) != ("SIGTERM", 1) and (what, rank) not in (("hours", 1), ("STOP", None))
        ),
    ],
)
def test_row_08_two_processes_stop_at_the_same_step_whichever_is_asked(finish, whole, tmp_path, what, rank):
    steps = stop_at_every_place(finish, tmp_path / "run", what, ranks=2, rank=rank)
    assert steps[:1] == [0] and steps[-1] == 12 and steps == sorted(steps)
    assert_bit_equal(tmp_path / "run", whole(ranks=2), once=True)


def test_row_08_wandb_hears_that_the_run_will_go_on(finish, tmp_path):
    flags = ("--report_to", "wandb", "--project", "verse")
    (tmp_path / "wandb").mkdir()
    variables = {"WANDB_DIR": str(tmp_path)}
    finish("run", *flags, faults=[Fault(STEP, "SIGUSR1", 5)], variables=variables)
    finish("run", *flags, variables=variables)
    first, second = offline_runs(tmp_path / "wandb")
    assert [any(record.HasField("preempting") for record in records) for records in (first, second)] == [
        True,
        False,
    ]
    ids = {record.run.run_id for records in (first, second) for record in records if record.HasField("run")}
    assert ids == {(tmp_path / "run" / "wandb_run_id").read_text().strip()}
    assert [row[AXIS] for row in history(first) if "train/loss" in row] == [1, 2, 3, 4, 5]
    assert [row[AXIS] for row in history(second) if "train/loss" in row] == [6, 7, 8, 9, 10, 11, 12]


def test_row_08_a_second_interrupt_leaves_at_once(live, finish, whole, tmp_path):
    """As of a user who will not wait for a disk that hangs."""
    life = live("run", faults=[Fault(SETTLE, f"wait {tmp_path}/never", match="checkpoint-000006")])
    life.wait_for("step 6/12")
    (process,) = life.processes
    os.kill(process.pid, signal.SIGINT)
    time.sleep(SECOND_INTERRUPT_SECONDS / 2)
    os.kill(process.pid, signal.SIGINT)  # the same one, as launchers deliver it
    time.sleep(SECOND_INTERRUPT_SECONDS / 2 + 0.1)
    assert life.wait(0) == [None]
    started = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert life.wait(5) == [130] and time.monotonic() - started < 1
    assert [(path.name, find_damage(path)) for path in list_checkpoints(tmp_path / "run")] == [
        ("checkpoint-000003", None)
    ]
    finish("run")
    assert_bit_equal(tmp_path / "run", whole(), once=False)


class Launched:
    """A training under the real launcher, in a session of its own as on a terminal."""

    def __init__(self, arguments: list[str], place: Path, processes: int, faults: list[Fault]):
        self.printed, self.errors = place / "launcher-printed", place / "launcher-errors"
        config = "ddp" if processes > 1 else "cpu"
        with open(self.printed, "w") as printed, open(self.errors, "w") as errors:
            self.launcher = subprocess.Popen(
                [ACCELERATE, "launch", "--config_file", f"configs/accelerate/{config}.yaml", "--num_processes",
                 str(processes), str(ROOT / "tests/lives.py"), *arguments],
                cwd=ROOT, env={**os.environ, "ACCELERATE_USE_CPU": "true", **as_variable(*faults)},
                stdout=printed, stderr=errors, start_new_session=True,
            )  # fmt: skip
        self.ranks: list[psutil.Process] = []
        self.processes = processes

    def wait_for(self, *paths: Path, seconds: float = 120) -> None:
        """Until these files are there; only then the processes are looked up."""
        until = time.monotonic() + seconds
        while not all(path.exists() for path in paths):
            assert time.monotonic() < until and self.launcher.poll() is None, self.errors.read_text()
            time.sleep(0.02)
        self.ranks = sorted(
            psutil.Process(self.launcher.pid).children(), key=lambda child: child.environ().get("RANK", "0")
        )
        assert len(self.ranks) == self.processes

    def send(self, number: int, to: str) -> None:
        if to == "group":
            os.killpg(self.launcher.pid, number)
        else:
            os.kill(self.launcher.pid if to == "launcher" else self.ranks[int(to.split()[1])].pid, number)

    def wait(self, seconds: float) -> list[int | None]:
        """Until everything has ended; exit codes of the ranks whose launcher did not live to hear them."""
        self.launcher.wait(seconds)
        codes: list[int | None] = []
        for rank in self.ranks:
            try:
                codes.append(psutil.Process(rank.pid).wait(seconds) if rank.is_running() else None)
            except psutil.NoSuchProcess:
                codes.append(None)
        return codes

    def kill(self) -> None:
        for process in (*self.ranks, self.launcher):
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()


@pytest.fixture
def launched(store, tmp_path):
    """`launched("name", processes, *faults)` starts a training under `accelerate launch`; orphans come to us."""
    made = []
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def start(name: str, processes: int, *faults: Fault, flags: tuple = ()) -> Launched:
        arguments = flags_of(store, tmp_path / name, flags, processes)
        made.append(Launched(arguments, tmp_path, processes, list(faults)))
        return made[-1]

    yield start
    for launch in made:
        launch.kill()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to", "processes"),
    [
        ("SIGTERM", "launcher", 1),
        ("SIGUSR1", "launcher", 1),
        ("SIGINT", "group", 1),
        ("SIGTERM", "launcher", 2),
        ("SIGUSR1", "launcher", 2),
        ("SIGINT", "launcher", 2),
        ("SIGTERM", "group", 2),
        ("SIGUSR1", "group", 2),
        ("SIGINT", "group", 2),
        ("SIGUSR1", "rank 1", 2),
    ],
)
def test_row_08_under_the_launcher(launched, finish, whole, tmp_path, number, to, processes):
    folder = tmp_path / "run"
    launch = launched("run", processes, Fault(STEP, f"wait {tmp_path}/go", 5))
    launch.wait_for(*(tmp_path / f"go-{rank}" for rank in range(processes)))
    launch.send(signal.Signals[number], to)
    time.sleep(0.3)
    (tmp_path / "go").touch()
    started = time.monotonic()
    codes = launch.wait(40)
    assert time.monotonic() - started < 15
    assert set(codes) <= {0, None}, launch.errors.read_text()
    dies = to != "rank 1" and (number == "SIGUSR1" or processes == 1)  # of the signal, and cannot tell
    assert (codes == [0] * processes) == dies or to == "rank 1"
    printed = launch.printed.read_text()
    assert re.search(r"stopped by SIG\w+; the same command goes on from here", printed), (
        launch.errors.read_text()
    )
    assert [step_of(path) for path in list_checkpoints(folder)] == [3, 5]
    assert find_damage(folder / "checkpoint-000005") is None and leftovers(folder) == []
    finish("run", ranks=processes)
    assert_bit_equal(folder, whole(ranks=processes), once=True)


@pytest.mark.slow
def test_row_08_a_second_interrupt_on_a_terminal_leaves_at_once_with_all_ranks(
    launched, finish, whole, tmp_path
):
    launch = launched("run", 2, Fault(STEP, f"wait {tmp_path}/never", 5, rank=1))
    launch.wait_for(tmp_path / "never-1")
    launch.send(signal.SIGINT, "group")
    time.sleep(SECOND_INTERRUPT_SECONDS + 0.5)
    assert all(rank.is_running() for rank in launch.ranks)
    started = time.monotonic()
    launch.send(signal.SIGINT, "group")
    launch.wait(20)
    assert time.monotonic() - started < 5
    assert [step_of(path) for path in list_checkpoints(tmp_path / "run")] == [3]
    finish("run", ranks=2)
    assert_bit_equal(tmp_path / "run", whole(ranks=2), once=False)


# --- 2: killed in each phase of a save

SECOND = "checkpoint-000006"  # the save that is disturbed
PHASES = {
    "before its files": (Fault(SAVE_BEGINS, "SIGKILL", 2), 3),
    "between its files": (Fault(SETTLE, "SIGKILL", match=f"{SECOND}.tmp/model"), 3),
    "before the manifest": (Fault(MANIFEST, "SIGKILL", match=SECOND), 3),
    "behind the manifest": (Fault(SYNC, "SIGKILL", match=f"{SECOND}.tmp/manifest"), 3),
    "before it has its name": (Fault(RENAME, "SIGKILL", match=f"{SECOND}.tmp, "), 3),
    "when it has its name": (Fault(RENAME, "SIGKILL", match=f"{SECOND}.tmp, ", when="after"), 6),
    "before the rotation": (Fault(ROTATION, "SIGKILL", match=SECOND), 6),
    "when the old one has lost its name": (Fault(RENAME, "SIGKILL", match="000003.tmp$", when="after"), 6),
    "when the old one is half deleted": (
        Fault(UNLINK, "SIGKILL", match="^optimizer-.*dir_fd", when="after"),
        6,
    ),
    "before the manifest of the best model": (Fault("stylegen.train.turn:write_manifest", "SIGKILL", 2), 6),
    "between two best models": (Fault(RENAME, "SIGKILL", 2, match="best.tmp, "), 6),
    "when the best model moves up": (
        Fault(REPLACE, "SIGKILL", match="best/model.safetensors", when="after"),
        12,
    ),
}
IN_BACKGROUND = [True, pytest.param(False, marks=pytest.mark.slow)]


@pytest.mark.parametrize("in_background", IN_BACKGROUND)
@pytest.mark.parametrize("phase", PHASES)
def test_row_02_killed_in_a_save(finish, whole, tmp_path, phase, in_background):
    """The newest complete checkpoint is chosen, and what was half done goes away."""
    fault, newest = PHASES[phase]
    folder = tmp_path / "run"
    flags = ("--save_total_limit", "1", "--async_save", str(in_background).lower())
    finish("run", *flags, faults=[fault], code=-signal.SIGKILL)
    there = [step_of(path) for path in list_checkpoints(folder)]
    assert there[-1] == newest and find_damage(list_checkpoints(folder)[-1]) is None
    life = finish("run", *flags)
    if newest < 12:
        assert f"going on from {folder}/checkpoint-{newest:06d}, step {newest} of 12" in life.log
    assert [step_of(path) for path in list_checkpoints(folder)] == [12] and leftovers(folder) == []
    assert not (folder / "best").exists()
    assert_bit_equal(folder, whole(), once=False)


@pytest.mark.parametrize(("when", "there"), [("before", 3), ("after", 6)])
def test_row_02_killed_while_a_checkpoint_takes_the_place_of_its_like(finish, whole, tmp_path, when, there):
    folder = tmp_path / "run"
    flags = ("--save_total_limit", "none", "--async_save", "false")
    finish("run", *flags, faults=[Fault(STEP, "SIGKILL", 8)], code=-signal.SIGKILL)
    assert [step_of(path) for path in list_checkpoints(folder)] == [3, 6]
    fault = Fault(RENAME, "SIGKILL", match=f"{SECOND}.tmp, ", when=when)
    back = ("--resume_from_checkpoint", str(folder / "checkpoint-000003"))
    finish("run", *flags, *back, faults=[fault], code=-signal.SIGKILL)
    assert list_checkpoints(folder)[-1] == folder / f"checkpoint-{there:06d}"
    assert f"{SECOND}.old" in leftovers(folder)
    life = finish("run", *flags)
    assert f"going on from {folder}/{SECOND}, step 6 of 12" in life.log
    assert leftovers(folder) == []
    assert_bit_equal(folder, whole(), once=False)


BETWEEN_RANKS = {
    "rank 1 has not written": ([Fault(SETTLE, "SIGKILL", match=f"{SECOND}.tmp/optimizer", rank=1)], 3),
    "rank 0 has not written": ([Fault(SETTLE, "SIGKILL", match=f"{SECOND}.tmp/optimizer", rank=0)], 3),
    "both have written": ([Fault(MANIFEST, "SIGKILL", match=SECOND, rank=0)], 3),
    "rank 1 has not heard of it": ([Fault(RENAME, "SIGKILL", match=f"{SECOND}.tmp, ", when="after", rank=0)], 6),
}  # fmt: skip


@pytest.mark.parametrize("in_background", IN_BACKGROUND)
@pytest.mark.parametrize("phase", BETWEEN_RANKS)
def test_row_02_killed_between_the_ranks_of_a_save(finish, live, whole, tmp_path, phase, in_background):
    folder = tmp_path / "run"
    faults, newest = BETWEEN_RANKS[phase]
    flags = ("--async_save", str(in_background).lower(), "--save_total_limit", "1")
    life = live("run", *flags, ranks=2, faults=faults)
    codes = life.wait()
    assert codes[faults[0].rank] == -signal.SIGKILL and codes[1 - faults[0].rank] == 1, (codes, life.log)
    assert f"rank {1 - faults[0].rank} of 2 on" in life.log and "lost contact with another rank" in life.log
    assert step_of(list_checkpoints(folder)[-1]) == newest
    life = finish("run", *flags, ranks=2)
    assert f"going on from {folder}/checkpoint-{newest:06d}, step {newest} of 12" in life.log
    assert [step_of(path) for path in list_checkpoints(folder)] == [12] and leftovers(folder) == []
    assert_bit_equal(folder, whole(ranks=2), once=False)


# --- 1: killed at random moments

LONG = ("--max_train_steps", "120", "--eval_steps", "7", "--logging_steps", "2")


@pytest.mark.parametrize("in_background", IN_BACKGROUND)
def test_row_01_twenty_kills_at_random_moments(live, finish, whole, tmp_path, in_background):
    flags = (*LONG, "--async_save", str(in_background).lower())
    draw, going_on, met = random.Random(int(in_background)), set(), []
    for number in range(20):
        life = live("run", *flags)
        if number % 4:  # else within the start
            life.wait_for("step " if number == 1 else "parameters, vocabulary")
        time.sleep(draw.uniform(0, 0.4))
        (process,) = life.processes
        process.kill()
        assert life.wait() == [-signal.SIGKILL], life.log
        going_on |= set(re.findall(r"going on from \S+, step (\d+)", life.log))
        met.append(life.log.splitlines()[-1:] or ["nothing yet"])
    assert len(going_on) >= 5, met  # it did get on between them
    finish("run", *flags)
    assert leftovers(tmp_path / "run") == []
    assert_bit_equal(tmp_path / "run", whole(*LONG), once=False)
    print(
        f"went on from steps {sorted(map(int, going_on))}; {len(rows(tmp_path / 'run'))} rows for {len(rows(whole(*LONG)))}"
    )
