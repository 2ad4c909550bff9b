"""Sick numbers, by what they come from: steps that are skipped, losses that jump, weights that drift apart.

A loss that is not finite makes the gradient of its rank NaN, and so that of all of them once it is reduced. The norm
tells every rank the same, without a question more: all skip the step. Only then is it looked for what the cause was.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn

from stylegen.blocks import describe_block, micro_batches
from stylegen.checkpoint import list_checkpoints, step_of
from stylegen.config import RunError
from stylegen.runtime import cuts_weights, logger
from stylegen.sharding import weight_checksums
from stylegen.train.state import Run, State

MOST_WARNINGS = 5  # of skipped steps in a row
MOST_PLACES = 3


@dataclass(frozen=True)
class _Block:
    """A block of a skipped step: whether the loss of its rank was finite, and that of the block alone."""

    rank_is_finite: bool
    place: str
    is_finite: bool


def is_sick(run: Run, grad_norm: float, loss_sum: float) -> bool:
    """Whether the step is to be skipped, the same on all ranks; a collective if the norm is not finite.

    In fp16 the scaling of the loss meets infinities and copes: there only the losses count.
    """
    if math.isfinite(grad_norm) or run.arguments.mixed_precision != "fp16":
        return not math.isfinite(grad_norm)
    return not all(gather_object([math.isfinite(loss_sum)]))


def note_skipped(
    run: Run, state: State, indices: np.ndarray, epoch: int, loss_sum: float, grad_norm: float
) -> None:
    """Count and tell a step that was skipped; a collective.

    indices   blocks of the step
    loss_sum  of this rank
    Raises FloatingPointError, the same on all ranks, after more than `max_skipped_steps` in a row.
    """
    state.skipped_steps += 1
    state.skipped_in_a_row += 1
    in_a_row, allowed = state.skipped_in_a_row, run.arguments.max_skipped_steps
    if MOST_WARNINGS < in_a_row <= allowed:
        return
    blocks = _examine(run, indices, epoch, loss_sum)
    cause = _cause(blocks, grad_norm)
    if in_a_row <= allowed:
        count = f"{state.skipped_steps} skipped so far, {in_a_row} in a row"
        logger.warning(
            f"warning: step {state.step} is skipped, {cause}; the weights stay as they were; {count}"
        )
        # The training text, which the cause quotes, stays here.
        run.tracker.alert("Not a finite number", f"step {state.step} is skipped; {count}")
        return
    sick = sum(not block.is_finite for block in blocks)
    spoilt = sick == len(blocks)  # the weights more likely than all of the text
    remedy = "take this text out, or give more --max_skipped_steps"
    if spoilt or not sick:
        remedy = "start again with a lower --learning_rate or more --num_warmup_steps"
    saved = _saved_before(run, state.step - in_a_row - 1 if spoilt else state.step)
    raise FloatingPointError(
        f"{in_a_row} step{'s' * (in_a_row > 1)} in a row, up to step {state.step}, had to be skipped "
        f"(--max_skipped_steps {allowed}): {cause} (learning rate {run.schedule(state.step - 1):.3g}); "
        f"{f'{saved} is unharmed' if saved else 'no checkpoint of before is left'}; {remedy}"
    )


def report_spike(run: Run, state: State, words: str, share: np.ndarray, epoch: int) -> None:
    """Tell of a loss that stands out, with the blocks of the pass, on whichever rank that was.

    Where this rank has all weights, it looks which of the blocks it was.
    """
    rank, most = run.accelerator.process_index, len(share)
    places = [describe_block(run.train_blocks, index, epoch, run.tokenizer) for index in share.tolist()]
    if not cuts_weights(run.accelerator):
        losses = _losses(run, run.accelerator.unwrap_model(run.model), share, epoch, len(share))
        tokens = [run.train_blocks.num_labels(share[number : number + 1]) for number in range(len(share))]
        means = [loss / max(count, 1) for loss, count in zip(losses, tokens, strict=True)]
        most = MOST_PLACES
        places = [f"{means[number]:.2f} in {places[number]}" for number in np.argsort(means)[::-1]]
    logger.error(  # other ranks than the first are heard only with errors
        f"warning: loss spike in step {state.step} on rank {rank}: {words}; its blocks: {_listed(places, most)}"
    )


def compare_weights(run: Run, state: State) -> None:
    """Raise RunError, on every rank, naming those whose weights are not, bit by bit, those of the most.

    A collective. State of the optimizer that differs shows in the weights one step later.
    """
    if run.accelerator.num_processes == 1:
        return
    everyone = run.accelerator.gather(weight_checksums(run.base_model)[None]).tolist()
    usual = Counter(map(tuple, everyone)).most_common(1)[0][0]  # rank 0's where as many have others
    names = [name for name, _ in run.base_model.named_parameters()]
    odd = [
        f"rank {rank} (first in {next(name for name, a, b in zip(names, sums, usual, strict=True) if a != b)})"
        for rank, sums in enumerate(everyone)
        if tuple(sums) != usual
    ]
    if odd:
        saved = _saved_before(run, state.step - run.arguments.detect_desync_steps)
        remedy = f"--resume_from_checkpoint {saved} goes back to before" if saved else "start again"
        raise RunError(
            f"the weights after step {state.step} are not the same on all ranks: {_listed(odd)} differ"
            f"{'s' * (len(odd) == 1)} from {'the others' if len(odd) < len(everyone) - 1 else 'rank 0'}; a device or "
            f"its memory may be defective; {remedy}"
        )


def _examine(run: Run, indices: np.ndarray, epoch: int, loss_sum: float) -> list[_Block]:
    """Every block of the step, alone; a collective."""
    accelerator = run.accelerator
    size, world_size = run.arguments.per_device_train_batch_size, accelerator.num_processes
    rank = accelerator.process_index
    mine, most = (np.concatenate(micro_batches(indices, size, world_size, other)) for other in (rank, 0))
    losses = _losses(run, run.model, mine, epoch, len(most))
    places = [describe_block(run.train_blocks, index, epoch, run.tokenizer) for index in mine.tolist()]
    if world_size > 1:
        places = [f"{place} (rank {rank})" for place in places]
    return gather_object(
        [
            _Block(math.isfinite(loss_sum), place, math.isfinite(loss))
            for place, loss in zip(places, losses, strict=True)
        ]
    )


def _cause(blocks: list[_Block], grad_norm: float) -> str:
    """In words, with where the blocks come from that are to blame."""
    if blamed := [block for block in blocks if not block.is_finite]:
        what = "the loss is not finite in "
    elif blamed := [block for block in blocks if not block.rank_is_finite]:
        what = "the loss is not finite, though it is in each of its blocks alone: "
    else:
        blamed, what = blocks, f"the gradient is {grad_norm}, though the losses are finite: "
    return what + _listed([block.place for block in blamed])


@torch.no_grad()
def _losses(run: Run, model: nn.Module, indices: np.ndarray, epoch: int, passes: int) -> list[float]:
    """The loss of each block alone; `passes` forward passes, since with weights in pieces all ranks take part."""
    model.eval()
    losses = []
    for number in range(passes):
        run.watchdog.tick(f"looking for a sick block, {number + 1} of {passes}")
        batch = run.train_blocks.batch(indices[number : number + 1], epoch)
        with run.uncompiled():
            loss, _ = model(**{name: tensor.to(run.accelerator.device) for name, tensor in batch.items()})
        losses.append(loss.item())
    model.train()
    return losses[: len(indices)]


def _saved_before(run: Run, step: int) -> Path | None:
    """The newest checkpoint of this step or an earlier one, with that which is being written; a collective."""
    run.saver.finish(rotating=False)
    saved = [path for path in list_checkpoints(run.directory) if step_of(path) <= step]
    return saved[-1] if saved else None


def _listed(places: Sequence[str], most: int = MOST_PLACES) -> str:
    return "; ".join(places[:most]) + (f"; and {len(places) - most} more" if len(places) > most else "")
