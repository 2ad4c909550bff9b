"""The formulas, against numbers worked out by hand."""

import math

import pytest

from stylegen.metrics import (
    GPUS,
    bits_per_byte,
    find_gpu,
    flops_per_token,
    mfu,
    peak_flops,
    perplexity,
    product_precision,
    training_bytes,
    weighted_mean,
)


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


def test_mfu_of_palm_is_the_one_in_its_paper():
    """Chowdhery et al., 2022: 540B on 6,144 TPU v4 of 275 TFLOPS, 238.3K tokens/s: 46.2 %, 45.7 without attention."""
    flops = flops_per_token(540.35e9, num_layers=118, attention_width=48 * 256, block_size=2048)
    assert mfu(238.3e3, flops, 275e12, 6144) == pytest.approx(0.462, abs=5e-4)
    assert mfu(238.3e3, 6 * 540.35e9, 275e12, 6144) == pytest.approx(0.457, abs=5e-4)


def test_flops_of_gpt3_are_those_in_its_paper():
    """Brown et al., 2020, appendix D: 3.14e23 for 300 billion tokens, by 6 N D with 174.6 billion parameters."""
    assert 300e9 * flops_per_token(174.6e9, 0, 0, 0) == pytest.approx(3.14e23, rel=2e-3)


def test_mfu_of_megatron_turing_follows_from_its_seconds_per_step():
    """Smith et al., 2022: 530B, 1,920 sequences of 2,048 in 60.1 s on 2,240 A100, which they count as 126 TFLOPS a GPU.

    They also count the activations that are computed again: 8 in place of 6 for each weight, 16 in place of 12.
    """
    flops = flops_per_token(529.6e9, num_layers=105, attention_width=20480, block_size=2048)
    tokens_per_second = 1920 * 2048 / 60.1
    assert tokens_per_second * flops * 8 / 6 / 2240 == pytest.approx(126e12, rel=0.01)
    assert mfu(tokens_per_second, flops, peak_flops("NVIDIA A100-SXM4-80GB", "bf16"), 2240) == pytest.approx(
        0.302, abs=2e-3
    )


def test_a_frozen_weight_takes_no_gradient():
    assert flops_per_token(100, 0, 0, 0, num_frozen=40) == 6 * 60 + 4 * 40


@pytest.mark.parametrize(
    ("device", "precision", "tera"),
    [
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-PCIE-16GB", "fp16", 112),
        ("Tesla V100-SXM2-16GB", "bf16", None),  # it cannot
        ("Tesla V100-SXM2-16GB", "tf32", 15.7),  # torch then multiplies in fp32
        ("Tesla T4", "fp16", 65),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA A10G", "bf16", None),  # another GPU
        ("NVIDIA A100-SXM4-40GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "bf16", None),  # a part of one
        ("NVIDIA A40", "bf16", 149.7),
        ("NVIDIA RTX A6000", "bf16", 154.8),
        ("NVIDIA GeForce RTX 3090", "bf16", 71),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362.05),
        ("NVIDIA L40", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 80GB HBM3", "fp32", 67),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA H100 NVL", "bf16", 835.5),
        ("NVIDIA H200", "fp16", 989.5),
        ("NVIDIA B200", "bf16", 2250),
        ("NVIDIA GB200", "bf16", None),
        ("AMD Instinct MI250X", "bf16", 191.5),  # half a card, which is what torch sees
        ("AMD Instinct MI300X", "bf16", 1307.4),
        ("cpu", "bf16", None),
    ],
)
def test_the_peak_is_that_of_the_data_sheet_by_the_drivers_name(device, precision, tera):
    assert peak_flops(device, precision) == (None if tera is None else tera * 1e12)


@pytest.mark.parametrize(
    ("mixed_precision", "dtype", "tf32", "precision"),
    [
        ("bf16", "float32", True, "bf16"),
        ("fp16", "float32", False, "fp16"),
        ("no", "bfloat16", True, "bf16"),  # the weights themselves
        ("no", "float16", False, "fp16"),
        ("no", "float32", True, "tf32"),
        ("no", "float32", False, "fp32"),
    ],
)
def test_the_precision_of_products_is_autocasts_or_the_weights(mixed_precision, dtype, tf32, precision):
    assert product_precision(mixed_precision, dtype, tf32) == precision


def test_every_gpu_is_found_by_its_own_words():
    for name, gpu in GPUS.items():
        assert find_gpu(f"NVIDIA {gpu.words.upper()}") is gpu, name
        assert gpu.fp32 <= (gpu.tf32 or gpu.fp32) <= gpu.fp16


def test_memory_of_training_is_that_of_the_zero_paper():
    """Rajbhandari et al., 2020, figure 1: 7.5B on 64 GPUs: 120, 31.4, 16.6 and 1.9 GB."""
    sizes = [training_bytes(7_500_000_000, 64, stage, 2) / 1e9 for stage in range(4)]
    assert sizes == pytest.approx([120, 31.4, 16.6, 1.9], rel=0.015)
