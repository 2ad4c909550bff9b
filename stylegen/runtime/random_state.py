"""Random generators: seeded alike on every machine, kept in checkpoints, brought back exactly."""

import random
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed


def seed_everything(seed: int, rank: int = 0, step: int = 0) -> None:
    """Seed Python, numpy and torch on all devices; `rank` and `step` make other numbers of it."""
    if rank or step:
        seed = int(np.random.SeedSequence([seed, rank, step]).generate_state(1)[0])
    set_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of every generator that training draws from: plain values and tensors."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo everything drawn since `random_state`."""
    version_, internal, gauss = state["python"]
    random.setstate((version_, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
