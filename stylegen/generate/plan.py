"""What a command is to write: a row for each text, in order, known before the model is.

The texts of a prompt follow each other, and each comes at every temperature before the next one does. Its number,
which its random numbers depend on, is the same at each. Batches are cut from the rows at fixed places, so that a text
is written beside the same others whoever writes it, and when. Within some batches rows stand by the length of their
prompts, so that little is padded, and are put in order again when they are written.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stylegen.config import GenerateArguments
from stylegen.config.launcher import uses_cpu
from stylegen.generate.prompts import Prompt

SEPARATOR = "===="
SORTED_BATCHES = 8  # whose rows are sorted; a text may wait for as many
# What decides a text beside its prompt, number and temperature.
DECIDING = (
    "seed", "max_new_tokens", "top_k", "top_p", "min_p", "repetition_penalty", "num_beams", "stop", "bad_words",
    "dtype", "config_name", "tokenizer_name", "base_model_name_or_path",
)  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The texts that `arguments` ask for."""

    arguments: GenerateArguments
    prompts: Sequence[Prompt]

    @property
    def total(self) -> float:
        """Rows in all; math.inf if there is no end."""
        return len(self.prompts) * self.arguments.texts_per_prompt * len(self.arguments.temperatures)

    @property
    def batch_rows(self) -> int:
        """Rows in a batch. A beam search finds the texts of one prompt together."""
        searches = self.arguments.num_beams > 1
        texts = int(self.arguments.texts_per_prompt) if searches else self.arguments.batch_size
        return texts * len(self.arguments.temperatures)

    @property
    def sorted_rows(self) -> int:
        """Rows that are sorted together."""
        return self.batch_rows * (1 if self.arguments.num_beams > 1 else SORTED_BATCHES)

    def row(self, prompt: str, number: int, temperature: float, **changes: Any) -> Row:
        """The row of one text, which is empty still: its prompt, and all that decides what will be written."""
        row: Row = {"prompt": prompt, "text": "", "number": number, "temperature": temperature}
        row |= {name: getattr(self.arguments, name) for name in DECIDING} | changes
        row["checkpoint"] = self.arguments.checkpoints[0]
        if self.arguments.checkpoint != "best":
            row["checkpoint_step"] = self.arguments.checkpoint
        return {name: value for name, value in row.items() if value is not None}

    def rows(self, first: int = 0) -> Iterator[Row]:
        """The rows in order, without their texts, from row `first` on."""
        count = self.arguments.texts_per_prompt
        times = () if count == math.inf else (int(count),)
        texts = itertools.chain.from_iterable(
            itertools.repeat(prompt.text, *times) for prompt in self.prompts
        )
        rows = (
            (text, number, heat) for number, text in enumerate(texts) for heat in self.arguments.temperatures
        )
        return (self.row(*parts) for parts in itertools.islice(rows, first, None))

    def place(self, row: Row) -> int:
        """The place of a row among all."""
        heats = self.arguments.temperatures
        return row["number"] * len(heats) + heats.index(row["temperature"])

    def batches(self, first: int = 0) -> Iterator[list[Row]]:
        """The same in batches, by the length of their prompts; `first` is where rows that are sorted together begin."""
        rows = self.rows(first)
        while group := list(itertools.islice(rows, self.sorted_rows)):
            group.sort(key=lambda row: len(row["prompt"]))
            yield from (
                group[start : start + self.batch_rows] for start in range(0, len(group), self.batch_rows)
            )

    def in_order(self, batches: Iterable[list[Row]], first: int = 0) -> Iterator[Row]:
        """The rows of written batches in order from row `first` on, each as soon as those before it are there."""
        waiting: dict[int, Row] = {}
        for batch in batches:
            waiting |= {self.place(row): row for row in batch}
            while first in waiting:
                yield waiting.pop(first)
                first += 1

    def heading(self, row: Row, place: int) -> str:
        """What stands before a text on the terminal and in .txt files, `place` texts after the first."""
        several = len(self.arguments.temperatures) > 1
        temperature = f"# temperature {row['temperature']:g}\n" if several else ""
        return (f"{SEPARATOR}\n" if place else "") + temperature + row["prompt"]


def settle_dtype(arguments: GenerateArguments) -> None:
    """Put a type in the place of the dtype `auto`."""
    if arguments.dtype != "auto":
        return
    import torch

    from stylegen.optim import cpu_multiplies_bf16
    from stylegen.runtime import pick_device

    kind = "cpu" if uses_cpu() else pick_device(arguments.device).type
    multiplies = {"cpu": cpu_multiplies_bf16, "cuda": lambda: torch.cuda.get_device_capability()[0] >= 8}
    arguments.dtype = "bfloat16" if multiplies.get(kind, bool)() else "float32"
