"""Pure formulas, so that every number in a report can be checked by hand."""

import math
import re
from dataclasses import dataclass
from typing import Any


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


def flops_per_token(
    num_parameters: float, num_layers: int, attention_width: int, block_size: int, num_frozen: float = 0
) -> float:
    """Floating-point operations of a training step for each token of it, of a Transformer.

    6 N + 12 L H Q T (A. Chowdhery et al., PaLM, 2022, appendix B): each weight is multiplied with each token once
    forward and twice backward, each time a product and a sum; attention is counted whole, as if it were not causal.
    A frozen weight needs no gradient: 4 in place of 6. Recomputed activations do not count.

    num_parameters   N: weights that a token is multiplied with, an embedding that is only looked up not among them
    num_layers       L, those with attention
    attention_width  H Q: heads times their size
    block_size       T: tokens in a block
    num_frozen       those of N that are not trained
    """
    return 6 * num_parameters - 2 * num_frozen + 12 * num_layers * attention_width * block_size


def mfu(
    tokens_per_second: float, flops_per_token: float, peak_flops_per_device: float, num_devices: int
) -> float:
    """Model FLOPs utilization (PaLM, 2022): the part of the devices' peak that the training itself makes use of.

    tokens_per_second      over all devices
    flops_per_token        as `flops_per_token` counts them
    peak_flops_per_device  a second, as `peak_flops` gives it
    """
    return tokens_per_second * flops_per_token / (peak_flops_per_device * num_devices)


@dataclass(frozen=True)
class Gpu:
    """A GPU by its vendor's data sheet; what torch calls one device, which of an MI250X is half a card.

    words         lower case, all of them in the name that the driver gives it
    memory_gib    of the device
    link_gb       GB a second that it can send to the others of its node: NVLink, Infinity Fabric, else PCIe
    bf16 and so on  dense peaks in TFLOPS, adding up in fp32; None where it does not have them
    """

    words: str
    memory_gib: int
    link_gb: float
    bf16: float | None
    fp16: float
    tf32: float | None
    fp32: float

    def peak(self, precision: str) -> float | None:
        """FLOPs a second in "bf16", "fp16", "tf32" (fp32 where it has none) or "fp32"; None if it cannot."""
        tera: float | None = getattr(self, precision)
        if tera is None and precision == "tf32":
            tera = self.fp32
        return tera * 1e12 if tera else None


# Data sheets of NVIDIA give many of these with sparsity, which is twice as much. The GeForce ones are of the
# white papers of GA102 and AD102. What has more words comes first.
GPUS = {
    "v100-pcie": Gpu("v100 pcie", 32, 16, None, 112, None, 14),
    "v100": Gpu("v100", 32, 150, None, 125, None, 15.7),
    "t4": Gpu("t4", 16, 16, None, 65, None, 8.1),
    "a10": Gpu("a10", 24, 32, 125, 125, 62.5, 31.2),
    "a100-40gb": Gpu("a100 40gb", 40, 300, 312, 312, 156, 19.5),
    "a100": Gpu("a100", 80, 300, 312, 312, 156, 19.5),
    "a40": Gpu("a40", 48, 32, 149.7, 149.7, 74.8, 37.4),
    "a6000": Gpu("rtx a6000", 48, 32, 154.8, 154.8, 77.4, 38.7),
    "rtx3090": Gpu("rtx 3090", 24, 32, 71, 71, 35.6, 35.6),
    "rtx4090": Gpu("rtx 4090", 24, 32, 165.2, 165.2, 82.6, 82.6),
    "l4": Gpu("l4", 24, 32, 121, 121, 60, 30.3),
    "l40s": Gpu("l40s", 48, 32, 362.05, 362.05, 183, 91.6),
    "h100-pcie": Gpu("h100 pcie", 80, 64, 756.5, 756.5, 378, 51),
    "h100-nvl": Gpu("h100 nvl", 94, 64, 835.5, 835.5, 417.5, 60),
    "h100": Gpu("h100", 80, 450, 989.5, 989.5, 494.5, 67),
    "h200-nvl": Gpu("h200 nvl", 141, 64, 835.5, 835.5, 417.5, 60),
    "h200": Gpu("h200", 141, 450, 989.5, 989.5, 494.5, 67),
    "b200": Gpu("b200", 180, 900, 2250, 2250, 1100, 75),
    "mi250x": Gpu("mi250x", 64, 200, 191.5, 191.5, None, 47.9),
    "mi300x": Gpu("mi300x", 192, 448, 1307.4, 1307.4, 653.7, 163.4),
}
# A slice of a GPU, or a slower one under the same name.
OTHERS = {"mig", "laptop", "d", "max", "mobile"}


def product_precision(mixed_precision: str, dtype: str, tf32: bool) -> str:
    """The precision in which a run multiplies matrices on a GPU: "bf16", "fp16", "tf32" or "fp32".

    mixed_precision  "bf16", "fp16", or "no", which is the type of the weights themselves
    dtype            of the weights, as torch names it
    tf32             whether products of fp32 weights may be in TF32
    """
    if mixed_precision != "no":
        return mixed_precision
    return {"bfloat16": "bf16", "float16": "fp16"}.get(dtype, "tf32" if tf32 else "fp32")


def find_gpu(device_name: str) -> Gpu | None:
    """The data sheet of what `torch.cuda.get_device_name` calls `device_name`; None if it is not known."""
    words = set(re.split(r"[^a-z0-9]+", device_name.lower()))
    if words & OTHERS:
        return None
    return next((gpu for gpu in GPUS.values() if words.issuperset(gpu.words.split())), None)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense peak of a device in FLOPs a second, by its data sheet; None if it is not known.

    device_name  as `torch.cuda.get_device_name` gives it
    precision    "bf16", "fp16", "tf32", which is fp32 where the device has no such products, or "fp32"
    """
    gpu = find_gpu(device_name)
    return gpu.peak(precision) if gpu else None


def best_evaluation(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation with the lowest loss after training began, the earlier one of equals."""
    trained = [row for row in rows if "eval/loss" in row and row["train/global_step"] > 0]
    numbers = [row for row in trained if not math.isnan(row["eval/loss"])]
    return min(numbers, key=lambda row: row["eval/loss"], default=None)
