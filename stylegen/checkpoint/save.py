"""Writing checkpoints that exist only when complete, beside the training where there is memory for a copy.

`begin` copies the state and hands it to a thread, which writes this rank's files into checkpoint-N.tmp, brings them to
the disk and reads them back. When all ranks have done so, `poll` or `finish` commits: the manifest, then the name, then
the rotation of older ones. What is called on every rank alike is marked as a collective.
"""

import contextlib
import io
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from stylegen.checkpoint.manifest import (
    NAME,
    files_in,
    list_checkpoints,
    put_in_place,
    settle_files,
    step_of,
    write_manifest,
)
from stylegen.config import first_line
from stylegen.config.processes import local_world_size
from stylegen.runtime import free_memory_bytes, logger, random_state
from stylegen.sharding import collected_weights, optimizer_state

TEMPORARY = ".tmp"  # ends the name of what is being written or deleted
Weights = dict[str, torch.Tensor]
# Writes the model's files into a folder, of these weights, or of its own where none are given.
ModelWriter = Callable[[Path, Weights | None], None]


@dataclass
class _Save:
    """A save that is not committed yet, as this rank sees it."""

    final: Path
    values: dict[str, Any]  # of the manifest
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # that this rank has written
    error: str | None = None  # why it could not write
    bug: BaseException | None = None
    thread: threading.Thread | None = None
    stall_seconds: float = 0.0  # that the training has stood still for it

    @property
    def temporary(self) -> Path:
        return self.final.with_name(self.final.name + TEMPORARY)


class Saver:
    """Saves the checkpoints of a run, one at a time.

    keep           checkpoints to keep, or None for all; the newest is never deleted before another one is whole
    each_node      the first rank of each machine keeps a complete copy, where there is no shared file system
    in_background  write from a copy of weights and optimizer state while the training goes on
    size           bytes of a checkpoint, as far as can be told beforehand
    """

    def __init__(
        self,
        run_dir: Path,
        accelerator: Accelerator,
        keep: int | None = None,
        each_node: bool = False,
        in_background: bool = False,
        size: int = 0,
    ) -> None:
        self.run_dir, self.accelerator, self.keep = run_dir, accelerator, keep
        self.each_node, self.in_background, self.size = each_node, in_background, size
        self.writes = is_writer(accelerator, each_node)
        self.stall_seconds = 0.0  # that the training stood still for saves; whoever logs it sets it back
        self._save: _Save | None = None
        self._said_no_copy = False

    def begin(
        self,
        step: int,
        values: dict[str, Any],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        write_model: ModelWriter,
    ) -> None:
        """Start to write checkpoint-`step`, after the one before is committed; a collective.

        values       what the manifest says beside the files, the number of processes and the loss scale, as JSON
        model        the base model, whose names the optimizer's state is kept under
        write_model  called where this rank `is_writer`, maybe from another thread
        """
        self.finish()
        scaler = self.accelerator.scaler
        ours = {
            "world_size": self.accelerator.num_processes,
            "scaler": scaler.state_dict() if scaler else None,
        }
        save = _Save(self.run_dir / f"checkpoint-{step:06d}", {**values, **ours})
        with self._standing_still(save):
            if self.writes:
                with _noting_errors(save):
                    shutil.rmtree(save.temporary, ignore_errors=True)
                    save.temporary.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            copies = self.in_background and self._has_room_for_a_copy()
            work = (
                *self._share(model, optimizer, copies),
                collected_weights(self.accelerator, model, self.writes, copies),
                write_model,
            )
            if copies:
                save.thread = threading.Thread(target=self._write, args=(save, *work), daemon=True)
                save.thread.start()
            else:
                self._write(save, *work)
        self._save = save  # not before all of it is in good hands: what is here will be committed

    def wait(self) -> None:
        """Wait until this rank's files are written; whoever changes or saves the model's configuration does."""
        if self._save and self._save.thread:
            with self._standing_still(self._save):
                self._save.thread.join()

    def is_ready(self) -> bool:
        """Whether there is a save under way whose files all ranks have written; a collective."""
        if (save := self._save) is None:
            return False
        with self._standing_still(save):
            busy = bool(save.thread and save.thread.is_alive())
            if self.accelerator.num_processes > 1:
                flag = torch.tensor([int(busy)], device=self.accelerator.device)
                busy = bool(self.accelerator.gather(flag).any())
        return not busy

    def finish(self, rotating: bool = True, goes_on: bool = True) -> str | None:
        """Wait for the save that is under way and commit it; a collective. Returns why it failed, or None.

        rotating  delete older ones beyond those to keep: not where the training has failed, and they may be wanted
        goes_on   the training does, and a failure is a warning; else it is for the caller to tell
        """
        if (save := self._save) is None:
            return None
        self._save = None
        with self._standing_still(save):
            if save.thread:
                save.thread.join()
            error = self._commit(save, rotating)
        if error is None:
            logger.info(f"saved {save.final} (the training waited {save.stall_seconds:.2f} s for it)")
            return None
        error = f"{error}; it needs about {self.size / 2**20:,.1f} MB; {self._what_is_left()}"
        if goes_on:
            logger.warning(
                f"warning: {save.final} could not be saved: {error}, and the next save tries again"
            )
        return error

    def _share(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, copies: bool
    ) -> tuple[str, Weights, bytes]:
        """(file name, this rank's share of the optimizer's state, its random generators).

        Each parameter goes to the rank that has least so far.
        """
        savers, mine = self.accelerator.num_processes, self.accelerator.process_index
        if self.each_node:
            savers, mine = local_world_size(), self.accelerator.local_process_index
        share: Weights = {}
        owners: dict[str, int] = {}
        load = [0] * savers
        for parameter, key, tensor in optimizer_state(self.accelerator, model, optimizer):
            owner = owners.setdefault(parameter, load.index(min(load)))
            load[owner] += tensor.numel()
            if owner == mine:
                share[f"{parameter}/{key}"] = tensor.detach().to("cpu", copy=copies).contiguous()
        generators = io.BytesIO()
        torch.save(random_state(), generators)
        return f"optimizer-{mine + 1:05d}-of-{savers:05d}.safetensors", share, generators.getvalue()

    def _write(
        self,
        save: _Save,
        name: str,
        share: Weights,
        generators: bytes,
        weights: Weights | None,
        write_model: ModelWriter,
    ) -> None:
        """Write and settle this rank's files; the main thread asks afterwards how it went."""
        with _noting_errors(save):
            if save.error:
                return
            folder = save.temporary
            mine = [folder / name, folder / f"random-{self.accelerator.process_index:05d}.pt"]
            save_file(share, str(mine[0]))
            mine[1].write_bytes(generators)
            share.clear()  # memory that the training may want
            if self.writes:
                write_model(folder, weights)
                # A dot: what the library of another rank has not named yet.
                others = ("optimizer-", "random-", ".")
                mine += [path for path in files_in(folder) if not path.name.startswith(others)]
            save.files = settle_files(folder, mine)

    def _commit(self, save: _Save, rotating: bool) -> str | None:
        machine = self.accelerator.process_index // local_world_size() if self.each_node else 0
        everyone = self._told_by_all(save, (machine, save.files))
        if not isinstance(everyone, str):
            if self.writes:
                parts = [part for place, part in everyone if place == machine]
                files = {name: part[name] for part in parts for name in part}
                with _noting_errors(save):
                    write_manifest(save.temporary, save.values, dict(sorted(files.items())))
                    put_in_place(save.temporary, save.final)
            everyone = self._told_by_all(save, None)  # no older one goes before every machine has this one
        if isinstance(everyone, str):
            if self.writes:
                shutil.rmtree(save.temporary, ignore_errors=True)
            return everyone
        if self.writes and rotating:
            rotate(self.run_dir, self.keep, save.final)
        return None

    def _told_by_all(self, save: _Save, value: Any) -> list[Any] | str:
        """What each rank has to tell, or the error of the first one that has one; a collective."""
        if save.bug:
            raise save.bug
        mine = (value, save.error)
        everyone: list[Any] = gather_object([mine])
        return next((error for _, error in everyone if error), [value for value, _ in everyone])

    def _what_is_left(self) -> str:
        newest = next(reversed(list_checkpoints(self.run_dir)), None)
        return f"{newest} is unharmed" if newest else "there is no other checkpoint yet"

    def _has_room_for_a_copy(self) -> bool:
        """Whether this machine has the memory for all that its processes would copy."""
        fits = free_memory_bytes() > 2 * self.size
        if not fits and not self._said_no_copy:
            self._said_no_copy = True
            logger.info(
                "there is no memory for a copy of the state: the training waits while checkpoints are written"
            )
        return fits

    @contextlib.contextmanager
    def _standing_still(self, save: _Save) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self.stall_seconds += seconds
            save.stall_seconds += seconds


