"""The table of faults, a row a test: what goes wrong, what the run does, and that it ends as if nothing had happened.

Rows 10 to 12 are in test_health.py and 14 to 17 in test_security.py, and appear here too; docs/reliability.md has what
each was seen to do.

"Bit-equal" is: final weights, and every logged number that is not a time, against the run that was never disturbed.
Steps that are done twice, after a kill, are to be logged twice with the same numbers.
"""

import contextlib
import ctypes
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ACCELERATE, ROOT, TINY, make_text
from lives import (
    BUILD,
    DATA,
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
    START,
    STEP,
    SYNC,
    TRIAL,
    UNLINK,
    Fault,
    Life,
    as_variable,
    note_blocks,
    note_resources,
    slow_down,
)
from safetensors.torch import load_file
from test_health import *  # noqa: F403  rows 10 to 12
from test_security import *  # noqa: F403  rows 14 to 17
from wandb_files import history, offline_runs, read_records

from stylegen.checkpoint import find_damage, list_checkpoints, read_manifest, step_of
from stylegen.stop import SECOND_INTERRUPT_SECONDS
from stylegen.tracking import AXIS, read_metrics

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
        place = tmp_path / f"{name.replace('/', '-')}-printed"
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

    def run(*flags: str, ranks: int = 1, config: str = "ddp") -> Path:
        folder = store / "-".join(["whole", str(ranks), config, *flags]).replace("/", "_")
        if not folder.exists():
            place = folder.with_name(folder.name + "-printed")
            place.mkdir()
            life = Life(flags_of(store, folder, flags, ranks), place, ranks=ranks, config=config)
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


def stop_at_every_place(finish, folder: Path, what: str, rank: int | None = None, **options) -> list[int]:
    """Stop a run at each place of CHAIN and go on; returns the steps it stopped at."""
    steps, step = [], 0
    for where, place, call in CHAIN:
        if what == "STOP" and place == SET_UP:  # a file of before the start is of another run
            place = SET_UP_ENDS
        match = (
            r"checkpoint-\d+\.tmp/optimizer" if place == SETTLE else ""
        )  # not of the trial, nor of the best model
        fault = Fault(place, what, call or 12 - step, "before" if call else "after", match, rank)
        life = finish(folder.name, "--max_train_hours", "1", faults=[fault], **options)
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
    finish(folder.name, **options)
    return steps


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=[pytest.mark.slow] * (what == "SIGINT")) for what in REASONS]
)
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


CUT = [
    pytest.param("fsdp", marks=pytest.mark.slow),
    pytest.param("zero2", marks=pytest.mark.deepspeed),
    pytest.param("zero3", marks=pytest.mark.deepspeed),
]


@pytest.mark.parametrize("config", CUT)
def test_row_08_two_processes_that_share_the_weights_stop_and_go_on(finish, whole, tmp_path, config):
    steps = stop_at_every_place(finish, tmp_path / "run", "SIGUSR1", rank=1, ranks=2, config=config)
    assert steps[:1] == [0] and steps[-1] == 12 and steps == sorted(steps)
    assert_bit_equal(tmp_path / "run", whole(ranks=2, config=config), once=True)


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


def test_row_01_wandb_has_steps_that_are_done_again_with_equal_values(finish, tmp_path):
    (tmp_path / "wandb").mkdir()
    flags, variables = ("--report_to", "wandb"), {"WANDB_DIR": str(tmp_path)}
    finish("run", *flags, faults=[Fault(STEP, "SIGKILL", 6)], variables=variables, code=-signal.SIGKILL)
    finish("run", *flags, variables=variables)
    killed, whole = map(read_records, sorted((tmp_path / "wandb").glob("offline-run-*")))
    ids = {record.run.run_id for records in (killed, whole) for record in records if record.HasField("run")}
    assert len(ids) == 1
    sent = [
        {key: value for key, value in row.items() if not key.startswith("_")}
        for records in (killed, whole)
        for row in history(records)
        if "samples" not in row and "figures/loss" not in row
    ]
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row for row in rows if row not in sent] == []  # also what went with the file of the first life
    for step in range(1, 13):
        again = [row for row in sent if row[AXIS] == step and "train/loss" in row]
        values = [{key: row[key] for key in row if not key.startswith("perf/")} for row in again]
        assert values and all(each == values[0] for each in values)


