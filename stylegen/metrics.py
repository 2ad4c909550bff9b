"""Pure formulas, so that every number in a report can be checked by hand."""

import math


def perplexity(loss_nats: float) -> float:
    """exp of the mean cross-entropy per token in nats: how many equally likely tokens the model hesitates over."""
    return math.inf if loss_nats > 700 else math.exp(loss_nats)


def bits_per_byte(loss_nats: float, num_tokens: int, num_bytes: int) -> float:
    """Loss per UTF-8 byte of text, comparable across tokenizers, unlike perplexity.

    loss_nats   mean cross-entropy per predicted token, in nats
    num_tokens  predicted tokens the mean was taken over
    num_bytes   UTF-8 bytes of the text they decode to
    """
    return loss_nats * num_tokens / (num_bytes * math.log(2))


def weighted_mean(values: list[float], weights: list[float]) -> float:
    """Mean of `values` where each counts as often as its weight; nan if the weights sum to 0."""
    total = sum(weights)
    return (
        sum(value * weight for value, weight in zip(values, weights, strict=True)) / total
        if total
        else math.nan
    )


def training_bytes(num_parameters: int, num_processes: int, stage: int, bytes_per_weight: int = 4) -> float:
    """Memory of one process for weights, gradients and AdamW's state, without activations.

    stage             what is cut over the processes, as ZeRO counts (Rajbhandari et al., 2020): 1 the state of the
                      optimizer, 2 gradients too, 3 weights too (as FSDP does), 0 nothing
    bytes_per_weight  4, or 2 where the weights are bf16 or fp16 and the optimizer has fp32 ones of its own
    """
    state = 8 + (4 if bytes_per_weight < 4 else 0)
    cut = [
        state if stage >= 1 else 0,
        bytes_per_weight if stage >= 2 else 0,
        bytes_per_weight if stage >= 3 else 0,
    ]
    whole = state + 2 * bytes_per_weight - sum(cut)
    return num_parameters * (whole + sum(cut) / num_processes)
