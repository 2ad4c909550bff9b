"""Which blocks a step takes, and which of them a rank: functions of (seed, epoch, position) alone."""

import functools

import numpy as np


def step_indices(seed: int, epoch: int, position: int, num_blocks: int, total_batch_size: int) -> np.ndarray:
    """The blocks of one optimizer step: `position` counts steps within the epoch, the last may be short."""
    order = _epoch_order(seed, epoch, num_blocks)
    return order[position * total_batch_size : (position + 1) * total_batch_size]


def micro_batches(indices: np.ndarray, batch_size: int, world_size: int, rank: int) -> list[np.ndarray]:
    """The share of one rank in a step, one array a forward pass; all ranks get the same number of arrays.

    A short last group leaves some ranks with fewer blocks or none.
    """
    per_pass = batch_size * world_size
    passes = [indices[start : start + per_pass] for start in range(0, len(indices), per_pass)]
    return [part[rank * batch_size : (rank + 1) * batch_size] for part in passes]


@functools.lru_cache(maxsize=1)  # the next step asks for the same epoch
def _epoch_order(seed: int, epoch: int, num_blocks: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_blocks)