def test_row_08_a_second_interrupt_leaves_at_once(live, finish, whole, tmp_path, observed):
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
    assert life.wait(5) == [130]
    observed(f"second Ctrl-C to exit {time.monotonic() - started:.2f} s")
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
def test_row_08_under_the_launcher(launched, finish, whole, tmp_path, observed, number, to, processes):
    folder = tmp_path / "run"
    launch = launched("run", processes, Fault(STEP, f"wait {tmp_path}/go", 5))
    launch.wait_for(*(tmp_path / f"go-{rank}" for rank in range(processes)))
    launch.send(signal.Signals[number], to)
    time.sleep(0.3)
    (tmp_path / "go").touch()
    started = time.monotonic()
    codes = launch.wait(40)
    observed(f"{number} to {to}, step to exit of all {time.monotonic() - started:.2f} s")
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
    flags = ("--async_save", "false")
    launch = launched("run", 2, Fault(STEP, f"wait {tmp_path}/never", 5, rank=1), flags=flags)
    launch.wait_for(tmp_path / "never-1")
    launch.send(signal.SIGINT, "group")
    time.sleep(SECOND_INTERRUPT_SECONDS + 0.5)
    assert all(rank.is_running() for rank in launch.ranks)
    launch.send(signal.SIGINT, "group")
    launch.wait(20)
    assert [step_of(path) for path in list_checkpoints(tmp_path / "run")] == [3]
    finish("run", ranks=2)
    assert_bit_equal(tmp_path / "run", whole(ranks=2), once=False)


# --- 2: killed in each phase of a save

SECOND = "checkpoint-000006"  # the save that is disturbed
LAST = "checkpoint-000012"
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
    "before the manifest of the best model": (
        Fault("stylegen.train.turn:write_manifest", "SIGKILL", 2),
        None,
    ),
    "between two best models": (Fault(RENAME, "SIGKILL", 2, match="best.tmp, "), None),
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
    newest = newest or there[-1]  # None: how far the save of step 6 is in step 8 depends on the machine
    assert there[-1] == newest and find_damage(list_checkpoints(folder)[-1]) is None
    life = finish("run", *flags)
    if newest < 12:
        assert f"going on from {folder}/checkpoint-{newest:06d}, step {newest} of 12" in life.log
    assert [step_of(path) for path in list_checkpoints(folder)] == [12] and leftovers(folder) == []
    assert not (folder / "best").exists()
    assert_bit_equal(folder, whole(), once=False)


@pytest.mark.parametrize("when", ["before", "after"])
def test_row_02_killed_while_a_checkpoint_takes_the_place_of_its_like(finish, whole, tmp_path, when):
    """A run that is stopped in its last step is saved, evaluated in its next life, and saved once more."""
    folder = tmp_path / "run"
    finish("run", faults=[Fault(STEP, "SIGTERM", 12)])
    assert read_manifest(folder / LAST)["state"]["turned"] == 11
    fault = Fault(RENAME, "SIGKILL", match=f"{LAST}.tmp, ", when=when)
    finish("run", faults=[fault], code=-signal.SIGKILL)
    newest = list_checkpoints(folder)[-1].name
    assert f"{LAST}.old" in leftovers(folder) and newest == (LAST if when == "after" else "checkpoint-000009")
    life = finish("run")
    assert f"going on from {folder}/{LAST}, step 12 of 12" in life.log or when == "after"
    assert [path.name for path in list_checkpoints(folder)][-1] == LAST and leftovers(folder) == []
    assert_bit_equal(folder, whole(), once=False)


BETWEEN_RANKS = {
    "rank 1 has not written": ([Fault(SETTLE, "SIGKILL", match=f"{SECOND}.tmp/optimizer", rank=1)], 3),
    "rank 0 has not written": ([Fault(SETTLE, "SIGKILL", match=f"{SECOND}.tmp/optimizer", rank=0)], 3),
    "both have written": ([Fault(MANIFEST, "SIGKILL", match=SECOND, rank=0)], 3),
    "rank 1 has not heard of it": ([Fault(RENAME, "SIGKILL", match=f"{SECOND}.tmp, ", when="after", rank=0)], 6),
}  # fmt: skip


def kill_between_ranks(live, finish, whole, folder: Path, phase: str, *flags: str, **options) -> None:
    faults, newest = BETWEEN_RANKS[phase]
    flags += ("--save_total_limit", "1")
    life = live(folder.name, *flags, ranks=2, faults=faults, **options)
    codes = life.wait()
    victim = faults[0].rank
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1, (codes, life.log)
    assert f"rank {1 - victim} of 2 on" in life.log and "lost contact with another rank" in life.log
    assert step_of(list_checkpoints(folder)[-1]) == newest
    life = finish(folder.name, *flags, ranks=2, **options)
    assert f"going on from {folder}/checkpoint-{newest:06d}, step {newest} of 12" in life.log
    assert [step_of(path) for path in list_checkpoints(folder)] == [12] and leftovers(folder) == []
    assert_bit_equal(folder, whole(ranks=2, **options), once=False)


