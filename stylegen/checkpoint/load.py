"""The state of a training out of a checkpoint: optimizer, random generators, loss scale."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from torch import nn

from stylegen.checkpoint.manifest import read_manifest
from stylegen.config import UsageError
from stylegen.runtime import logger, restore_random_state, seed_everything
from stylegen.sharding import load_optimizer_state


class OptimizerFiles:
    """The optimizer's state in a checkpoint, read tensor by tensor: `sharding.SavedState`."""

    def __init__(self, checkpoint: Path) -> None:
        self._where: dict[str, dict[str, Any]] = {}
        for path in sorted(checkpoint.glob("optimizer-*.safetensors")):
            with _named(path):
                file: Any = safe_open(str(path), framework="pt")
            for entry in file.keys():  # noqa: SIM118  it cannot be iterated over
                parameter, _, key = entry.rpartition("/")
                self._where.setdefault(parameter, {})[key] = file

    def keys(self, parameter: str) -> list[str]:
        return sorted(self._where.get(parameter, {}))

    def tensor(self, parameter: str, key: str) -> torch.Tensor:
        return self._where[parameter][key].get_tensor(f"{parameter}/{key}")


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
        with _named(path):
            restore_random_state(torch.load(path, map_location="cpu", weights_only=True))
    elif rank < manifest["world_size"] == accelerator.num_processes:
        raise UsageError(
            f"{path} is missing, without which dropout would draw other numbers than in a run that was never stopped; "
            f"start rank {rank} on the machine that it was on before"
        )
    else:
        seed_everything(seed, rank, manifest["state"]["step"])
    if manifest["world_size"] != accelerator.num_processes:
        logger.info(
            f"{checkpoint} is of {manifest['world_size']} processes, now there are {accelerator.num_processes}: the "
            f"same blocks in the same steps; only dropout draws other numbers"
        )


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """A file that is as it was written, but not by a run, is named."""
    try:
        yield
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError):
        raise UsageError(f"{path} is not what a run writes; go on from another checkpoint") from None
