"""The time and the memory of a training step: ours against the textbook loop, on the same text, model and batch.

The textbook loop is a Transformers model with its own loss, torch's AdamW and a DataLoader, in fp32 as it comes and
under bf16 autocast. Ours is what run_clm.py builds and runs (clipping, checks and watchdog included), also in both.
Each side has a process of its own, they take their steps in turn, one at a time. Prints medians, the peak memory of
each process (with that of the imports taken off too), and the ratios.

    python benchmarks/step_time.py [--tokenizer FOLDER] [--model small|gpt2] [--rounds 8]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from prepare import write_tokenizer

SIZES: dict[str, dict[str, Any]] = {
    "small": {"config": {"n_layer": 4, "n_head": 4, "n_embd": 256}, "block_size": 256, "batch_size": 8},
    "gpt2": {"config": {"n_layer": 12, "n_head": 12, "n_embd": 768}, "block_size": 512, "batch_size": 2},
}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SIDES = ("textbook fp32", "textbook bf16", "ours fp32", "ours bf16")
WARM_UP = 2


def main() -> None:
    """Let the sides take turns and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokenizer", help="a GPT-2 tokenizer (default: a byte-level BPE of 50,257 words trained here)"
    )
    parser.add_argument("--model", choices=tuple(SIZES), default="small")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--profile", action="store_true", help="print the largest costs, not the times")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        side, folder = options.work
        _work(side, SIZES[options.model], options.tokenizer, Path(folder), options.profile)
        return
    with tempfile.TemporaryDirectory() as folder:
        _write_text(Path(folder))
        options.tokenizer = options.tokenizer or write_tokenizer(Path(folder), Path(folder) / "text.txt")
        workers = {side: _start(side, options, folder) for side in options.sides}
        seconds: dict[str, list[float]] = {side: [] for side in workers}
        for _ in range(WARM_UP + options.rounds):
            for side, worker in workers.items():
                seconds[side].append(float(_ask(worker, "step")))
        ends = {side: json.loads(_ask(worker, "end")) for side, worker in workers.items()}
    if options.profile:
        for side, end in ends.items():
            print(f"{side}\n{end['profile']}\n")
    else:
        _print_table({side: values[WARM_UP:] for side, values in seconds.items()}, ends)


def textbook(bf16: bool, size: dict[str, Any], tokenizer_path: str, folder: Path):
    """A function that takes one step of the loop that tutorials show."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    ids = torch.tensor(tokenizer((folder / "text.txt").read_text())["input_ids"])
    length = size["block_size"]
    blocks = ids[: len(ids) // length * length].view(-1, length)
    batches = DataLoader(TensorDataset(blocks), batch_size=size["batch_size"], shuffle=True)
    torch.manual_seed(42)
    model = GPT2LMHeadModel(GPT2Config(n_positions=length, **size["config"], **NO_DROPOUT))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    stream = iter(batches)

    def step() -> None:
        (batch,) = next(stream)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def ours(bf16: bool, size: dict[str, Any], tokenizer_path: str, folder: Path):
    """A function that takes one step of what run_clm.py does with the same."""
    from stylegen.config import TrainArguments
    from stylegen.corpus import find_sources
    from stylegen.stop import StopRequest
    from stylegen.train.setup import set_up
    from stylegen.train.step import Stopwatch, train_step

    arguments = TrainArguments(
        train_file=[str(folder / "text.txt")], tokenizer_name=tokenizer_path, block_size=size["block_size"],
        config_overrides={**size["config"], **NO_DROPOUT}, per_device_train_batch_size=size["batch_size"],
        mixed_precision="bf16" if bf16 else "no", learning_rate=1e-3, lr_scheduler_type="constant",
        output_dir=str(folder / f"run-{bf16}"), cache_dir=str(folder / "cache"),
    )  # fmt: skip
    run, state = set_up(arguments, *find_sources(arguments), StopRequest())
    run.model.train()
    watch = Stopwatch()
    return lambda: train_step(run, state, watch)


def _work(side: str, size: dict[str, Any], tokenizer: str, folder: Path, profile: bool) -> None:
    """One side: sets up, then takes a step for each line of input."""
    kind, precision = side.split()
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever is printed meanwhile is no answer
    import torch

    import stylegen.train.setup  # noqa: F401 - so that both sides have the same imports in their memory

    base = _memory("VmRSS")
    step = {"textbook": textbook, "ours": ours}[kind](precision == "bf16", size, tokenizer, folder)
    print("ready", file=answers, flush=True)
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    for number, line in enumerate(sys.stdin):
        if line.strip() == "end":
            break
        recording = profile and number >= WARM_UP
        with profiler if recording else _nothing():
            started = time.perf_counter()
            step()
            seconds = time.perf_counter() - started
        print(seconds, file=answers, flush=True)
    table = _largest(profiler) if profile else ""
    peak = _memory("VmHWM")
    print(json.dumps({"peak": peak, "above": peak - base, "profile": table}), file=answers, flush=True)


def _largest(profiler) -> str:
    """The five operators with the most time of their own in the last profiled step, and their shares."""
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    return "\n".join(
        f"  {row.key:60}{row.count:6} calls{row.self_cpu_time_total / 1000:9.1f} ms"
        f"{row.self_cpu_time_total / total:8.1%}"
        for row in rows[:5]
    )


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def _memory(key: str) -> int:
    """Bytes, as the kernel counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel tells no {key}")


def _start(side: str, options: argparse.Namespace, folder: str) -> subprocess.Popen:
    command = [sys.executable, __file__, "--tokenizer", options.tokenizer, "--model", options.model]
    command += ["--work", side, folder, *(["--profile"] if options.profile else [])]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdout and worker.stdout.readline() == "ready\n", f"{side} did not start"
    return worker


def _ask(worker: subprocess.Popen, word: str) -> str:
    assert worker.stdin and worker.stdout
    print(word, file=worker.stdin, flush=True)
    return worker.stdout.readline()


def _write_text(folder: Path) -> None:
    from stylegen.corpus import Source, read_text

    text = "\n".join(read_text(path) for path in Source(dataset="shakespeare").paths())
    (folder / "text.txt").write_text(text, encoding="utf-8")


def _print_table(seconds: dict[str, list[float]], ends: dict[str, dict[str, int]]) -> None:
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    print(f"{'':16}{'ms a step':>10}{'fastest':>9}{'slowest':>9}{'peak MB':>9}{'above the imports':>19}")
    for side, values in seconds.items():
        print(f"{side:16}{1000 * medians[side]:>10.0f}{1000 * min(values):>9.0f}{1000 * max(values):>9.0f}"
              f"{ends[side]['peak'] / 1e6:>9.0f}{ends[side]['above'] / 1e6:>19.0f}")  # fmt: skip
    for other, mine in (
        ("textbook fp32", "ours bf16"),
        ("textbook bf16", "ours bf16"),
        ("textbook fp32", "ours fp32"),
    ):
        if other in medians and mine in medians:
            print(f"{mine} against {other}: {medians[other] / medians[mine]:.2f} times as fast, "
                  f"{ends[mine]['peak'] / ends[other]['peak']:.2f} of the peak memory, "
                  f"{ends[mine]['above'] / ends[other]['above']:.2f} above the imports")  # fmt: skip


if __name__ == "__main__":
    main()
