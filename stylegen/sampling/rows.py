"""A text while it is written, and what its tokens say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from stylegen.tokenizer import BYTE_TOKEN


@dataclass(frozen=True)
class SamplingSettings:
    """How to draw; the meaning of each is that of generate.py's flag of the same name."""

    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    stop: Sequence[str] = ()
    bad_words: Sequence[str] = ()
    seed: int = 0


@dataclass
class Row:
    """One text being written: `ids` starts with the prompt, `draws` has one number in [0, 1) for each new token."""

    ids: list[int]
    prompt_length: int
    draws: Sequence[float]
    visible: int  # tokens at the end of `ids` that the model sees
    finished: bool = False

    @property
    def new_ids(self) -> list[int]:
        """What was written after the prompt."""
        return self.ids[self.prompt_length :]

    @property
    def visible_ids(self) -> list[int]:
        """What the model sees."""
        return self.ids[-self.visible :]

    def append(self, token: int) -> None:
        """Add a token that was written."""
        self.ids.append(token)
        self.visible += 1

    def text(self, tokenizer: PreTrainedTokenizerFast) -> str:
        """What was written after the prompt."""
        return continuation(tokenizer, self.ids[: self.prompt_length], self.new_ids)


def start_row(
    tokenizer: PreTrainedTokenizerFast, prompt: str, number: int, settings: SamplingSettings
) -> Row:
    """The row of text `number`, whose random numbers depend on the seed and that number alone."""
    ids = prompt_ids(tokenizer, prompt)
    generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + number) % 2**63)
    draws = torch.rand(settings.max_new_tokens, generator=generator, dtype=torch.float64)
    return Row(ids=ids, prompt_length=len(ids), draws=draws.tolist(), visible=len(ids))


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """Ids of a prompt; an empty one is the start-of-text token."""
    ids = tokenizer(prompt)["input_ids"] if prompt else []
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return list(ids) or [start]


class Streamer:
    """Hands on the text of a row as soon as its bytes are complete and it cannot begin a stop string."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        on_text: Callable[[str], None],
        row: Row,
        stop: Sequence[str],
    ):
        self.tokenizer, self.on_text, self.row, self.stop = tokenizer, on_text, row, stop
        self.shown = 0

    def show_complete(self) -> None:
        """Show what can be told of the row so far."""
        text = self.row.text(self.tokenizer)
        # A byte may be the first of a character, and what a run of bytes means is known at its end.
        last = self.row.new_ids[-1:]
        is_byte = last and BYTE_TOKEN.fullmatch(str(self.tokenizer.convert_ids_to_tokens(last[0])))
        if not is_byte and not text.endswith("�"):
            text = before_stop(text, self.stop)
            starts = (string[:length] for string in self.stop for length in range(1, len(string)))
            held = max((len(start) for start in starts if text.endswith(start)), default=0)
            self._show(text[: len(text) - held])

    def show_rest(self) -> None:
        """Show all that there is: nothing comes after it."""
        self._show(before_stop(self.row.text(self.tokenizer), self.stop))

    def _show(self, text: str) -> None:
        if len(text) > self.shown:
            self.on_text(text[self.shown :])
            self.shown = len(text)


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the stop strings."""
    return text[: min((at for string in stop if (at := text.find(string)) >= 0), default=len(text))]


def continuation(tokenizer: PreTrainedTokenizerFast, before: Sequence[int], ids: Sequence[int]) -> str:
    """Text of `ids` after others: SentencePiece-like decoders drop the space at the start of a text."""
    start = decode(tokenizer, before[-1:])
    whole = decode(tokenizer, [*before[-1:], *ids])
    return whole[len(start) :] if whole.startswith(start) else decode(tokenizer, ids)


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Text of ids without the special ones."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))
