"""Checkpoints that exist only when complete: written under another name, verified, then renamed.

checkpoint-000500/
  manifest.json        format, state of the loop, fingerprint of the data, size and sha256 of every other file
  config.json model.safetensors tokenizer.json ...   a plain Transformers folder
  optimizer-00001-of-00002.safetensors   whole tensors of the optimizer's state; each rank writes a share of them
  random-00000.pt      random generators of each rank, read with weights_only=True

The tensors are whole whatever the topology, so any other one can go on from them: DDP, FSDP2 or ZeRO, on any number of
processes. Without a shared file system each machine keeps a complete copy (`save_on_each_node`).
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from stylegen.config import UsageError
from stylegen.config.processes import local_world_size
from stylegen.runtime import logger, random_state, restore_random_state, seed_everything
from stylegen.sharding import load_optimizer_state, optimizer_state

FORMAT = 2
NAME = re.compile(r"checkpoint-(\d+)")


class OtherFormatError(UsageError):
    """A checkpoint of another version of stylegen."""


class OptimizerFiles:
    """The optimizer's state in a checkpoint, read tensor by tensor: `sharding.SavedState`."""

    def __init__(self, checkpoint: Path) -> None:
        self._where: dict[str, dict[str, Any]] = {}
        for path in sorted(checkpoint.glob("optimizer-*.safetensors")):
            file: Any = safe_open(str(path), framework="pt")
            for entry in file.keys():  # noqa: SIM118  it cannot be iterated over
                parameter, _, key = entry.rpartition("/")
                self._where.setdefault(parameter, {})[key] = file

    def keys(self, parameter: str) -> list[str]:
        return sorted(self._where.get(parameter, {}))

    def tensor(self, parameter: str, key: str) -> torch.Tensor:
        return self._where[parameter][key].get_tensor(f"{parameter}/{key}")


def is_writer(accelerator: Accelerator, each_node: bool) -> bool:
    """Whether this rank writes what one rank writes: the first one, or the first of each machine."""
    return accelerator.is_local_main_process if each_node else accelerator.is_main_process


