"""Before the first step: can every rank that will write do so, and is there room for what the run will keep?"""

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from stylegen.checkpoint.manifest import files_in, settle_files, sync
from stylegen.checkpoint.save import is_disk_error, is_writer
from stylegen.config import UsageError, first_line

TRIAL = "checkpoint-trial.tmp"


def check_room(
    run_dir: Path,
    accelerator: Accelerator,
    size: int,
    model_size: int,
    kept: int,
    each_node: bool,
    write_small: Callable[[Path], None],
) -> None:
    """Raise UsageError, on every rank, if the run directory will not hold what the run saves; a collective.

    size         bytes of a checkpoint
    model_size   bytes of the model alone, of which the best one and its successor are kept
    kept         checkpoints that are there at a time at the most, the one being written among them
    write_small  writes what there is beside weights into a folder
    Leaves nothing behind. A quota that is smaller than the disk cannot be seen so.
    """
    folder = run_dir / TRIAL
    error = None
    if is_writer(accelerator, each_node):
        error = _room_error(run_dir, kept * size + 2 * model_size)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
            write_small(folder)
            settle_files(folder, files_in(folder))
        except Exception as refusal:
            if not is_disk_error(refusal):
                raise
            error = error or first_line(refusal)
    accelerator.wait_for_everyone()
    error = error or _trial_error(folder / f"rank-{accelerator.process_index}", size)
    errors = [(platform.node(), accelerator.process_index, error)]
    errors = gather_object(errors)
    if is_writer(accelerator, each_node):
        shutil.rmtree(folder, ignore_errors=True)
    for host, rank, problem in errors:
        if problem:
            where = f" of rank {rank} on {host}" if accelerator.num_processes > 1 else ""
            raise UsageError(f"output_dir {run_dir} cannot be used{where}: {problem}")


def _room_error(run_dir: Path, needed: int) -> str | None:
    there = [path for pattern in ("checkpoint-*/*", "best/*") for path in run_dir.glob(pattern)]
    held = sum(path.lstat().st_size for path in there)  # by what will make room for it
    nearest = next(path for path in (run_dir, *run_dir.resolve().parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    if free + held >= needed:
        return None
    return (
        f"its checkpoints and the best model take {needed / 2**20:,.1f} MB at a time, {(free + held) / 2**20:,.1f} MB "
        f"are free; free some, lower --save_total_limit, or choose another --output_dir"
    )


def _trial_error(path: Path, size: int) -> str | None:
    """Write a little, and let the file be as large as one of a checkpoint may get, which takes no room."""
    try:
        path.write_bytes(os.urandom(1 << 16))
        os.truncate(path, max(size, 1 << 16))
        sync(path)
        path.rename(path.with_suffix(".renamed"))
    except OSError as error:
        return f"a trial save failed ({first_line(error)}); make it writable, or choose another --output_dir"
    return None
