"""Memory that runs out: tried before the first step, where a smaller micro-batch can still be taken, told later.

Within a step it is too late to change anything: one rank that fails in its backward pass leaves the others in a
collective. The trial runs without any, and only then do the ranks agree.
"""

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from stylegen.blocks import Blocks
from stylegen.checkpoint import list_checkpoints
from stylegen.config import RankError, TrainArguments, UsageError, first_line, read_preset
from stylegen.runtime import cuts_weights, logger, random_state, restore_random_state, zero_stage
from stylegen.train.state import Run, State

STATE_BYTES = 8  # of AdamW a parameter, which it makes in the first step
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's or the machine's memory ran out, as the libraries say it."""
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return told or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def fit_micro_batch(
    arguments: TrainArguments,
    accelerator: Accelerator,
    model: nn.Module,
    blocks: Blocks,
    checkpoint: Path | None,
) -> TrainArguments:
    """The arguments with a per_device_train_batch_size that fits in the memory of all ranks, if they ask for it.

    The total batch and the order of its blocks stay. A collective that leaves nothing behind.

    model       prepared
    checkpoint  of the run that goes on: the size that it had, if smaller, is the largest tried, for equal numbers
    Raises UsageError if not even one block fits.
    """
    if not arguments.auto_micro_batch:
        return arguments
    share = (arguments.total_batch_size or 0) // accelerator.num_processes
    asked = size = arguments.per_device_train_batch_size
    why = "as it was before"
    settings = checkpoint and checkpoint.parent / "config.yaml"
    if settings and settings.is_file():
        before = read_preset(TrainArguments, settings).get("per_device_train_batch_size", asked)
        size = before if before < asked and share % before == 0 else asked
    while full := _ranks_out_of_memory(accelerator, model, blocks, size, share // size):
        if size == 1:
            raise UsageError(
                f"not even one block of {arguments.block_size} tokens in a pass fits in the memory of {full}; use a "
                f"smaller --block_size or model, --gradient_checkpointing, or configs/accelerate/fsdp.yaml"
            )
        size, why = _smaller(size, share), f"more does not fit in the memory of {full}"
    if size < asked:
        logger.info(
            f"per_device_train_batch_size is {size} instead of {asked}, {why}: with {share // size} passes a step has "
            f"the same {arguments.total_batch_size} blocks"
        )
    return replace(arguments, per_device_train_batch_size=size, gradient_accumulation_steps=share // size)


@contextlib.contextmanager
def explained(run: Run, state: State) -> Iterator[None]:
    """Turn an error for want of memory into a RankError that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        arguments = run.arguments
        size, total = arguments.per_device_train_batch_size, arguments.total_batch_size
        remedies = ["--gradient_checkpointing"] if not arguments.gradient_checkpointing else []
        if size > 1:
            smaller = _smaller(size, (total or 0) // run.accelerator.num_processes)
            remedies.append(f"--per_device_train_batch_size {smaller} --total_batch_size {total}")
            if not (arguments.auto_micro_batch or cuts_weights(run.accelerator)):
                remedies.append("--auto_micro_batch")
        if run.accelerator.num_processes == 1:  # of several, only this one is here
            run.saver.finish(rotating=False)
        saved = list_checkpoints(run.directory)
        raise RankError(
            f"out of memory in step {state.step + 1}, with {size} blocks of {arguments.block_size} tokens in a pass "
            f"({first_line(error)}); give {', or '.join(remedies[::-1] or ['a smaller --block_size'])}; "
            f"{f'{saved[-1]} is unharmed' if saved else 'no checkpoint was written yet'}"
        ) from error


def _smaller(size: int, share: int) -> int:
    """Half of `size`, or the next below that divides the blocks which a rank has in a step."""
    return max(part for part in range(1, size // 2 + 1) if share % part == 0)


def _ranks_out_of_memory(
    accelerator: Accelerator, model: nn.Module, blocks: Blocks, size: int, passes: int
) -> str:
    """As "rank 1, 3", or nothing if a micro-batch of `size` blocks fits everywhere."""
    batch = blocks.batch(np.arange(min(size, len(blocks))))
    fits = _fits(
        accelerator, model, {name: tensor.to(accelerator.device) for name, tensor in batch.items()}, passes
    )
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    answers = accelerator.gather(torch.tensor([int(fits)], device=accelerator.device)).tolist()
    full = ", ".join(str(rank) for rank, answer in enumerate(answers) if not answer)
    return f"rank {full}" if full else ""


def _fits(accelerator: Accelerator, model: nn.Module, batch: dict[str, torch.Tensor], passes: int) -> bool:
    """Whether one forward and backward pass has room beside the optimizer's state and the gradients of earlier passes.

    `autograd.grad` runs none of the hooks by which gradients meet, and leaves none in the parameters.
    """
    model.train()
    module = accelerator.unwrap_model(model)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    stage, world_size = zero_stage(accelerator), accelerator.num_processes
    state = STATE_BYTES * sum(parameter.numel() for parameter in parameters) // (world_size if stage else 1)
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    room = state + (gradients // (world_size if stage == 2 else 1) if passes > 1 else 0)
    kept = random_state()
    try:
        held = torch.empty(room, dtype=torch.uint8, device=accelerator.device)
        loss, _ = module(**batch)
        torch.autograd.grad(loss, parameters, allow_unused=True)
        del held
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        restore_random_state(kept)