def save_checkpoint(
    run_dir: Path,
    step: int,
    state: dict[str, Any],
    fingerprint: str,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    write_model: Callable[[Path], None],
    keep: int | None,
    each_node: bool = False,
) -> Path:
    """Write checkpoint-`step` and then delete older ones beyond `keep`; a collective.

    state        the loop's own values, as JSON
    model        the base model, whose names the optimizer's state is kept under
    write_model  writes the model and tokenizer into a folder, where this rank `is_writer`; called on every rank
    """
    final = run_dir / f"checkpoint-{step:06d}"
    temporary = final.with_name(final.name + ".tmp")
    writes = is_writer(accelerator, each_node)
    if writes:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    torch.save(random_state(), path := temporary / f"random-{accelerator.process_index:05d}.pt")
    _sync(path)
    write_model(temporary)
    _write_optimizer(temporary, accelerator, model, optimizer, each_node)
    accelerator.wait_for_everyone()
    if writes:
        files = {path.name: _describe(path) for path in sorted(temporary.iterdir())}
        written = sum(name.startswith(("random-", "optimizer-")) for name in files)
        savers = local_world_size() if each_node else accelerator.num_processes
        if written != 2 * savers:
            raise OSError(
                f"{temporary} shows {written} files of {savers} processes: its file system is not shared"
            )
        manifest = {
            "format": FORMAT,
            "world_size": accelerator.num_processes,
            "fingerprint": fingerprint,
            "state": state,
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
            "files": files,
        }
        manifest["sha256"] = _digest(manifest)
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for path in [*temporary.iterdir(), temporary]:
            _sync(path)
        if final.exists():  # the same step, written before a kill and reached again
            shutil.rmtree(final)
        os.rename(temporary, final)
        _sync(run_dir)
    accelerator.wait_for_everyone()  # no older one goes before every machine has this one
    if writes:
        _rotate(run_dir, keep, final)
    accelerator.wait_for_everyone()
    return final


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first; anything else that lies there is left out."""
    found = [
        (int(match[1]), path) for path in run_dir.glob("checkpoint-*") if (match := NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found) if (path / "manifest.json").is_file()]


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint whose files are all as they were written; damaged ones are named and passed over.

    Raises UsageError if there are checkpoints but none of them is whole.
    """
    checkpoints = list_checkpoints(run_dir)
    for path in reversed(checkpoints):
        if (damage := find_damage(path)) is None:
            return path
        logger.warning(f"warning: {path} is passed over: {damage}")
    if checkpoints:
        raise UsageError(
            f"every checkpoint in {run_dir} is damaged; restore one, or give --overwrite_output_dir to start afresh"
        )
    return None


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest. Raises UsageError if there is none, or one of a format that this version does not know."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        is_other = isinstance(manifest["format"], int) and manifest["format"] != FORMAT
        if not is_other and manifest["sha256"] != _digest(manifest):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError):
        raise UsageError(
            f"{checkpoint} is not a checkpoint of a run: it has no readable manifest.json"
        ) from None
    if is_other:
        remedy = "update stylegen" if manifest["format"] > FORMAT else "go on with the version that wrote it"
        raise OtherFormatError(
            f"{checkpoint} has format {manifest['format']}, this version reads format {FORMAT}; {remedy}, or start "
            f"afresh with --overwrite_output_dir"
        )
    return manifest


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None. Raises OtherFormatError, which is no damage."""
    try:
        manifest = read_manifest(checkpoint)
    except OtherFormatError:
        raise
    except UsageError as error:
        return str(error)
    for name, recorded in manifest["files"].items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if _describe(checkpoint / name) != recorded:
            return f"{name} is not as it was written (size or sha256 differ)"
    return None


def load_training_state(
    checkpoint: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    seed: int,
) -> None:
    """Bring optimizer and random generators back; the model was loaded from the same folder. A collective.

    A rank that the saved run did not have draws from `seed`, the step and its number.
    """
    manifest = read_manifest(checkpoint)
    load_optimizer_state(accelerator, model, optimizer, OptimizerFiles(checkpoint))
    if accelerator.scaler and manifest["scaler"]:
        accelerator.scaler.load_state_dict(manifest["scaler"])
    rank = accelerator.process_index
    path = checkpoint / f"random-{rank:05d}.pt"
    if path.is_file():
        restore_random_state(torch.load(path, map_location="cpu", weights_only=True))
    else:
        seed_everything(seed, rank, manifest["state"]["step"])
    if manifest["world_size"] != accelerator.num_processes:
        logger.info(
            f"{checkpoint} is of {manifest['world_size']} processes, now there are {accelerator.num_processes}: the "
            f"same blocks in the same steps; only dropout draws other numbers"
        )


def _write_optimizer(
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    each_node: bool,
) -> None:
    """Write this rank's share of the optimizer's state: each parameter goes to the rank that has least so far."""
    savers = local_world_size() if each_node else accelerator.num_processes
    mine = accelerator.local_process_index if each_node else accelerator.process_index
    share: dict[str, torch.Tensor] = {}
    owners: dict[str, int] = {}
    load = [0] * savers
    for parameter, key, tensor in optimizer_state(accelerator, model, optimizer):
        owner = owners.setdefault(parameter, load.index(min(load)))
        load[owner] += tensor.numel()
        if owner == mine:
            share[f"{parameter}/{key}"] = tensor.detach().cpu().contiguous()
    path = folder / f"optimizer-{mine + 1:05d}-of-{savers:05d}.safetensors"
    save_file(share, str(path))
    _sync(path)


def _rotate(run_dir: Path, keep: int | None, newest: Path) -> None:
    if keep is None:
        return
    # Larger numbers than the one just written are damaged, or of a past that was left: they go first.
    step = _step(newest)
    paths = sorted(list_checkpoints(run_dir), key=lambda path: (_step(path) <= step, _step(path)))
    for path in paths[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _digest(manifest: dict[str, Any]) -> str:
    """Of everything in a manifest but the digest itself."""
    values = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
