"""Checkpoints that exist only when complete: written under another name, verified, then renamed.

checkpoint-000500/
  manifest.json        format, state of the loop, fingerprint of the data, size and sha256 of every other file
  config.json model.safetensors tokenizer.json ...   a plain Transformers folder
  optimizer.pt         state of the optimizer (and of the fp16 scaler), read with weights_only=True
  random-00000.pt      random generators of each rank
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

from stylegen.config import UsageError
from stylegen.runtime import logger, random_state, restore_random_state

FORMAT = 1
NAME = re.compile(r"checkpoint-(\d+)")


class NewerFormatError(UsageError):
    """A checkpoint of a later version of stylegen."""


def save_checkpoint(
    run_dir: Path,
    step: int,
    state: dict[str, Any],
    fingerprint: str,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    write_model: Callable[[Path], None],
    keep: int | None,
) -> Path:
    """Write checkpoint-`step` and then delete older ones beyond `keep`; a collective.

    state        the loop's own values, as JSON
    write_model  writes the model and tokenizer into a folder; called on the first rank
    """
    final = run_dir / f"checkpoint-{step:06d}"
    temporary = final.with_name(final.name + ".tmp")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    torch.save(random_state(), temporary / f"random-{accelerator.process_index:05d}.pt")
    if accelerator.is_main_process:
        write_model(temporary)
        scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
        torch.save({"optimizer": optimizer.state_dict(), "scaler": scaler}, temporary / "optimizer.pt")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        files = {path.name: _describe(path) for path in sorted(temporary.iterdir())}
        manifest = {
            "format": FORMAT,
            "world_size": accelerator.num_processes,
            "fingerprint": fingerprint,
            "state": state,
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
        is_newer = manifest["format"] > FORMAT
        if not is_newer and manifest["sha256"] != _digest(manifest):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError):
        raise UsageError(
            f"{checkpoint} is not a checkpoint of a run: it has no readable manifest.json"
        ) from None
    if is_newer:
        raise NewerFormatError(
            f"{checkpoint} has format {manifest['format']}, this version reads up to {FORMAT}; update stylegen"
        )
    return manifest


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None. Raises NewerFormatError, which is no damage."""
    try:
        manifest = read_manifest(checkpoint)
    except NewerFormatError:
        raise
    except UsageError as error:
        return str(error)
    for name, recorded in manifest["files"].items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if _describe(checkpoint / name) != recorded:
            return f"{name} is not as it was written (size or sha256 differ)"
    return None


def load_training_state(checkpoint: Path, accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> None:
    """Bring optimizer and random generators back; the model was loaded from the same folder."""
    saved = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(saved["optimizer"])
    if accelerator.scaler and saved["scaler"]:
        accelerator.scaler.load_state_dict(saved["scaler"])
    path = checkpoint / f"random-{accelerator.process_index:05d}.pt"
    if path.is_file():
        restore_random_state(torch.load(path, map_location="cpu", weights_only=True))
    else:
        logger.warning(
            f"warning: {checkpoint} has no random state for rank {accelerator.process_index}; dropout will differ"
        )


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
