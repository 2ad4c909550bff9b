"""What the loop works with, its own values, and the questions about both that more than one of its parts asks."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stylegen.blocks import Blocks
from stylegen.checkpoint import Saver
from stylegen.compiled import uncompiled
from stylegen.config import TrainArguments
from stylegen.runtime import Watchdog
from stylegen.stop import StopRequest
from stylegen.style import StyleReference
from stylegen.tracking import Tracker
from stylegen.train.feed import Feed
from stylegen.train.spikes import LossSpikes


@dataclass
class State:
    """The loop's own values; a checkpoint keeps them as JSON."""

    step: int = 0  # optimizer steps done
    turned: int | None = None  # the last step whose evaluation and samples are done
    num_steps: int = 0  # that the run is to take, which the learning rate depends on
    tokens_seen: int = 0  # predicted tokens over all ranks
    loss_sum: float = 0.0  # of this rank since the last logged row, in nats
    loss_tokens: int = 0  # of all ranks since the last logged row
    skipped_steps: int = 0  # in all, since their loss or gradient was not finite
    skipped_in_a_row: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    watched_metric: str = "eval/loss"  # the early_stopping_metric of these three
    watched: float | None = None  # its last value
    best_watched: float | None = None
    stale_evaluations: int = 0  # values of it since the best one
    finished: bool = False
    stopped_by: str | None = (
        None  # why the checkpoint was written before its time: a signal, or what STOP says
    )
    check_loss: float | None = (
        None  # of the best model on the first validation block, to compare after saving it
    )


@dataclass
class Run:
    """What the loop works with."""

    arguments: TrainArguments
    accelerator: Accelerator
    model: nn.Module  # LanguageModelLoss, prepared
    base_model: PreTrainedModel  # the one inside
    optimizer: Optimizer
    schedule: Callable[[int], float]  # step -> learning rate
    train_blocks: Blocks
    feed: Feed  # of them
    validation_blocks: Blocks
    validation_bytes: int  # of text behind the predicted tokens
    tokenizer: PreTrainedTokenizerFast
    fingerprints: dict[str, str]  # of the text and of the tokenizer
    steps_per_epoch: int
    num_steps: int
    tracker: Tracker
    resumed_at: int | None  # the step of the checkpoint it goes on from
    was_killed: bool  # the life before did not end by itself
    watchdog: Watchdog
    saver: Saver
    stop: StopRequest
    flops_per_token: float  # of a training step
    peak_flops: float | None  # of a device, a second, where that is known
    seconds_to_first_step: float = 0.0  # from the start of the command, until it is logged
    spikes: LossSpikes = field(default_factory=LossSpikes)
    style: StyleReference | None = None  # of the text, once it is asked for; on the first rank
    told_no_distance: bool = False
    models_logged: int = 0  # the step of the last checkpoint whose model a tracker has

    @property
    def writes(self) -> bool:
        """Whether this rank writes what one rank writes."""
        return self.saver.writes

    def uncompiled(self) -> contextlib.AbstractContextManager[Any]:
        """Around what is no training step: it has shapes of its own, each of which would be compiled anew."""
        return uncompiled() if self.arguments.torch_compile else contextlib.nullcontext()

    @property
    def directory(self) -> Path:
        return self.arguments.output_path


def axes(run: Run, state: State) -> dict[str, float]:
    """What every logged row carries: where in the run it belongs."""
    return {
        "train/epoch": state.step / run.steps_per_epoch,
        "train/global_step": state.step,
        "train/tokens_seen": state.tokens_seen,
    }


def is_due(rhythm: int | str, step: int, run: Run) -> bool:
    """Whether something done every `rhythm` steps, or "epoch", or only at the "end", is done after `step` steps."""
    if rhythm == "end" or step == 0:
        return False
    return step % (run.steps_per_epoch if rhythm == "epoch" else int(rhythm)) == 0


def watch(run: Run, state: State, values: dict[str, float]) -> None:
    """Note the value that early stopping goes by, if it is among these."""
    metric = run.arguments.early_stopping_metric
    if (value := values.get(metric)) is None:
        return
    if metric != state.watched_metric:  # the run began with another one
        state.watched_metric, state.best_watched, state.stale_evaluations = metric, None, 0
    state.watched = value
    if value < (math.inf if state.best_watched is None else state.best_watched):  # NaN is not
        state.best_watched, state.stale_evaluations = value, 0
    else:
        state.stale_evaluations += 1


def stops_early(run: Run, state: State) -> bool:
    """Whether early stopping ends the run here."""
    if state.watched_metric != run.arguments.early_stopping_metric:
        return False
    patience, threshold = run.arguments.early_stopping_patience, run.arguments.early_stopping_threshold
    too_long = patience is not None and state.stale_evaluations >= patience
    return too_long or (threshold is not None and state.watched is not None and state.watched > threshold)


def sum_over_ranks(run: Run, value: float) -> float:
    """The sum of one number of each rank, in float64; a collective."""
    if run.accelerator.num_processes == 1:
        return value
    return run.accelerator.reduce(
        torch.tensor(value, dtype=torch.float64, device=run.accelerator.device)
    ).item()
