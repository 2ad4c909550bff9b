"""What makes a folder a checkpoint: a manifest that lists every other file with its size and sha256.

A folder without one, or whose files are not as listed, is never trusted. Other files and folders are never touched.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stylegen.config import UsageError
from stylegen.runtime import logger

FORMAT = 3
MANIFEST = "manifest.json"
OLD = ".old"  # ends the name of a folder whose successor is about to take its place
NAME = re.compile(r"checkpoint-(\d+)")


class OtherFormatError(UsageError):
    """A checkpoint of another version of stylegen."""


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first; anything else that lies there is left out."""
    found = [
        (int(match[1]), path) for path in run_dir.glob("checkpoint-*") if (match := NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found) if (path / MANIFEST).is_file()]


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(checkpoint.name.rpartition("-")[2])


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
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        is_other = isinstance(manifest["format"], int) and manifest["format"] != FORMAT
        if not is_other and manifest["sha256"] != _digest(manifest):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError):
        raise UsageError(
            f"{checkpoint} is not a checkpoint of a run: it has no readable {MANIFEST}"
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
        try:
            if describe_file(checkpoint / name) != recorded:
                return f"{name} is not as it was written (size or sha256 differ)"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def write_manifest(folder: Path, values: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
    """Complete a folder whose `files` are on the disk: {name: what `describe_file` or `settle_file` says}.

    Raises OSError if one of them is not there: another machine wrote it, and its disk is not this one.
    """
    for name, recorded in files.items():
        with open(folder / name, "rb") as file:  # opened, a network file system says the size of now
            if os.fstat(file.fileno()).st_size != recorded["bytes"]:
                raise OSError(
                    f"{folder / name} is not here as another rank has written it: not a shared disk"
                )
    manifest = {"format": FORMAT, **values, "files": files}
    manifest["sha256"] = _digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    sync(folder / MANIFEST)
    sync(folder)


def put_in_place(temporary: Path, final: Path) -> None:
    """Give a finished folder its name; one that had it before is there until then, under another one."""
    old = final.with_name(final.name + OLD)
    if replaces := final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    try:
        os.rename(temporary, final)
    except OSError:
        if replaces:
            os.rename(old, final)
        raise
    sync(final.parent)
    if replaces:
        shutil.rmtree(old, ignore_errors=True)


def recover_folders(run_dir: Path) -> None:
    """Give back its name to what a kill in `put_in_place` has left without one."""
    for old in run_dir.glob(f"*{OLD}"):
        final = old.with_suffix("")
        if NAME.fullmatch(final.name) or final.name == "best":
            if final.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(old, final)


def files_in(folder: Path) -> list[Path]:
    """The files in a folder and those below it, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def describe_file(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file."""
    with open(path, "rb") as file:
        return {
            "bytes": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def settle_file(path: Path) -> dict[str, Any]:
    """Bring a file to the disk and read it back from there; returns what `describe_file` says.

    Raises OSError if the disk does not give what was written.
    """
    with contextlib.suppress(
        OSError
    ):  # safetensors lets nobody else read, and not every file system has modes
        path.chmod(path.parent.stat().st_mode & 0o666)
    written = describe_file(path)
    sync(path, forget=True)
    if describe_file(path) != written:
        raise OSError(f"{path} is not on the disk as it was written")
    return written


def settle_files(folder: Path, paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Settle files of a folder; returns what `write_manifest` takes, by their names in the folder."""
    return {path.relative_to(folder).as_posix(): settle_file(path) for path in paths}


def sync(path: Path, forget: bool = False) -> None:
    """Wait until a file or folder is on the disk; `forget` drops what the kernel keeps of it in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if forget and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _digest(manifest: dict[str, Any]) -> str:
    """Of everything in a manifest but the digest itself."""
    values = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
