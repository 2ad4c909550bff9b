"""Tokens a second of writing, against plain `generate` of Transformers in fp32, and how soon streaming shows its first.

    python benchmarks/generation.py [--rounds 3] [--new_tokens 64]

A model of GPT-2's shape with random weights writes 1, 8 and 32 texts of one prompt: by the textbook call, by
generate.py as it is (bfloat16 where the processor multiplies it), and by generate.py with `--dtype float32`. The three
take turns in one process, so the textbook call profits from our settings of the process for memory. Prints medians; no
text ends early.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from transformers.generation.streamers import BaseStreamer

from stylegen.config import GenerateArguments
from stylegen.generate.plan import Plan, settle_dtype
from stylegen.generate.prompts import Prompt
from stylegen.generate.writer import Writer
from stylegen.model import save_model
from stylegen.tokenizer import END_OF_TEXT

SEQUENCES = (1, 8, 32)
PROMPT = " ".join(f"w{number}" for number in range(16))
Mark = Callable[[], None]


class Textbook:
    """Plain Transformers: the model as it is, in fp32."""

    name = "generate of Transformers, fp32"

    def __init__(self, folder: str, new_tokens: int):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.new_tokens = new_tokens

    def write(self, count: int, on_token: Mark | None = None) -> int:
        """Write `count` texts; returns their new tokens. `on_token` is called at each one of a single text."""
        inputs = self.tokenizer([PROMPT] * count, return_tensors="pt", return_token_type_ids=False)
        output = self.model.generate(
            **inputs, do_sample=True, max_new_tokens=self.new_tokens, pad_token_id=self.tokenizer.eos_token_id,
            streamer=_Marks(on_token) if on_token else None,
        )  # fmt: skip
        self.tokenizer.batch_decode(output)
        return count * (output.shape[1] - inputs["input_ids"].shape[1])


class _Marks(BaseStreamer):
    def __init__(self, mark: Mark):
        self.mark, self.is_prompt = mark, True

    def put(self, value: torch.Tensor) -> None:
        if not self.is_prompt:
            self.mark()
        self.is_prompt = False

    def end(self) -> None:
        pass


class Ours:
    """What generate.py does after its model is loaded."""

    def __init__(self, folder: str, new_tokens: int, **options: str):
        self.new_tokens = new_tokens
        self.arguments = GenerateArguments(checkpoints=[folder], max_new_tokens=new_tokens, **options)
        settle_dtype(self.arguments)
        self.name = f"generate.py, {self.arguments.dtype}"
        self.writer = Writer(self._plan(1), folder)

    def _plan(self, count: int) -> Plan:
        self.arguments.num_return_sequences = self.arguments.batch_size = count
        return Plan(self.arguments, [Prompt(PROMPT)])

    def write(self, count: int, on_token: Mark | None = None) -> int:
        """As that of the textbook."""
        show = (lambda _: on_token()) if on_token else None
        rows = self.writer.fill(next(self._plan(count).batches()), show)
        return sum(len(row["text"].split()) for row in rows)


def build(folder: Path) -> None:
    """Save a model of GPT-2's shape that never ends a text, with one word a token."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())  # 12 layers, 768 wide, 50,257 words
    end = model.config.vocab_size - 1
    words = {f"w{number}": number for number in range(end)} | {END_OF_TEXT: end}
    backend = Tokenizer(models.WordLevel(words, unk_token=END_OF_TEXT))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    assert model.generation_config
    model.generation_config.suppress_tokens = [end]
    save_model(model, PreTrainedTokenizerFast(tokenizer_object=backend, **special), folder)


def tokens_per_second(way: Textbook | Ours, count: int) -> float:
    """New tokens a second over all texts."""
    started = time.perf_counter()
    written = way.write(count)
    assert written == count * way.new_tokens, f"{way.name} wrote {written} tokens"
    return written / (time.perf_counter() - started)


def first_token_seconds(way: Textbook | Ours) -> float:
    """From the call to the first token of one text."""
    times: list[float] = []
    started = time.perf_counter()
    way.write(1, lambda: times.append(time.perf_counter()))
    return times[0] - started


def main() -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new_tokens", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        ways = [
            Textbook(folder, options.new_tokens),
            Ours(folder, options.new_tokens),
            Ours(folder, options.new_tokens, dtype="float32"),
        ]
    results: dict[tuple[str, int], list[float]] = {}
    for way in ways:
        way.write(2)  # warm
    for _ in range(options.rounds):
        for count in SEQUENCES:
            for way in ways:
                results.setdefault((way.name, count), []).append(tokens_per_second(way, count))
        for way in ways:
            results.setdefault((way.name, 0), []).append(first_token_seconds(way))
    medians = {key: statistics.median(values) for key, values in results.items()}
    print(
        f"\nGPT-2's shape, {options.new_tokens} new tokens a text, medians of {options.rounds} rounds in turn, "
        f"{os.cpu_count()} CPUs\n"
    )
    print(
        f"{'tokens a second':32}"
        + "".join(f"{f'{n} at a time':>16}" for n in SEQUENCES)
        + f"{'first token':>16}"
    )
    plain = [medians[ways[0].name, count] for count in (*SEQUENCES, 0)]
    for way in ways:
        *speeds, first = (medians[way.name, count] for count in (*SEQUENCES, 0))
        cells = [f"{speed:.1f} ({speed / base:.2f}x)" for speed, base in zip(speeds, plain, strict=False)]
        print(f"{way.name:32}" + "".join(f"{cell:>16}" for cell in cells) + f"{1000 * first:>13.0f} ms")


if __name__ == "__main__":
    main()
