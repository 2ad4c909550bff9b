"""Token-exact evaluation: sums over every predicted token, divided once, the same on any number of processes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from stylegen.blocks import Blocks, micro_batches
from stylegen.metrics import bits_per_byte, perplexity


@dataclass(frozen=True)
class Evaluation:
    """loss: mean cross-entropy in nats per token; accuracy: share of tokens guessed right; tokens: how many."""

    loss: float
    accuracy: float
    tokens: int

    def metrics(self, num_bytes: int) -> dict[str, float]:
        """The `eval/*` values of a logged row; `num_bytes` as `blocks.predicted_bytes` counts them."""
        return {
            "eval/loss": self.loss,
            "eval/accuracy": self.accuracy,
            "eval/perplexity": perplexity(self.loss),
            "eval/bits_per_byte": bits_per_byte(self.loss, self.tokens, num_bytes),
            "eval/tokens": self.tokens,
        }


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    blocks: Blocks,
    batch_size: int,
    accelerator: Accelerator,
    interrupted: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Evaluate a prepared `LanguageModelLoss` on all `blocks`; a collective, to be called on every rank.

    The sums are kept in float64 and reduced once. The model is left in training mode, no generator is touched.

    interrupted  asked before each batch, the same answer on all ranks; if it is yes the result is None
    """
    model.eval()
    loss_sum, num_correct = 0.0, 0
    indices = np.arange(len(blocks))
    for share in micro_batches(indices, batch_size, accelerator.num_processes, accelerator.process_index):
        if interrupted():
            model.train()
            return None
        batch = {name: tensor.to(accelerator.device) for name, tensor in blocks.batch(share).items()}
        loss, correct = model(**batch)
        loss_sum += loss.item()
        num_correct += int(correct.item())
    model.train()
    if accelerator.num_processes > 1:
        sums = torch.tensor([loss_sum, num_correct], dtype=torch.float64, device=accelerator.device)
        loss_sum, num_correct = accelerator.reduce(sums).tolist()
    tokens = blocks.num_labels(indices)
    return Evaluation(loss=loss_sum / tokens, accuracy=num_correct / tokens, tokens=tokens)


@torch.no_grad()
def first_block_loss(model: torch.nn.Module, blocks: Blocks, device: torch.device) -> float:
    """Mean loss of a `LanguageModelLoss` on the first block, in nats per token: what a saved model is compared by.

    A collective where the weights are cut over the processes. The model is left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    first = np.array([0])
    loss, _ = model(**{name: tensor.to(device) for name, tensor in blocks.batch(first).items()})
    model.train(was_training)
    return loss.item() / blocks.num_labels(first)
