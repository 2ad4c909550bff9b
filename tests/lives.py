"""Trainings that something happens to, at a chosen place; and processes for them that start in a blink.

A *life* is a training in a process of its own, from its start to its end, however it ends. It is forked from a server
that has imported everything, so twenty of them take seconds; signals, files, locks, exit codes and the process group of
several ranks are as real as those of `python run_clm.py`. The same faults work under a real launcher:

    FAULTS='[{"place": "stylegen.train.run:train_step", "what": "SIGTERM", "call": 3}]' accelerate launch lives.py ...
"""

import ctypes
import errno
import functools
import importlib
import itertools
import json
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
PRELOAD = ["lives", "stylegen.train.run", "datasets", "matplotlib.pyplot"]
# Where a run can be when something happens to it, as "module:name" of a function that is called there.
START = "stylegen.train:parse_arguments"
SET_UP = "stylegen.train.setup:build_optimizer"
TRIAL = "stylegen.train.setup:check_room"
SET_UP_ENDS = "stylegen.train.setup:Tracker"  # when what lay there of a run before is cleared away
FORWARD = "stylegen.train.step:accumulating"  # once a pass of the training
DATA = "stylegen.train.feed:Feed.take"  # once a pass
STEP = "stylegen.train.run:train_step"
EVALUATION = "stylegen.evaluate:micro_batches"
SAVE_BEGINS = "stylegen.train.run:save"
WRITE = "stylegen.checkpoint.save:save_file"
SETTLE = "stylegen.checkpoint.manifest:settle_file"
MANIFEST = "stylegen.checkpoint.save:write_manifest"
NAMING = "stylegen.checkpoint.save:put_in_place"
ROTATION = "stylegen.checkpoint.save:rotate"
SYNC = "stylegen.checkpoint.manifest:sync"
BUILD = "stylegen.blocks.prepare:write_sides"
RENAME, REPLACE, UNLINK = "os:rename", "os:replace", "os:unlink"

CLONE_NEWNS = 0x00020000  # linux/sched.h


@dataclass(frozen=True)
class Fault:
    """Something that happens at one call of a function.

    place  "module:name", where the function is looked up by who calls it
    what   name of a signal, which the process sends itself; STOP: the file appears; hours: one has passed; raise, or a
           name of `errno`: an exception; wait PATH: it hangs until there is such a file; fill PATH, free PATH: the disk
           with that folder is full, has room again; limit BYTES: no file may be larger, -1 takes it back;
           read-only PATH, read-only-and-empty PATH: this process cannot write there, and sees nothing either
    call   which call, from 1, of those whose arguments as text `match`, a regular expression
    rank   of the process that it happens in, or None for all
    """

    place: str
    what: str
    call: int = 1
    when: str = "before"
    match: str = ""
    rank: int | None = None


def install(faults: Sequence[Fault], arguments: Sequence[str]) -> None:
    """Make them happen in this process; `arguments` are those of the training."""
    for fault in faults:
        if fault.rank in (None, int(os.environ.get("RANK", "0"))):
            wrap(fault.place, functools.partial(_faulty, fault=fault, arguments=arguments))


def wrap(place: str, around: Callable) -> None:
    """Put `around(original)` in the place of a function."""
    module, _, path = place.partition(":")
    *classes, name = path.split(".")
    owner = functools.reduce(getattr, classes, importlib.import_module(module))
    setattr(owner, name, around(getattr(owner, name)))


def _faulty(original: Callable, fault: Fault, arguments: Sequence[str]) -> Callable:
    calls = itertools.count(1)

    @functools.wraps(original)
    def wrapper(*values, **options):
        text = ", ".join([*map(str, values), *options]) if fault.match else ""
        due = bool(re.search(fault.match, text)) and next(calls) == fault.call
        if due and fault.when == "before":
            happen(fault.what, arguments)
        result = original(*values, **options)
        if due and fault.when == "after":
            happen(fault.what, arguments)
        return result

    return wrapper


def happen(what: str, arguments: Sequence[str]) -> None:
    """What a fault says."""
    word, _, path = what.partition(" ")
    if word in signal.Signals.__members__:
        os.kill(os.getpid(), signal.Signals[word])
    elif word in errno.errorcode.values():
        number = getattr(errno, word)
        raise OSError(number, os.strerror(number))
    elif word == "raise":
        raise RuntimeError("a fault that was made")
    elif word == "wait":
        Path(f"{path}-{os.environ.get('RANK', '0')}").touch()  # so that the test knows
        while not Path(path).exists():
            time.sleep(0.01)
    elif word == "STOP":
        folder = Path(arguments[list(arguments).index("--output_dir") + 1])
        (folder / "STOP").touch()
    elif word == "hours":
        import stylegen.stop

        stylegen.stop.time = types.SimpleNamespace(monotonic=lambda: time.monotonic() + 3600)
    elif word == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(path), resource.RLIM_INFINITY))
    elif word in ("read-only", "read-only-and-empty"):
        make_read_only(path, empty=word == "read-only-and-empty")
    elif word == "fill":
        fill(Path(path))
    elif word == "free":
        (Path(path) / "filler").unlink()
    else:
        raise ValueError(what)


