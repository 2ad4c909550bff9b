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
