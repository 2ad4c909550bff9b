"""How long it takes from the command to the end of the first optimizer step, and from the last one to the end.

    python benchmarks/first_step.py [--text FILE] [--runs 5]

Whole processes, interleaved, medians: run_clm.py without and with its token cache, and the textbook loop below, which
does what Transformers' run_clm_no_trainer.py does: a byte-level BPE of the same 1,024 words trained on the same text,
`datasets.map` over its lines and again to cut blocks, a DataLoader, AdamW. The same model and batch in all of them, no
look-up on the hub in any. Without --text the text is that of the plays. One run of each goes before and is not counted.
The end is what comes behind the last evaluation: the model is saved, loaded to check it, written with, drawn and told.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORDS, BLOCK, BATCH = 1024, 64, 12
SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
FIRST, EVALUATED = "step 1/", "validation loss"


def textbook(text: str) -> None:
    """The first step of the loop of the textbook, on the text of a file."""
    import torch
    from datasets import load_dataset
    from tokenizers import ByteLevelBPETokenizer
    from torch.utils.data import DataLoader
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, default_data_collator

    torch.manual_seed(0)
    backend = ByteLevelBPETokenizer()
    backend.train([text], vocab_size=WORDS, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend._tokenizer, eos_token="<|endoftext|>")
    raw = load_dataset("text", data_files={"train": text}, keep_linebreaks=True)["train"].train_test_split(
        0.1
    )
    tokenized = raw.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=["text"])

    def group_texts(rows: dict) -> dict:
        joined = {name: list(chain(*rows[name])) for name in rows}
        length = len(joined["input_ids"]) // BLOCK * BLOCK
        cut = {name: [ids[i : i + BLOCK] for i in range(0, length, BLOCK)] for name, ids in joined.items()}
        return {**cut, "labels": cut["input_ids"].copy()}

    blocks = tokenized.map(group_texts, batched=True)["train"]
    loader = DataLoader(blocks, shuffle=True, collate_fn=default_data_collator, batch_size=BATCH)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=BLOCK, **SHAPE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = next(iter(loader))
    batch.pop("token_type_ids", None)
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    print(f"{FIRST}1: loss {loss.item():.4f}", flush=True)


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """(seconds to the first step, seconds from the end of the evaluation to the end of the process) of a command."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment
    )
    assert process.stdout
    seen = {}
    for line in process.stdout:
        for words in (FIRST, EVALUATED):
            if words in line:
                seen.setdefault(words, time.perf_counter())
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return seen[FIRST] - started, time.perf_counter() - seen.get(EVALUATED, started)


def commands(folder: Path, text: Path, run: int) -> dict[str, tuple[list[str], dict[str, str]]]:
    """What is timed, by name: command and environment. The second one finds the cache that the first one made."""
    base = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    base |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / f"hub-{run}")}
    overrides = ",".join(f"{name}={value}" for name, value in SHAPE.items())
    ours = [
        sys.executable, "run_clm.py", "--train_file", str(text), "--validation_split_percentage", "10",
        "--output_dir", str(folder / "run"), "--overwrite_output_dir", "--cache_dir", str(folder / f"cache-{run}"),
        "--train_tokenizer", "bpe", "--vocab_size", str(WORDS), "--config_overrides", overrides,
        "--block_size", str(BLOCK), "--per_device_train_batch_size", str(BATCH), "--learning_rate", "1e-3",
        "--max_train_steps", "3", "--logging_steps", "1", "--eval_steps", "1000", "--eval_on_start", "false",
        "--style_steps", "never",
        "--checkpointing_steps", "end", "--per_device_eval_batch_size", "64",
    ]  # fmt: skip
    return {
        "run_clm.py, no token cache": (ours, base),
        "run_clm.py, token cache": (ours, base),
        "textbook loop": ([sys.executable, __file__, "--textbook", "--text", str(text)], base),
    }


def write_plays(path: Path) -> None:
    """The plays, one behind the other, as a file of text."""
    sys.path.insert(0, str(ROOT))
    from stylegen.corpus import Findings, Source, TextOptions, read_pieces

    pieces = read_pieces(Source(dataset="shakespeare"), TextOptions(), Findings())
    path.write_text("\n".join(piece.text for piece in pieces), encoding="utf-8")


def main() -> None:
    """Time the commands in turn and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--textbook", action="store_true", help="run the loop of the textbook, for its first step"
    )
    options = parser.parse_args()
    if options.textbook:
        return textbook(str(options.text))
    seconds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        text = options.text or Path(place) / "plays.txt"
        if not options.text:
            write_plays(text)
        for run in range(options.runs + 1):
            for name, command in commands(Path(place), text.resolve(), run).items():
                times = timed(*command)
                seconds.setdefault(name, []).extend([times] if run else [])
    print(f"{text.name}, {text.stat().st_size / 1e6:.1f} MB")
    print(f"{'command':30}{'first step, s':>15}{'least':>8}{'most':>8}{'the end, s':>13}")
    for name, rows in seconds.items():
        first, end = ([row[column] for row in rows] for column in (0, 1))
        shown = f"{statistics.median(end):13.2f}" if name.startswith("run_clm") else ""
        print(f"{name:30}{statistics.median(first):15.2f}{min(first):8.2f}{max(first):8.2f}{shown}")


if __name__ == "__main__":
    main()
