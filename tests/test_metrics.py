"""The formulas, against numbers worked out by hand."""

import math

import pytest

from stylegen.metrics import bits_per_byte, perplexity, weighted_mean


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (0.0, 1.0),  # certain
        (math.log(2), 2.0),
        (math.log(50257), 50257.0),  # as good as guessing among all words of GPT-2
        (3.0, 20.085536923187668),
        (10.0, 22026.465794806718),
    ],
)
def test_perplexity_is_the_number_of_equally_likely_tokens(loss, expected):
    assert perplexity(loss) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", [710.0, 1e6, math.inf])
def test_perplexity_too_large_for_a_float_is_infinite(loss):
    assert perplexity(loss) == math.inf


def test_perplexity_of_no_number_is_no_number():
    assert math.isnan(perplexity(math.nan))


@pytest.mark.parametrize(
    ("loss", "num_tokens", "num_bytes", "expected"),
    [
        (math.log(2), 10, 10, 1.0),  # one bit a token, one byte a token
        (math.log(2), 10, 40, 0.25),
        (math.log(256), 7, 7, 8.0),  # guessing bytes costs eight bits each
        (2 * math.log(2), 3, 12, 0.5),
        (0.0, 5, 20, 0.0),
        # 2.5 nats are 3.60674 bits; 4 bytes a token
        (2.5, 1000, 4000, 0.9016844),
    ],
)
def test_bits_per_byte_is_the_loss_in_bits_over_the_bytes(loss, num_tokens, num_bytes, expected):
    assert bits_per_byte(loss, num_tokens, num_bytes) == pytest.approx(expected, rel=1e-6)


def test_bits_per_byte_do_not_depend_on_how_the_text_is_cut_into_tokens():
    """The same total of 60 nats over the same 30 bytes, as 10, 20 or 30 tokens."""
    assert bits_per_byte(6.0, 10, 30) == pytest.approx(bits_per_byte(3.0, 20, 30))
    assert bits_per_byte(3.0, 20, 30) == pytest.approx(bits_per_byte(2.0, 30, 30))


@pytest.mark.parametrize(
    ("values", "weights", "expected"),
    [
        ([2.0], [5.0], 2.0),
        ([1.0, 2.0], [1.0, 1.0], 1.5),
        ([1.0, 2.0], [3.0, 1.0], 1.25),
        ([1.0, 2.0, 100.0], [1.0, 3.0, 0.0], 1.75),
    ],
)
def test_in_a_weighted_mean_each_value_counts_as_often_as_its_weight(values, weights, expected):
    assert weighted_mean(values, weights) == expected


@pytest.mark.parametrize(("values", "weights"), [([], []), ([1.0], [0.0])])
def test_a_mean_of_nothing_is_no_number(values, weights):
    assert math.isnan(weighted_mean(values, weights))


def test_values_and_weights_must_be_as_many():
    with pytest.raises(ValueError, match="shorter"):
        weighted_mean([1.0, 2.0], [1.0])
