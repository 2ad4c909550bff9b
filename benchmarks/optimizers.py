"""Validation loss from scratch by optimizer, learning rate, schedule, warm-up and weight decay, on several texts.

    python benchmarks/optimizers.py TEXT [TEXT ...] [--steps 150] [--jobs 2]

One GPT-2 of 4 layers, 128 wide, on 1,024 words of a byte-level BPE, batches of 16 x 128, bf16 where the processor has
it, the last 10 % of each text for validation. Prints bits per byte at the end of each run, one row a setting, and what
is best in each column with a star. One thread a run, so that the figures do not depend on `--jobs`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODEL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
ADAMW, MUON = {"optim": "adamw"}, {"optim": "muon", "learning_rate": 1.6e-2}
BEST_ADAMW = {**ADAMW, "learning_rate": 2e-3, "num_warmup_steps": 0.05}
SETTINGS = (
    *({**ADAMW, "learning_rate": rate} for rate in (1e-3, 2e-3, 4e-3, 8e-3)),
    BEST_ADAMW,
    {**BEST_ADAMW, "lr_scheduler_type": "cosine"},
    *({**MUON, "learning_rate": rate} for rate in (4e-3, 8e-3, 1.6e-2, 3.2e-2)),
    {**MUON, "num_warmup_steps": 0.05},
    {**MUON, "lr_scheduler_type": "cosine"},
    {**MUON, "lr_scheduler_type": "warmup_stable_decay"},
    {**MUON, "lr_scheduler_type": "constant"},
    {**MUON, "weight_decay": 0.1},
)


def main() -> None:
    """Run every setting on every text and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        runs = [
            [pool.submit(train, text.resolve(), setting, options.steps, Path(folder) / f"{place}-{number}")
             for place, text in enumerate(options.texts)]
            for number, setting in enumerate(SETTINGS)
        ]  # fmt: skip
        table = [[run.result() for run in row] for row in runs]
    best = [min(column) for column in zip(*table, strict=True)]
    print(f"bits per byte after {options.steps} steps" + " " * 36
          + "".join(f"{text.stem[:18]:>20}" for text in options.texts))  # fmt: skip
    for setting, row in zip(SETTINGS, table, strict=True):
        words = " ".join(str(value) if name in ("optim", "lr_scheduler_type") else f"{name} {value:g}"
                         for name, value in setting.items())  # fmt: skip
        print(f"{words:64}" + "".join(f"{value:19.4f}{'*' if value == least else ' '}"
                                      for value, least in zip(row, best, strict=True)))  # fmt: skip


def train(text: Path, setting: dict[str, object], steps: int, out: Path) -> float:
    """Bits per byte on the validation text at the end of a run."""
    flags = {
        "train_file": text, "validation_split_percentage": 10, "train_tokenizer": "bpe", "vocab_size": 1024,
        "config_overrides": ",".join(f"{name}={value}" for name, value in MODEL.items()), "block_size": 128,
        "per_device_train_batch_size": 16, "per_device_eval_batch_size": 64, "max_train_steps": steps,
        "eval_on_start": "false", "eval_steps": 10**9, "checkpointing_steps": "end", "sample_steps": "end",
        "style_steps": "never", "output_dir": out, "cache_dir": out.parent / "cache", **setting,
    }  # fmt: skip
    command = [
        sys.executable,
        "run_clm.py",
        *(str(word) for name, value in flags.items() for word in (f"--{name}", value)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["eval/bits_per_byte"] for row in rows if "eval/bits_per_byte" in row][-1]


if __name__ == "__main__":
    main()
