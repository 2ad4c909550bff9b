"""A run that goes on with other processes, on other topologies: its losses against those of a run never interrupted.

    python benchmarks/resume_elsewhere.py [--only NAME ...]

Three steps each on 2, 1 and 4 processes, from the checkpoint of the ones before. Prints a table and ends with 1 if a
loss differs from the uninterrupted run's by more than 1e-5, or a step is missing or there twice.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from topologies import FLAGS, ROWS, SMALL, largest_difference, run

ROWS |= {
    f"{name}, {processes} x {8 // processes}": (config, processes, 1, 8 // processes, 4)
    for name, config in (("DDP", "ddp"), ("FSDP2", "fsdp"), ("ZeRO-2", "zero2"), ("ZeRO-3", "zero3"))
    for processes in (1, 2, 4)
}
WAYS = {
    "DDP": ["DDP, 2 x 4", "1 x 8", "DDP, 4 x 2"],
    "FSDP2": ["FSDP2, 2 x 4", "FSDP2, 1 x 8", "FSDP2, 4 x 2"],
    "ZeRO-2": ["ZeRO-2, 2 x 4", "ZeRO-2, 1 x 8", "ZeRO-2, 4 x 2"],
    "ZeRO-3": ["ZeRO-3, 2 x 4", "ZeRO-3, 1 x 8", "ZeRO-3, 4 x 2"],
    "mixed": ["ZeRO-3, 2 x 4", "DDP, 4 x 2", "FSDP2, 2 x 4"],
}
# The rate must not depend on the number of steps, which grows from life to life.
CONSTANT = ["--lr_scheduler_type", "constant", "--num_warmup_steps", "2", "--config_overrides", SMALL["gpt2"]]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    names = parser.parse_args().only
    failed = False
    with tempfile.TemporaryDirectory() as place:
        whole = run("1 x 8", Path(place), [*CONSTANT, "--max_train_steps", "9"])
        print(f"{'':8} {'largest difference of':>24}\n{'way':8} {'loss':>11} {'norm':>12}  steps")
        for name in names:
            folder = Path(place) / name
            for number, topology in enumerate(WAYS[name], start=1):
                rows = run(topology, Path(place), [*CONSTANT, "--max_train_steps", str(3 * number)], folder)
            steps = [row["train/global_step"] for row in rows if "train/loss" in row]
            loss, norm = (largest_difference(rows, whole, key) for key in ("train/loss", "train/grad_norm"))
            failed |= loss > 1e-5 or steps != list(range(1, 10))
            print(f"{name:8} {loss:11.1e} {norm:12.1e}  {' -> '.join(WAYS[name])}: {steps}", flush=True)
    return int(failed)


if __name__ == "__main__":
    assert "--lr_scheduler_type" in FLAGS  # which CONSTANT replaces: the later flag wins
    sys.exit(main())