@pytest.mark.parametrize("in_background", IN_BACKGROUND)
@pytest.mark.parametrize("phase", BETWEEN_RANKS)
def test_row_02_killed_between_the_ranks_of_a_save(live, finish, whole, tmp_path, phase, in_background):
    flags = ("--async_save", str(in_background).lower())
    kill_between_ranks(live, finish, whole, tmp_path / "run", phase, *flags)


@pytest.mark.parametrize("config", CUT)
def test_row_02_killed_between_ranks_that_share_the_weights(live, finish, whole, tmp_path, config):
    for number, phase in enumerate(BETWEEN_RANKS):
        kill_between_ranks(live, finish, whole, tmp_path / f"run-{number}", phase, config=config)


# --- 1: killed at random moments

LONG = ("--max_train_steps", "300", "--eval_steps", "7", "--logging_steps", "2")
SLOWLY = 0.03  # seconds more a step: at most 17 steps a life, and 15 lives that get to steps


@pytest.mark.parametrize(
    ("in_background", "ranks"),
    [
        (True, 1),
        pytest.param(False, 1, marks=pytest.mark.slow),
        pytest.param(True, 2, marks=pytest.mark.slow),
    ],
)
def test_row_01_twenty_kills_at_random_moments(live, finish, whole, tmp_path, observed, in_background, ranks):
    flags = (*LONG, "--async_save", str(in_background).lower())
    draw, went_on = random.Random(int(in_background)), set()
    for number in range(20):
        life = live("run", *flags, ranks=ranks, prepare=partial(slow_down, STEP, SLOWLY))
        if number % 4:  # else within the start; some get a step further for sure, however slow the machine is
            life.wait_for("parameters, vocabulary" if number % 4 < 3 else "saved ")
        time.sleep(draw.uniform(0, 0.4))
        for process in draw.sample(life.processes, ranks):
            process.kill()
        assert life.wait() == [-signal.SIGKILL] * ranks, life.log
        went_on |= set(re.findall(r"going on from \S+, step (\d+)", life.log))
    assert len(went_on) >= 4  # it did get on between them
    observed(f"20 kills, going on from {len(went_on)} different steps")
    finish("run", *flags, ranks=ranks)
    assert leftovers(tmp_path / "run") == []
    assert_bit_equal(tmp_path / "run", whole(*LONG, ranks=ranks), once=False)


# --- 3: a full disk

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own needs root")


