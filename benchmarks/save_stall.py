"""What a checkpoint of GPT-2 (124 M parameters) costs a training: while it waits, and while it is written beside it.

    python benchmarks/save_stall.py [--saves 5] [--place FOLDER]

Trains on short blocks of random tokens, saves synchronously, in the background, and not at all, in turn, and prints
medians. "Lost in all" is what the steps took longer than as many steps without a save: the wait, and that steps are
slower while a thread hashes and writes. The share of an hour is that of a run that saves once an hour.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from stylegen.checkpoint import Saver
from stylegen.model import parameter_groups, save_model
from stylegen.optim import build_optimizer
from stylegen.runtime import build_accelerator, start_logging
from stylegen.tokenizer import train_tokenizer

BLOCK = 32
STEPS_WITHOUT = 6
WAYS = {"synchronous": False, "in the background": True}


class Training:
    """Steps of GPT-2 on random tokens."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.accelerator = build_accelerator("no")
        self.model = GPT2LMHeadModel(GPT2Config())  # 12 layers, 768 wide, 50,257 tokens
        groups = parameter_groups(self.model, 0.1)
        self.optimizer = build_optimizer("adamw", groups, 1e-4, (0.9, 0.999), 1e-8)
        self.tokenizer = train_tokenizer(
            "char", [["a small one, which takes no time to write"]], 0, None, "none"
        )

    def step(self) -> float:
        """One optimizer step; returns its seconds."""
        started = time.perf_counter()
        ids = torch.randint(self.model.config.vocab_size, (1, BLOCK))
        self.model(input_ids=ids, labels=ids).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - started

    def save(self, saver: Saver, number: int) -> tuple[float, float, int]:
        """Save beside steps as the training does; returns (seconds it waited, seconds in all, steps)."""
        started, steps = time.perf_counter(), 0
        saver.stall_seconds = 0.0
        saver.begin(
            number, {"state": {"step": number}}, self.model, self.optimizer,
            lambda folder, weights: save_model(self.model, self.tokenizer, folder, weights),
        )  # fmt: skip
        while not saver.is_ready():
            self.step()
            steps += 1
        if error := saver.finish():
            raise OSError(error)
        return saver.stall_seconds, time.perf_counter() - started, steps


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--saves", type=int, default=5, help="of each way")
    parser.add_argument("--place", help="folder on the disk to measure (default: that of temporary files)")
    arguments = parser.parse_args()
    start_logging(is_main=False)  # only errors
    training = Training()
    training.step()  # makes the optimizer's state
    seconds: dict[str, list[tuple[float, float, int]]] = {name: [] for name in WAYS}
    without: list[float] = []
    with tempfile.TemporaryDirectory(dir=arguments.place) as place:
        savers = {
            name: Saver(
                Path(place) / name, training.accelerator, 1, in_background=way, size=3 * 4 * 124_439_808
            )
            for name, way in WAYS.items()
        }
        for number in range(1, arguments.saves + 1):
            without += [training.step() for _ in range(STEPS_WITHOUT)]
            for name, saver in savers.items():
                seconds[name].append(training.save(saver, number))
        files = [path for path in Path(place).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / len(WAYS)
    step = statistics.median(without)
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    print(
        f"GPT-2, {parameters / 1e6:.1f} M parameters, a checkpoint has {size / 2**20:,.0f} MB; {os.cpu_count()} CPUs"
    )
    print(f"a step without a save takes {step:.2f} s; medians of {arguments.saves} saves, in turn\n")
    print(
        f"{'':18}{'waited s':>9}{'at most s':>10}{'whole save s':>13}{'lost in all s':>14}{'of an hour':>11}"
    )
    for name, values in seconds.items():
        waited, whole = (statistics.median(value[column] for value in values) for column in (0, 1))
        lost = statistics.median(value[1] - value[2] * step for value in values)
        worst = max(value[0] for value in values)
        print(f"{name:18}{waited:>9.2f}{worst:>10.2f}{whole:>13.2f}{lost:>14.2f}{lost / 3600:>11.2%}")


if __name__ == "__main__":
    main()
