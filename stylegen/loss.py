"""The loss of a causal language model, without ever holding all of its logits.

`LanguageModelLoss` wraps the model so that logits never leave its forward pass: it takes our labels (already
the next token of each input) and returns sums. Transformers' own loss shifts the labels and so skips a token a
block, and its mean cannot be weighted over batches.

With a large vocabulary the logits are most of the memory of a step. Where they are nothing but a linear layer of the
last hidden states, as in nearly every architecture, its place is taken by `linear_cross_entropy`, which goes over them
in chunks and keeps gradients instead.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from stylegen.model import compute_logits

IGNORED = -100  # the label that the loss leaves out
CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**29}  # of fp32 probabilities
ROW_MULTIPLE = 64  # matrix products are faster when their sides are multiples of it


class LanguageModelLoss(nn.Module):
    """A causal language model with its loss as one module, to be wrapped by DDP as a whole."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        # What Accelerate asks the outermost module for: the layers that are sharded one by one, and its width.
        self._no_split_modules = list(model._no_split_modules or ())
        self.config = model.config
        self.is_chunked = ends_in_linear(model)

    def tie_weights(self) -> None:
        """Tie the output layer to the embedding anew, where sharding has made new tensors of both."""
        self.model.tie_weights()

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(sum of cross-entropies in nats, number of right guesses) over the labels that are not ignored.

        input_ids, labels  int64 (B, T); labels[b, t] is the token after input_ids[b, t], or IGNORED
        position_ids       int64 (B, T) where documents share a block: they begin anew at 0 with each document
        The right guesses are counted where no gradient is taken; else they are 0.
        """
        if self.is_chunked:
            with _summing_head(self.model.get_output_embeddings(), labels):
                sums = compute_logits(self.model, input_ids, position_ids)
            return sums[0], sums[1].detach().long()
        logits = compute_logits(self.model, input_ids, position_ids).flatten(0, 1).float()  # (B T, V)
        targets = labels.flatten()
        loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        correct = targets.new_zeros(())
        if not torch.is_grad_enabled():
            correct = (logits.argmax(-1) == targets).sum()
        return loss, correct


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, chunk_rows: int
) -> torch.Tensor:
    """Float (2,): the sum of cross-entropies in nats of logits `hidden @ weight.T`, and the number of right guesses.

    hidden      (N, D)
    weight      (V, D), without a bias
    labels      int64 (N,), IGNORED where a row does not count
    chunk_rows  rows whose logits exist at a time
    Values and gradients are those of torch's cross_entropy in fp32 over logits in the type of autocast. Where a
    gradient is taken it is computed along with the value, right guesses are not (0), and backward may be called once.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        loss = _LinearCrossEntropy.apply(hidden, weight, labels, chunk_rows, dtype)
        return torch.stack([loss, loss.new_zeros(())])
    return _evaluate(hidden, weight, labels, chunk_rows, dtype)


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Rows of logits that `linear_cross_entropy` is to hold at a time."""
    fitting = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (4 * vocab_size)
    return max(fitting // ROW_MULTIPLE, 1) * ROW_MULTIPLE


@torch.no_grad()
def ends_in_linear(model: PreTrainedModel) -> bool:
    """Whether the model's logits are what its output layer gives, no more: neither scaled, nor capped, nor biased.

    Tried out on two tokens, with an output that is large, as a cap leaves small ones alone; draws no random number.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    given: list[torch.Tensor] = []

    def replace(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        given.append(torch.linspace(-1e3, 1e3, output.numel()).view_as(output).to(output))
        return given[-1]

    hook = head.register_forward_hook(replace)
    was_training = model.training
    model.eval()
    try:
        logits = compute_logits(model, torch.zeros(1, 2, dtype=torch.long, device=head.weight.device), None)
    finally:
        hook.remove()
        model.train(was_training)
    return len(given) == 1 and torch.equal(given[0].float(), logits.float())


@contextlib.contextmanager
def _summing_head(head: Any, labels: torch.Tensor) -> Iterator[None]:
    """The output layer gives `linear_cross_entropy` in place of logits for a while.

    It is called as the module that it is, so that what shards its weights is told when they are needed.
    """

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        rows = chunk_rows(head.weight.size(0), hidden.device)
        return linear_cross_entropy(hidden.flatten(0, -2), head.weight, labels.flatten(), rows)

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum of cross-entropies; its forward pass computes both gradients, chunk by chunk, and keeps only them."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, chunk_rows, dtype):
        counts, columns = _counting(labels)
        inputs, padded = hidden.to(dtype), _padded(weight, dtype)
        of_hidden, of_weight = torch.empty_like(inputs), None
        if ctx.needs_input_grad[1]:
            of_weight, product = torch.zeros_like(padded, dtype=torch.float32), torch.empty_like(padded)
        # The same memory for every chunk: fresh one would be scattered.
        shape = min(chunk_rows, len(hidden)), len(padded)
        logits_memory = hidden.new_empty(shape, dtype=dtype)
        memory = hidden.new_empty(shape, dtype=torch.float32)
        losses = []
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _chunks(len(hidden), chunk_rows):
                column, count = columns[rows], len(columns[rows])
                logits = _masked_logits(inputs[rows], padded, len(weight), logits_memory[:count])
                highest, own = logits.amax(-1, keepdim=True).float(), logits.gather(1, column).float()
                probabilities = torch.softmax(logits, -1, dtype=torch.float32, out=memory[:count])
                # The highest one's is 1 / sum of exp(logit - highest): its logarithm never underflows.
                losses.append(highest - own - probabilities.amax(-1, keepdim=True).log())
                probabilities.scatter_(1, column, probabilities.gather(1, column) - 1)
                gradient = logits.copy_(probabilities)  # that of the logits
                torch.mm(gradient, padded, out=of_hidden[rows])
                if of_weight is not None:
                    # Rows that do not count are left out here: it is the shorter side.
                    counted = inputs[rows] if counts is None else inputs[rows] * counts[rows].to(dtype)
                    _add_product(of_weight, gradient.t(), counted, product)
        loss = torch.cat(losses)
        if counts is not None:
            loss, of_hidden = torch.where(counts, loss, 0), torch.where(counts, of_hidden, 0)
        if of_weight is not None:
            of_weight = of_weight[: len(weight)].to(weight.dtype)
        ctx.save_for_backward(of_hidden.to(hidden.dtype), of_weight)
        return loss.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, scale):
        of_hidden, of_weight = ctx.saved_tensors
        return of_hidden.mul_(scale), None if of_weight is None else of_weight.mul_(scale), None, None, None