@pytest.fixture
def disk(tmp_path):
    """A small file system in memory, where a run directory is to be."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


NOT_SAVED = (
    r"warning: {folder}/checkpoint-000006 could not be saved: .*(No space left on device|File too large).* "
    r"\(\d[\d,]* MB are free in {folder}\); it needs about 0\.4 MB; {folder}/checkpoint-000003 is unharmed, and the "
    r"next save tries again"
)


@as_root
@pytest.mark.parametrize("in_background", IN_BACKGROUND)
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_row_03_a_disk_that_is_full_for_a_while_costs_one_checkpoint(
    finish, whole, disk, tmp_path, ranks, in_background
):
    faults = [Fault(SAVE_BEGINS, f"fill {disk}", 2, rank=0), Fault(SAVE_BEGINS, f"free {disk}", 3, rank=0)]
    flags = ("--save_total_limit", "1", "--async_save", str(in_background).lower())
    life = finish("disk/run", *flags, faults=faults, ranks=ranks)
    assert re.search(NOT_SAVED.format(folder=disk / "run"), life.log), life.log
    assert f"{disk}/run/metrics.jsonl cannot be written" in life.log
    assert f"the best model could not be saved in {disk}/run/best" in life.log
    assert f"saved {disk}/run/checkpoint-000009" in life.log
    assert [step_of(path) for path in list_checkpoints(disk / "run")] == [12]
    assert leftovers(disk / "run") == []
    assert_bit_equal(disk / "run", whole(ranks=ranks), once=True)  # no row of metrics.jsonl is missing


def test_row_03_the_same_with_a_limit_of_the_size_of_files(finish, whole, tmp_path):
    """As a quota, which the look at the free space does not see."""
    faults = [Fault(SAVE_BEGINS, "limit 100000", 2), Fault(SAVE_BEGINS, "limit -1", 3)]
    life = finish("run", "--save_total_limit", "1", faults=faults)
    assert re.search(NOT_SAVED.format(folder=tmp_path / "run"), life.log), life.log
    assert [step_of(path) for path in list_checkpoints(tmp_path / "run")] == [12]
    assert_bit_equal(tmp_path / "run", whole(), once=True)


@as_root
def test_row_03_killed_on_a_full_disk_it_goes_on_from_the_old_checkpoint(finish, whole, disk, tmp_path):
    faults = [Fault(SAVE_BEGINS, f"fill {disk}", 2), Fault(SAVE_BEGINS, "SIGKILL", 3)]
    finish("disk/run", "--save_total_limit", "1", faults=faults, code=-signal.SIGKILL)
    (disk / "filler").unlink()
    assert [(path.name, find_damage(path)) for path in list_checkpoints(disk / "run")] == [
        ("checkpoint-000003", None)
    ]
    life = finish("disk/run", "--save_total_limit", "1")
    assert "step 3 of 12" in life.log
    assert_bit_equal(disk / "run", whole(), once=False)


@as_root
def test_row_03_a_last_checkpoint_that_cannot_be_saved_is_an_error(finish, whole, disk, tmp_path):
    life = finish("disk/run", faults=[Fault(SAVE_BEGINS, f"fill {disk}", 4)], code=1)
    (line,) = [line for line in life.log.splitlines() if line.startswith("error: ")]
    assert "the last checkpoint, of step 12, was not saved: " in line and "No space left on device" in line
    assert "make room, and start the same command again to go on from the one before" in line
    assert "Traceback" not in life.log
    (disk / "filler").unlink()
    assert "step 9 of 12" in finish("disk/run").log
    assert_bit_equal(disk / "run", whole(), once=False)


# --- 6: points to go on from

DATA_FLAGS = {
    "stream": (),
    "random windows": ("--random_windows", "7", "--max_train_samples", "none", "--train_file", "SHORT"),
    "document": ("--packing", "document", "--document_separator", "\n\n"),
    "pad": ("--packing", "pad", "--document_separator", "\n\n"),
}


@pytest.mark.parametrize(
    "data",
    [
        "random windows",
        *(pytest.param(name, marks=pytest.mark.slow) for name in DATA_FLAGS if name != "random windows"),
    ],
)
def test_row_06_every_point_to_go_on_from(finish, whole, tmp_path, data):
    """Dropout is on. Each block is seen once an epoch, and each row is logged once."""
    folder, seen = tmp_path / "run", tmp_path / "seen"
    (tmp_path / "short.txt").write_text(make_text(25))  # it gives the blocks besides the windows
    kind = tuple(word.replace("SHORT", str(tmp_path / "short.txt")) for word in DATA_FLAGS[data])
    flags = (*kind, "--checkpointing_steps", "4", "--async_save", "false")
    points = [  # what stops it, and the step it goes on from
        (Fault(FORWARD, "SIGTERM", 4), 2),  # between two passes, in the middle of an epoch
        (Fault(STEP, "SIGKILL", 3), 4),  # before step 5: the evaluation of step 4 and its checkpoint are done
        (Fault(STEP, "SIGTERM", 3), 7),  # twice in an epoch
        (Fault(STEP, "SIGTERM", 1), 8),
        (Fault(STEP, "SIGTERM", 1, when="after"), 9),  # at its end
        (Fault(STEP, "SIGTERM", 3), 12),  # in the last step
        (Fault(EVALUATION, "SIGTERM", 1), 12),  # in the last evaluation
    ]
    for fault, step in points:
        code = -signal.SIGKILL if fault.what == "SIGKILL" else 0
        finish("run", *flags, faults=[fault], code=code, prepare=partial(note_blocks, seen))
        assert step_of(list_checkpoints(folder)[-1]) == step
    finish("run", *flags, prepare=partial(note_blocks, seen))
    assert_bit_equal(folder, whole(*kind), once=True)
    steps = [json.loads(line) for line in seen.read_text().splitlines()]
    per_epoch = max(step["place"][1] for step in steps) + 1
    assert [step["place"] for step in steps] == [list(divmod(number, per_epoch)) for number in range(12)]
    for epoch in range(12 // per_epoch):
        blocks = [block for step in steps for block in step["blocks"] if step["place"][0] == epoch]
        assert sorted(blocks) == list(range(len(blocks))) and len(blocks) > 8


# --- 7: another number of processes

NO_DROPOUT = ("--config_overrides", "n_layer=2,n_head=2,n_embd=32,resid_pdrop=0,embd_pdrop=0,attn_pdrop=0")


def test_row_07_one_process_then_two_then_one_have_the_blocks_and_losses_of_one(finish, whole, tmp_path):
    folder = tmp_path / "run"
    steps: dict[tuple, list[int]] = {}
    faults = [[Fault(STEP, "SIGTERM", 4)], [Fault(STEP, "SIGTERM", 4)], []]
    for life, ranks in enumerate((1, 2, 1)):
        seen = tmp_path / f"seen-{life}"
        finish("run", *NO_DROPOUT, ranks=ranks, faults=faults[life], prepare=partial(note_blocks, seen))
        for row in map(json.loads, seen.read_text().splitlines()):
            steps.setdefault(tuple(row["place"]), []).extend(row["blocks"])
    one = tmp_path / "seen"
    finish("one", *NO_DROPOUT, prepare=partial(note_blocks, one))
    expected = {tuple(row["place"]): row["blocks"] for row in map(json.loads, one.read_text().splitlines())}
    assert {place: sorted(blocks) for place, blocks in steps.items()} == {
        place: sorted(blocks) for place, blocks in expected.items()
    }
    ours, theirs = rows(folder), rows(tmp_path / "one")
    assert [row[AXIS] for row in ours] == [row[AXIS] for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        for key in row:
            assert row[key] == pytest.approx(other[key], rel=1e-6 if "loss" in key else 1e-4), (
                row[AXIS],
                key,
            )


# --- 20: a checkpoint of the past

FIXTURE = ROOT / "tests/fixtures/checkpoint-format-3"
FIXTURE_FLAGS = (
    "--config_overrides n_layer=1,n_head=1,n_embd=8,resid_pdrop=0,embd_pdrop=0,attn_pdrop=0 --block_size 16 "
    "--train_tokenizer char --mixed_precision no --logging_steps 1 --eval_steps 4 --sample_steps end "
    "--sample_max_new_tokens 4 --lr_scheduler_type cosine --learning_rate 1e-2 --total_batch_size 4 "
    "--per_device_train_batch_size 2"
).split()
# Of steps 5 to 8, and the evaluations of steps 4 and 8: seen by the version that wrote it.
GOLDEN_LOSSES = {5: 5.3853309, 6: 5.3339165, 7: 5.2659321, 8: 5.2366650}
GOLDEN_EVALUATIONS = {4: 5.3742805, 8: 5.2554920}


def fixture_flags(folder: Path) -> list[str]:
    """Dropout is off: other processors draw other numbers for it."""
    files = ("--train_file", str(folder / "text.txt"), "--cache_dir", str(folder / "cache"))
    return [*files, *FIXTURE_FLAGS, "--output_dir", str(folder / "run"), "--max_train_steps", "8"]


def make_fixture(folder: Path) -> None:
    """How the committed one was made: stopped in step 4 of 8, and of the run directory only what it goes on with.

    For a new format: `python -c "import test_faults as t; t.make_fixture(t.FIXTURE)"` in this folder, a new name, and
    the losses of the test with it. The old ones stay, as long as they are to be read.
    """
    folder.mkdir(parents=True)
    (folder / "text.txt").write_text(make_text(30))
    life = Life(fixture_flags(folder), folder, faults=[Fault(STEP, "SIGTERM", 4)])
    assert life.wait() == [0], life.log
    for path in [*folder.glob("*"), *folder.glob("run/*")]:
        if path.name not in ("run", "text.txt", "config.yaml", "checkpoint-000004"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    path = folder / "run/config.yaml"  # without a path of the machine it was made on
    path.write_text(path.read_text().replace(str(folder), "."))


@pytest.fixture
def of_the_past(tmp_path) -> Path:
    shutil.copytree(FIXTURE, tmp_path / "past")
    return tmp_path / "past"


def test_row_20_a_committed_checkpoint_goes_on_with_its_losses(of_the_past, tmp_path):
    life = Life(fixture_flags(of_the_past), tmp_path)
    assert life.wait() == [0], life.log
    assert f"going on from {of_the_past}/run/checkpoint-000004, step 4 of 8" in life.log
    losses = {row[AXIS]: row["train/loss"] for row in rows(of_the_past / "run") if "train/loss" in row}
    evaluations = {row[AXIS]: row["eval/loss"] for row in rows(of_the_past / "run") if "eval/loss" in row}
    assert losses == pytest.approx(GOLDEN_LOSSES, rel=1e-5)
    assert evaluations == pytest.approx(GOLDEN_EVALUATIONS, rel=1e-5)


def test_row_20_a_newer_format_is_refused_and_nothing_is_touched(of_the_past, tmp_path):
    path = of_the_past / "run/checkpoint-000004/manifest.json"
    newer = json.loads(path.read_text()) | {"format": json.loads(path.read_text())["format"] + 1}
    path.write_text(json.dumps(newer))
    before = sorted(of_the_past.rglob("*"))
    life = Life(fixture_flags(of_the_past), tmp_path)
    assert life.wait() == [2]
    assert (
        f"has format {newer['format']}, this version reads format {newer['format'] - 1}; update stylegen"
        in life.log
    )
    assert sorted(path for path in of_the_past.rglob("*") if "cache" not in str(path)) == before


def test_the_committed_checkpoint_is_small():
    assert sum(path.stat().st_size for path in FIXTURE.rglob("*") if path.is_file()) < 150_000


# --- 9: one rank fails

RAISED = {
    "data": Fault(DATA, "raise", 9, rank=1),
    "forward": Fault("stylegen.loss:LanguageModelLoss.forward", "raise", 12, rank=1),
    "save": Fault(SETTLE, "raise", match=f"{SECOND}.tmp/optimizer", rank=1),
    "evaluation": Fault(EVALUATION, "raise", 2, rank=1),
}
SYNCHRONOUS = ("--async_save", "false")  # so that the save before the fault is surely done


def assert_that_rank_failed(log: str, rank: int) -> None:
    """Its traceback comes first; what the other one says comes later and is one line."""
    errors = [line for line in log.splitlines() if "error: " in line and "torch" not in line]
    assert re.match(rf"error: rank {rank} of 2 on \S+ failed, and with it the job:", errors[0]), log
    assert log.index("RuntimeError: a fault that was made") < log.find("lost contact") % (len(log) + 1)
    assert log.count("Traceback") == 1 or "torch/distributed" in log  # the launcher has one of its own


@pytest.mark.parametrize("place", RAISED)
def test_row_09_an_exception_on_one_rank_ends_the_job(live, finish, whole, tmp_path, observed, place):
    life = live("run", *SYNCHRONOUS, ranks=2, faults=[RAISED[place]])
    life.wait_for("step 3/12")
    started = time.monotonic()
    assert life.wait(10) == [1, 1], life.log
    observed(f"job over {time.monotonic() - started:.2f} s after the log of step 3")
    assert_that_rank_failed(life.log, rank=1)
    newest = list_checkpoints(tmp_path / "run")[-1]
    assert step_of(newest) == 3 and find_damage(newest) is None
    finish("run", ranks=2)
    assert_bit_equal(tmp_path / "run", whole(ranks=2), once=False)


@pytest.mark.parametrize("rank", [0, 1])
def test_row_09_a_rank_that_is_killed_ends_the_job(live, finish, whole, tmp_path, observed, rank):
    life = live("run", *SYNCHRONOUS, ranks=2, faults=[Fault(STEP, "SIGKILL", 5, rank=rank)])
    life.wait_for("step 3/12")
    started = time.monotonic()
    codes = life.wait(10)
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, 1)
    observed(f"job over {time.monotonic() - started:.2f} s after the log of step 3")
    (line,) = [line for line in life.log.splitlines() if line.startswith("error: ")]
    assert re.match(
        rf"error: rank {1 - rank} of 2 on \S+ lost contact with another rank, which failed, was", line
    )
    assert step_of(list_checkpoints(tmp_path / "run")[-1]) == 3
    finish("run", ranks=2)
    assert_bit_equal(tmp_path / "run", whole(ranks=2), once=False)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_row_09_a_rank_that_is_stopped_is_named_and_ends_the_job(
    live, finish, whole, tmp_path, observed, rank
):
    """What started the processes kills it then; a stopped one cannot end by itself."""
    flags = (*SYNCHRONOUS, "--watchdog_seconds", "2")
    life = live("run", *flags, ranks=2, faults=[Fault(STEP, "SIGSTOP", 5, rank=rank)])
    life.wait_for("step 4/12")
    started = time.monotonic()
    life.processes[1 - rank].join(40)
    observed(f"job over {time.monotonic() - started:.1f} s after the log of step 4, --watchdog_seconds 2")
    assert life.processes[1 - rank].exitcode == 1, life.log
    if rank == 1:
        assert re.search(r"error: rank 1 on \S+ is stopped or gone: nothing for 2 s, last seen in", life.log)
    else:  # it holds what keeps the ranks together
        assert (
            "error: rank 1 on" in life.log
            and "does not answer: that machine or its first process is" in life.log
        )
    life.kill()
    assert step_of(list_checkpoints(tmp_path / "run")[-1]) == 3
    finish("run", ranks=2)
    assert_bit_equal(tmp_path / "run", whole(ranks=2), once=False)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["raise", "SIGKILL", "SIGSTOP"])
def test_row_09_the_launcher_ends_with_an_error_and_leaves_no_orphan(
    launched, finish, whole, tmp_path, observed, what
):
    faults = [Fault(STEP, f"wait {tmp_path}/go", 5), Fault(STEP, what, 6, rank=1)]
    launch = launched("run", 2, *faults, flags=(*SYNCHRONOUS, "--watchdog_seconds", "4"))
    launch.wait_for(*(tmp_path / f"go-{rank}" for rank in range(2)))
    (tmp_path / "go").touch()
    started = time.monotonic()
    launch.wait(90)
    observed(f"{what} under torchrun: it ends after {time.monotonic() - started:.1f} s")
    log = launch.errors.read_text()
    assert launch.launcher.returncode != 0
    assert not any(rank.is_running() for rank in launch.ranks)
    if what == "raise":
        assert_that_rank_failed(log, rank=1)
    expected = {
        "raise": "a fault that was made",
        "SIGKILL": "lost contact with another rank",
        "SIGSTOP": "is stopped or gone",
    }
    assert expected[what] in log
    finish("run", ranks=2)
    assert_bit_equal(tmp_path / "run", whole(ranks=2), once=False)


# --- 19: many saves


@pytest.mark.parametrize("in_background", [True, False])
@pytest.mark.parametrize("saves", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_row_19_many_saves_leave_nothing_behind(live, tmp_path, observed, saves, in_background):
    noted = tmp_path / "noted"
    flags = ("--max_train_steps", str(saves), "--checkpointing_steps", "1", "--eval_steps", str(saves))
    flags += ("--save_total_limit", "2", "--async_save", str(in_background).lower())
    life = live("run", *flags, prepare=partial(note_resources, noted))
    assert life.wait(300) == [0], life.log
    held = [json.loads(line) for line in noted.read_text().splitlines()]
    assert len(held) == saves
    half = held[saves // 2 :]
    for name in ("descriptors", "threads"):
        assert len({row[name] for row in half}) == 1, (name, held)
    last, grown = half[-1], [(half[-1]["bytes"] - row["bytes"]) / 2**20 for row in (held[0], half[0])]
    observed(
        f"{saves} saves: {last['descriptors']} descriptors, {last['threads']} threads, {grown[0]:+.1f} MB, in the "
        f"second half {grown[1]:+.1f} MB"
    )
    # What grows are the pools of the allocator, and not for ever.
    assert half[-1]["bytes"] - half[0]["bytes"] < 8 << 20, [row["bytes"] >> 10 for row in held]
    there = [path.name for path in (tmp_path / "run").glob("checkpoint-*")]
    assert sorted(there) == [f"checkpoint-{step:06d}" for step in (saves - 1, saves)]


# --- 4: damaged files


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def blank(content: bytes) -> bytes:
    return bytes(len(content))


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def damage(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", [cut, blank, flip])
def test_row_04_damaged_checkpoints_are_named_and_passed_over(finish, whole, tmp_path, change, ranks):
    """One file of each of the newest checkpoints is damaged, each another one; the one before them is whole."""
    folder = tmp_path / "run"
    flags = ("--checkpointing_steps", "1", "--save_total_limit", "none")
    shutil.copytree(whole(*flags, ranks=ranks), folder)
    files = sorted(path.name for path in (folder / LAST).iterdir())
    assert len(files) == 8 if ranks == 1 else 10
    damaged = dict(zip(reversed(list_checkpoints(folder)), files, strict=False))
    for path, name in damaged.items():
        damage(path / name, change)
    life = finish("run", *flags, ranks=ranks)
    for path, name in damaged.items():
        assert re.search(rf"warning: {path} is passed over: .*{re.escape(name)}", life.log), (
            path,
            name,
            life.log,
        )
    assert f"step {12 - len(damaged)} of 12" in life.log
    assert_bit_equal(folder, whole(ranks=ranks), once=False)


def test_row_04_a_run_whose_checkpoints_are_all_damaged_does_not_start_afresh(finish, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole(), folder)
    for path in list_checkpoints(folder):
        damage(path / "model.safetensors", flip)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    life = finish("run", code=2)
    assert (
        f"error: every checkpoint in {folder} is damaged; restore one, or give --overwrite_output_dir"
        in life.log
    )
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


# --- 5: a checkpoint that cannot be deleted


def test_row_05_a_rotation_that_fails_is_a_warning(finish, whole, tmp_path):
    folder = tmp_path / "run"
    life = finish(
        "run", "--save_total_limit", "1", faults=[Fault(RENAME, "EBUSY", match="checkpoint-000003, ")]
    )
    assert f"warning: {folder}/checkpoint-000003 is one too many, but cannot be deleted: " in life.log
    assert "Device or resource busy" in life.log
    assert [step_of(path) for path in list_checkpoints(folder)] == [12]  # the next rotation takes it along
    assert_bit_equal(folder, whole(), once=True)


@as_root
def test_row_05_a_checkpoint_that_is_a_mount_stays_until_it_is_none(live, whole, tmp_path):
    folder, old = tmp_path / "run", tmp_path / "run/checkpoint-000003"
    faults = [Fault(STEP, f"wait {tmp_path}/mounted", 5), Fault(STEP, f"wait {tmp_path}/gone", 8)]
    life = live("run", "--save_total_limit", "1", *SYNCHRONOUS, faults=faults)
    life.wait_for("step 4/12")
    life.wait_for_file(tmp_path / "mounted-0")
    subprocess.run(["mount", "--bind", str(old), str(old)], check=True)
    (tmp_path / "mounted").touch()
    life.wait_for_file(tmp_path / "gone-0")
    assert [step_of(path) for path in list_checkpoints(folder)] == [3, 6] and find_damage(old) is None
    subprocess.run(["umount", str(old)], check=True)
    (tmp_path / "gone").touch()
    assert life.wait() == [0], life.log
    assert life.log.count("is one too many, but cannot be deleted: [Errno 16] Device or resource busy") == 1
    assert [step_of(path) for path in list_checkpoints(folder)] == [12]
    assert_bit_equal(folder, whole(), once=True)


# --- 18: a directory that cannot be written


@as_root
def test_row_18_a_read_only_disk_is_refused_before_anything_starts(finish, disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    life = finish("disk/run", code=2)
    (line,) = life.log.splitlines()[-1:]
    assert (
        f"error: output_dir {disk}/run cannot be written ({disk} is read-only); choose another place" in line
    )
    assert "Traceback" not in life.log and not list(disk.iterdir())


@as_root
@pytest.mark.parametrize("each_node", [False, True])
def test_row_18_a_directory_that_one_rank_cannot_write_is_refused_by_all(finish, disk, each_node):
    flags = ("--save_on_each_node",) if each_node else ()
    fault = Fault(TRIAL, f"read-only{'-and-empty' if each_node else ''} {disk}", rank=1)
    life = finish("disk/run", *flags, ranks=2, machines=each_node, code=2, faults=[fault])
    errors = [line for line in life.log.splitlines() if line.startswith("error: ")]
    told = rf"output_dir {disk}/run cannot be used of rank 1 on \S+: .*Read-only file system"
    assert errors and all(re.search(told, line) for line in errors), life.log
    assert "Traceback" not in life.log
    assert [path for path in disk.rglob("*") if path.is_file()] == []


@as_root
@pytest.mark.slow
def test_row_18_a_disk_that_one_rank_sees_as_read_only_ends_the_job(launched, disk):
    launch = launched("disk/run", 2, Fault(START, f"read-only {disk}", rank=1))
    launch.wait(60)  # torchrun waits 30 s for rank 0, which waits for rank 1
    assert launch.launcher.returncode != 0
    log = launch.errors.read_text()
    assert re.search(
        rf"error: rank 1 on \S+: output_dir {disk}/run cannot be written \({disk} is read-only\)", log
    )
    assert [path for path in disk.rglob("*") if path.is_file()] == []


# --- 13: an empty token cache


def entries(cache: Path) -> list[str]:
    return sorted(path.suffix for path in cache.iterdir())


def test_row_13_two_jobs_one_of_two_ranks_build_an_empty_cache_once(live, whole, tmp_path):
    noted, cache = tmp_path / "noted", tmp_path / "cache"
    options = {"prepare": partial(slow_down, BUILD, 0.5, noted)}
    lives = [
        live("one", "--cache_dir", str(cache), **options),
        live("two", "--cache_dir", str(cache), ranks=2, **options),
    ]
    assert [life.wait() for life in lives] == [[0], [0, 0]], [life.log for life in lives]
    assert len(noted.read_text().splitlines()) == 1 and entries(cache) == [""]
    assert_bit_equal(tmp_path / "one", whole(), once=True)
    assert_bit_equal(tmp_path / "two", whole(ranks=2), once=True)


def test_row_13_a_builder_that_is_killed_half_way_is_followed_by_who_waits(live, whole, tmp_path):
    cache = tmp_path / "cache"
    halfway = Fault("stylegen.blocks.cache:_write_side", f"wait {tmp_path}/never", 2)
    builder = live("builder", "--cache_dir", str(cache), faults=[halfway])
    builder.wait_for_file(tmp_path / "never-0")
    waiting = live("waiting", "--cache_dir", str(cache), ranks=2)
    waiting.wait_for("another process is preparing this text; waiting for it")
    assert entries(cache) == [".lock", ".tmp"]
    builder.kill()
    assert waiting.wait() == [0, 0], waiting.log
    assert entries(cache) == [""]
    assert_bit_equal(tmp_path / "waiting", whole(ranks=2), once=True)