def is_writer(accelerator: Accelerator, each_node: bool) -> bool:
    """Whether this rank writes what one rank writes: the first one, or the first of each machine."""
    return accelerator.is_local_main_process if each_node else accelerator.is_main_process


def rotate(run_dir: Path, keep: int | None, newest: Path) -> None:
    """Delete checkpoints beyond `keep`, and what a killed run had begun; `newest` was just verified and stays.

    A checkpoint loses its name first, so that none is ever there in part. One that cannot be deleted stays, with a
    warning.
    """
    # Larger numbers than the one just written are damaged, or of a past that was left.
    paths = list_checkpoints(run_dir)
    step = step_of(newest)
    kept = [path for path in paths if step_of(path) <= step]
    for path in [path for path in paths if step_of(path) > step] + kept[: -keep if keep else 0]:
        try:
            _take_name(path)
        except OSError as error:
            logger.warning(f"warning: {path} is one too many, but cannot be deleted: {error}; it stays")
    clear_unfinished(run_dir)


def clear_unfinished(run_dir: Path) -> None:
    """Delete what a killed run had begun to write, or to delete."""
    for path in run_dir.glob(f"checkpoint-*{TEMPORARY}"):
        if NAME.fullmatch(path.stem):
            shutil.rmtree(path, ignore_errors=True)


def leave_behind(run_dir: Path, checkpoint: Path) -> None:
    """Take the names from a run's later checkpoints when it goes on from an earlier one; the next save deletes them."""
    for path in list_checkpoints(run_dir):
        if path.parent.resolve() == checkpoint.resolve().parent and step_of(path) > step_of(checkpoint):
            _take_name(path)


def _take_name(path: Path) -> None:
    """A checkpoint is none any more, and whoever deletes what is unfinished deletes it."""
    leaving = path.with_name(path.name + TEMPORARY)
    shutil.rmtree(leaving, ignore_errors=True)
    os.rename(path, leaving)


def is_disk_error(error: BaseException) -> bool:
    """Whether a file could not be written, as Python or the libraries in Rust say it."""
    return isinstance(error, (OSError, SafetensorError)) or "(os error " in str(error)


@contextlib.contextmanager
def _noting_errors(save: _Save) -> Iterator[None]:
    """Keep what goes wrong for the commit, where all ranks hear of it."""
    try:
        yield
    except BaseException as error:
        if is_disk_error(error):
            save.error = save.error or _explain(save.final, error)
        else:
            save.bug = error


def _explain(path: Path, error: BaseException) -> str:
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        return f"{first_line(error)} ({free / 2**20:,.0f} MB are free in {path.parent})"
    return first_line(error)