def _evaluate(hidden, weight, labels, chunk_rows, dtype) -> torch.Tensor:
    loss_sum, correct = hidden.new_zeros((), dtype=torch.float32), labels.new_zeros(())
    inputs, padded = hidden.to(dtype), _padded(weight, dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in _chunks(len(hidden), chunk_rows):
            logits = _masked_logits(inputs[rows], padded, len(weight))
            loss_sum = loss_sum + F.cross_entropy(
                logits.float(), labels[rows], ignore_index=IGNORED, reduction="sum"
            )
            correct = correct + (logits.argmax(-1) == labels[rows]).sum()
    return torch.stack([loss_sum, correct.float()])


def _counting(labels: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """(bool (N, 1): which rows count, or None if all do; int64 (N, 1): their labels, 0 where they do not)."""
    counts = labels != IGNORED
    if labels.device.type == "cpu" and counts.all():  # elsewhere asking would cost a wait for the device
        return None, labels[:, None]
    return counts[:, None], labels.clamp(min=0)[:, None]


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _padded(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In another type, with rows of zeros below up to the next multiple of ROW_MULTIPLE."""
    rows = len(weight)
    if rows % ROW_MULTIPLE == 0:
        return weight.to(dtype)
    padded = weight.new_zeros((rows + -rows % ROW_MULTIPLE, weight.size(1)), dtype=dtype)
    padded[:rows] = weight
    return padded


def _masked_logits(
    inputs: torch.Tensor, padded: torch.Tensor, vocab_size: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    logits = torch.mm(inputs, padded.t(), out=out)
    logits[:, vocab_size:] = float("-inf")
    return logits


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, memory: torch.Tensor) -> None:
    """total += left @ right in fp32; `memory` is of the size of the product, in its type."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        total.add_(torch.mm(left, right, out=memory))
