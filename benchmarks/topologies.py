"""The same training on every topology that two CPUs can stand in for: losses, norms, learning rates, evaluation.

    python benchmarks/topologies.py [--only NAME ...] [--model_type llama]

Prints a table and ends with 1 if a loss of the six steps differs from the first row's by more than 1e-5, a gradient
norm by more than 1e-4, a loss or an accuracy of an evaluation by more than 1e-6, or a learning rate at all. The last
step is the short last group of an epoch.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ACCELERATE = str(Path(sys.executable).parent / "accelerate")
SMALL = {
    "gpt2": "n_layer=2,n_head=2,n_embd=32,resid_pdrop=0,embd_pdrop=0,attn_pdrop=0",
    "llama": "num_hidden_layers=2,num_attention_heads=2,num_key_value_heads=1,hidden_size=32,intermediate_size=64",
}
FLAGS = (
    "--dataset_name shakespeare --dataset_config_name hamlet --train_tokenizer char --block_size 64 "
    "--max_train_samples 43 --max_eval_samples 21 --total_batch_size 8 --max_train_steps 6 --logging_steps 1 "
    "--eval_steps 3 --lr_scheduler_type cosine --num_warmup_steps 2 --mixed_precision no --checkpointing_steps end "
    "--sample_max_new_tokens 16"
).split()
# name: (configuration of Accelerate or None, processes, machines, blocks in a pass, blocks in a pass of an evaluation)
ROWS = {
    "1 x 8": (None, 1, 1, 8, 8),
    "8 x 1 accumulated": (None, 1, 1, 1, 1),
    "2 processes x 4": ("ddp", 2, 1, 4, 3),
    "4 processes x 2": ("ddp", 4, 1, 2, 8),
    "2 machines x 4": ("multinode_ddp", 2, 2, 4, 2),
    "FSDP2, 2 x 2 x 2": ("fsdp", 2, 1, 2, 5),
    "ZeRO-1, 2 x 2 x 2": ("zero1", 2, 1, 2, 5),
    "ZeRO-2, 2 x 2 x 2": ("zero2", 2, 1, 2, 5),
    "ZeRO-3, 2 x 2 x 2": ("zero3", 2, 1, 2, 5),
}


def commands(config: str | None, processes: int, machines: int, port: int) -> list[list[str]]:
    """How to start run_clm.py, a command a machine."""
    if config is None:
        return [[sys.executable, "run_clm.py"]]
    launch = [ACCELERATE, "launch", "--config_file", f"configs/accelerate/{config}.yaml"]
    launch += ["--num_processes", str(processes)]
    if machines == 1:
        return [[*launch, "run_clm.py"]]
    launch += [
        "--num_machines",
        str(machines),
        "--main_process_ip",
        "127.0.0.1",
        "--main_process_port",
        str(port),
    ]
    return [[*launch, "--machine_rank", str(rank), "run_clm.py"] for rank in range(machines)]


def run(name: str, place: Path, flags: list[str], folder: Path | None = None) -> list[dict]:
    """Train, or go on, in `folder` (default: one of its own) on one topology; the rows of metrics.jsonl."""
    config, processes, machines, size, eval_size = ROWS[name]
    folder = folder or place / name.replace(" ", "_")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    sizes = ["--per_device_train_batch_size", str(size), "--per_device_eval_batch_size", str(eval_size)]
    jobs = [
        subprocess.Popen(
            [*command, *FLAGS, *flags, *sizes, "--cache_dir", str(place / "cache"), "--output_dir", str(folder)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for command in commands(config, processes, machines, 20000 + os.getpid() % 20000)
    ]  # fmt: skip
    outputs = [job.communicate(timeout=600)[0] for job in jobs]
    if any(job.returncode for job in jobs):
        sys.exit(f"{name} failed:\n{outputs[0][-5000:]}")
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def largest_difference(rows: list[dict], first: list[dict], key: str) -> float:
    """Relative, over all rows that have `key`; both runs must have it in the same steps."""
    ours, theirs = (
        {row["train/global_step"]: row[key] for row in part if key in row} for part in (rows, first)
    )
    assert ours.keys() == theirs.keys(), (ours, theirs)
    return max(abs(ours[step] - theirs[step]) / max(abs(theirs[step]), 1e-300) for step in theirs)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--model_type", choices=list(SMALL), default="gpt2")
    arguments = parser.parse_args()
    flags = ["--model_type", arguments.model_type, "--config_overrides", SMALL[arguments.model_type]]
    keys = (
        "train/loss",
        "train/grad_norm",
        "train/learning_rate",
        "eval/loss",
        "eval/accuracy",
        "eval/tokens",
    )
    limits = (1e-5, 1e-4, 0.0, 1e-6, 1e-6, 0.0)
    print(
        f"{arguments.model_type}: losses of the six steps, then the largest relative difference to the first row"
    )
    print(
        f"{'':18} {'losses':^53}  {'loss':>8} {'norm':>8} {'lr':>8} {'eval':>8} {'accuracy':>8} eval/tokens"
    )
    first: list[dict] = []
    worst = 0.0
    with tempfile.TemporaryDirectory() as place:
        for name in ["1 x 8", *[row for row in arguments.only if row != "1 x 8"]]:
            rows = run(name, Path(place), flags)
            first = first or rows
            differences = [largest_difference(rows, first, key) for key in keys]
            worst = max([worst, *(value > limit for value, limit in zip(differences, limits, strict=True))])
            losses = " ".join(f"{row['train/loss']:.6f}" for row in rows if "train/loss" in row)
            tokens = {row["eval/tokens"] for row in rows if "eval/tokens" in row}
            shown = " ".join(f"{value:8.1e}" for value in differences[:-1])
            print(f"{name:18} {losses}  {shown} {', '.join(map(str, tokens))}", flush=True)
    return int(worst > 0)


if __name__ == "__main__":
    sys.exit(main())