def fill(folder: Path) -> None:
    """Write until there is not a byte left on the disk."""
    with open(folder / "filler", "ab", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC


# --- what a life notes down


def note_blocks(path: Path) -> None:
    """Append the blocks that each step takes on this rank to a file, a line a step."""

    def around(original):
        def take(feed, step, number, blocks):
            if number == 0:
                place = divmod(step, feed.steps_per_epoch)
                row = {"place": place, "blocks": np.concatenate(blocks.shares).tolist()}
                with open(path, "a") as file:
                    file.write(json.dumps(row) + "\n")
            return original(feed, step, number, blocks)

        return take

    wrap(DATA, around)


def slow_down(place: str, seconds: float, noted: Path | None = None) -> None:
    """Let each call of a function take so much longer, and append a line to a file for each."""

    def around(original):
        def slowed(*values):
            if noted:
                with open(noted, "a") as file:
                    file.write(f"{os.getpid()}\n")
            time.sleep(seconds)
            return original(*values)

        return slowed

    wrap(place, around)


def note_resources(path: Path) -> None:
    """Append what the process holds after each save that was committed."""

    def around(original):
        def rotate(*values):
            original(*values)
            with open(path, "a") as file:
                file.write(json.dumps(resources()) + "\n")

        return rotate

    wrap(ROTATION, around)


def resources() -> dict[str, int]:
    """Resident memory that files do not back, descriptors, threads."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "bytes": int(status["RssAnon"].split()[0]) * 1024,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def make_read_only(folder: str, empty: bool) -> None:
    """Give this process a mount of its own, on which it cannot write what others can, or that is another disk."""
    assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
    same = (["--bind", folder, folder], ["-o", "remount,ro,bind", folder])
    for options in (
        ["--make-rprivate", "/"],
        *([["-t", "tmpfs", "-o", "ro", "none", folder]] if empty else same),
    ):
        subprocess.run(["mount", *options], check=True)


# --- lives


class Life:
    """The processes of one training, and what they print.

    ranks  processes; several of them meet at a port of this machine, as torchrun would have them do
    """

    def __init__(
        self,
        arguments: Sequence[str],
        place: Path,
        faults: Sequence[Fault] = (),
        ranks: int = 1,
        machines: bool = False,
        config: str = "ddp",
        variables: dict[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
        draws: bool = False,
    ):
        """Start them.

        place     folder for what they print
        config    of configs/accelerate, for several ranks
        machines  as if each process were alone on its machine
        prepare   called in each process before the training
        draws     figures and report at the end, which take half of a short life
        """
        self.printed, self.errors = place / "printed", place / "errors"
        for path in (self.printed, self.errors):
            path.unlink(missing_ok=True)
        port = str(free_port())
        cutting = launcher_variables(config) if ranks > 1 and config != "ddp" else {}
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(PRELOAD)
        self.processes = []
        for rank in range(ranks):
            environment = dict(variables or {})
            if ranks > 1:
                here = 0 if machines else rank
                environment |= {
                    "RANK": str(rank), "LOCAL_RANK": str(here), "WORLD_SIZE": str(ranks),
                    "LOCAL_WORLD_SIZE": "1" if machines else str(ranks),
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true",
                    **cutting,
                }  # fmt: skip
            values = (list(arguments), str(place), tuple(faults), environment, prepare, draws)
            process = server.Process(target=_live, args=values, daemon=True)
            process.start()
            self.processes.append(process)

    def wait(self, seconds: float = 60) -> list[int | None]:
        """The exit codes, negative ones of signals, None where a process still goes on after `seconds`."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(until - time.monotonic(), 0))
        return [process.exitcode for process in self.processes]

    @property
    def log(self) -> str:
        return self.errors.read_text() if self.errors.exists() else ""

    def wait_for(self, words: str, seconds: float = 60) -> None:
        """Until they have been printed."""
        until = time.monotonic() + seconds
        while words not in self.log:
            assert time.monotonic() < until, self.log
            assert any(process.is_alive() for process in self.processes), self.log
            time.sleep(0.005)

    def wait_for_file(self, path: Path, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < until, self.log
            assert any(process.is_alive() for process in self.processes), self.log
            time.sleep(0.005)

    def kill(self) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
        self.wait()


def _live(
    arguments: list[str],
    place: str,
    faults: tuple[Fault, ...],
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
    draws: bool,
) -> None:
    os.setpgid(0, 0)
    os.chdir(ROOT)  # as the paths in configs/accelerate have it
    os.environ.update(environment)
    for number, name in ((1, "printed"), (2, "errors")):
        file = os.open(f"{place}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    import tqdm

    from stylegen.train import main

    tqdm.tqdm.set_lock(threading.RLock())  # its own is one of processes, which a kill would leave behind
    if not draws:
        wrap("stylegen.report:write_report", lambda original: lambda *_: [])
    if prepare:
        prepare()
    install(faults, arguments)
    sys.exit(main(arguments))


def launcher_variables(config: str) -> dict[str, str]:
    """What `accelerate launch` with a configuration of ours says to the processes it starts."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    words = [
        "--config_file",
        str(ROOT / f"configs/accelerate/{config}.yaml"),
        "--num_processes",
        "2",
        "run_clm.py",
    ]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        said = prepare_deepspeed_cmd_env(arguments)[1]
    else:
        said = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in said.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def as_variable(*faults: Fault) -> dict[str, str]:
    """For this file as a script."""
    return {"FAULTS": json.dumps([asdict(fault) for fault in faults])}


if __name__ == "__main__":
    from stylegen.train import main

    install([Fault(**values) for values in json.loads(os.environ["FAULTS"])], sys.argv)
    sys.exit(main())
