"""The loss head: cross-entropy over chunks of the output layer against the plain one over all logits at once.

    python benchmarks/loss_head.py [--rows 2048] [--rounds 7]

For each size of vocabulary, with their gradients by the last hidden states and by the weights: how far value and
gradients are from the plain ones and, both, from a computation in fp64 (a gradient's by its norm, in fp32); the time in
fp32 and under bf16 autocast, in turn, medians; and what each holds at its peak beyond weights and inputs, in processes
of their own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from stylegen.loss import chunk_rows, linear_cross_entropy
from stylegen.runtime import apply_speed_settings

SIZES = ((512, 256), (8_000, 256), (50_257, 256), (50_257, 768), (128_000, 256))  # words, width
FP64_ROWS = 256


def plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum that a model's own loss takes, over all logits in fp32."""
    return F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")


def chunked(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The same without ever holding all logits, as the training takes it."""
    return linear_cross_entropy(hidden, weight, labels, chunk_rows(len(weight), hidden.device))[0]


HEADS: dict[str, Callable[..., torch.Tensor]] = {"plain": plain, "chunked": chunked}


def main() -> None:
    """Print a table of differences and one of time and memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2048, help="tokens in a batch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    apply_speed_settings()
    if options.peak:
        name, *numbers = options.peak
        print(json.dumps(peak(name, *(int(number) for number in numbers))))
        return
    print(f"differences, {FP64_ROWS} rows, fp32   value          by the hidden states   by the weights")
    for words, width in SIZES:
        print_differences(words, width)
    print(
        f"\n{options.rows} rows, ms and MB  plain fp32  chunked  plain bf16  chunked  plain peak  chunked peak"
    )
    for words, width in SIZES:
        print_costs(words, width, options.rows, options.rounds)


def inputs(words: int, width: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(hidden states, weights, labels), the same each time; logits about as large as those of a trained model."""
    torch.manual_seed(words)
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = (2 * torch.randn(words, width) / width**0.5).requires_grad_()
    return hidden, weight, torch.randint(words, (rows,))


def take(head: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(mean loss, its gradients by the hidden states and by the weights)."""
    hidden, weight, labels = tensors
    hidden.grad = weight.grad = None
    loss = head(hidden, weight, labels) / len(labels)
    loss.backward()
    return loss.detach(), hidden.grad, weight.grad  # type: ignore[return-value]


def print_differences(words: int, width: int) -> None:
    """Relative differences of ours to plain, and of each to fp64."""
    hidden, weight, labels = inputs(words, width, FP64_ROWS)
    results = {name: take(head, hidden, weight, labels) for name, head in HEADS.items()}
    exact = take(plain_in_fp64, hidden.detach().double().requires_grad_(),
                 weight.detach().double().requires_grad_(), labels)  # fmt: skip
    for title, one, other in (("to plain", "chunked", results["plain"]), ("to fp64", "chunked", exact),
                              ("plain to fp64", "plain", exact)):  # fmt: skip
        differences = [
            ((a.double() - b.double()).norm() / b.double().norm()).item()
            for a, b in zip(results[one], other, strict=True)
        ]
        print(f"{words:>7} x {width:<4}{title:>16}" + "".join(f"{value:>18.1e}" for value in differences))


def plain_in_fp64(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`plain` without the cast to fp32."""
    return F.cross_entropy(F.linear(hidden, weight), labels, reduction="sum")


def print_costs(words: int, width: int, rows: int, rounds: int) -> None:
    """Medians of the seconds in turn, and the peaks."""
    tensors = inputs(words, width, rows)
    row = f"{words:>7} x {width:<10}"
    for bf16 in (False, True):
        seconds: dict[str, list[float]] = {name: [] for name in HEADS}
        for _ in range(rounds + 1):
            for name, head in HEADS.items():
                started = time.perf_counter()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                    take(head, *tensors)
                seconds[name].append(time.perf_counter() - started)
        row += "".join(f"{1000 * statistics.median(values[1:]):>10.1f}" for values in seconds.values())
    for name in HEADS:
        command = [sys.executable, __file__, "--peak", name, str(words), str(width), str(rows)]
        row += f"{json.loads(subprocess.check_output(command)) / 1e6:>12.0f}"
    print(row, flush=True)


def peak(name: str, words: int, width: int, rows: int) -> int:
    """Bytes that this process holds at its peak above what it held before, gradients included."""
    tensors = inputs(words, width, rows)
    take(HEADS[name], *inputs(64, 64, 64))  # what is loaded at the first call is not counted
    before = _memory("VmRSS")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        take(HEADS[name], *tensors)
    return _memory("VmHWM") - before


def _memory(key: str) -> int:
    """Bytes, as the kernel counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel tells no {key}")


if __name__ == "__main__":
    main()
