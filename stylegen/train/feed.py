"""The blocks of each step on the device, those of the next pass on their way while the device works on this one."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from stylegen.blocks import Blocks, micro_batches, step_indices
from stylegen.config import TrainArguments


@dataclass(frozen=True)
class StepBlocks:
    """indices: the step's blocks over all ranks; shares: those of this rank, one array a forward pass."""

    epoch: int
    indices: np.ndarray
    shares: list[np.ndarray]


class Feed:
    """Batches by (step, pass): functions of these alone, whatever was asked for before."""

    def __init__(
        self, arguments: TrainArguments, accelerator: Accelerator, blocks: Blocks, steps_per_epoch: int
    ):
        self.arguments, self.accelerator, self.blocks = arguments, accelerator, blocks
        self.steps_per_epoch = steps_per_epoch
        self.waited_seconds = 0.0  # for data, since the last logged row
        self._next: tuple[tuple[int, int], dict[str, torch.Tensor]] | None = None

    def of_step(self, step: int) -> StepBlocks:
        """Which blocks the optimizer step after `step` others takes."""
        epoch, position = divmod(step, self.steps_per_epoch)
        arguments, accelerator = self.arguments, self.accelerator
        indices = step_indices(
            arguments.seed, epoch, position, len(self.blocks), arguments.total_batch_size or 0
        )
        shares = micro_batches(
            indices, arguments.per_device_train_batch_size, accelerator.num_processes,
            accelerator.process_index,
        )  # fmt: skip
        return StepBlocks(epoch, indices, shares)

    def take(self, step: int, number: int, blocks: StepBlocks) -> dict[str, torch.Tensor]:
        """The batch of one forward pass, on the device."""
        waiting = time.perf_counter()
        key, prepared = self._next or (None, {})
        batch = prepared if key == (step, number) else self._read(blocks, number)
        self._next = None
        self.waited_seconds += time.perf_counter() - waiting
        return batch

    def prepare(self, step: int, number: int, blocks: StepBlocks) -> None:
        """Begin to bring the batch that comes next, of this step or the next one."""
        if number == len(blocks.shares):
            step, number, blocks = step + 1, 0, self.of_step(step + 1)
        self._next = (step, number), self._read(blocks, number)

    def _read(self, blocks: StepBlocks, number: int) -> dict[str, torch.Tensor]:
        batch = self.blocks.batch(blocks.shares[number], blocks.epoch)
        device = self.accelerator.device
        if device.type != "cuda":
            return {name: tensor.to(device) for name, tensor in batch.items()}
        # Only from memory that stays where it is can the device fetch by itself.
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}
