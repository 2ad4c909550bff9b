"""Prompts -> text. No accelerate, no tracker: a model, a tokenizer, settings.

Every text has its own stream of random numbers, a function of (seed, its number, token), so it does not depend on
what else is in the batch, and drawing leaves torch's global generator alone. Beyond the model's context a window
slides: the last half of the context is kept and writing goes on.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.generation import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from stylegen.model import context_length
from stylegen.tokenizer import BYTE_TOKEN

logger = logging.getLogger("stylegen")


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
    seed: int = 0


@dataclass
class _Row:
    """One text being written: `ids` starts with the prompt, `draws` has one number in [0, 1) for each new token."""

    ids: list[int]
    prompt_length: int
    draws: torch.Tensor
    finished: bool = False
    new_ids: list[int] = field(default_factory=list)
    visible: int = 0  # tokens at the end of `ids` that the model sees


def write_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    settings: SamplingSettings,
    *,
    num_return_sequences: int = 1,
    batch_size: int = 8,
    first_number: int = 0,
    on_text: Callable[[str], None] | None = None,
    together: bool = False,
) -> Iterator[tuple[str, str]]:
    """Yield (prompt, continuation) for each prompt, `num_return_sequences` times, in order.

    first_number  number of the first text, which its random numbers depend on
    on_text       called with each new piece of text as it is written, for a single text
    together      the model is cut over processes, and each of them writes the same texts at the same time
    The model is put into evaluation mode and back into the mode it was in.
    """
    jobs = [(prompt, number) for prompt in prompts for number in range(num_return_sequences)]
    if settings.num_beams > 1:
        jobs = [(prompt, 0) for prompt in prompts]
    was_training, own = model.training, model.generation_config
    model.generation_config = GenerationConfig()  # transformers fills open values from the model's
    model.eval()
    try:
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            if settings.num_beams > 1:
                for prompt, _ in batch:
                    yield from _search(model, tokenizer, [prompt], settings, num_return_sequences)
                continue
            rows = [
                _start_row(tokenizer, prompt, first_number + start + i, settings)
                for i, (prompt, _) in enumerate(batch)
            ]
            _write(model, tokenizer, rows, settings, on_text, together)
            yield from (
                (prompt, _continuation(tokenizer, row.ids[: row.prompt_length], row.new_ids))
                for (prompt, _), row in zip(batch, rows, strict=True)
            )
    finally:
        model.train(was_training)
        model.generation_config = own


def warn_of_long_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> None:
    """Say which prompts the model cannot see whole: of those only the end counts."""
    window = context_length(model)
    for number, prompt in enumerate(prompts):
        length = len(prompt_ids(tokenizer, prompt))
        if window is not None and length >= window:
            logger.warning(
                f"warning: prompt {number + 1} has {length} tokens, the model's context {window}; it sees the last "
                f"{max(window // 2, 1)} of them"
            )


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """Ids of a prompt; an empty one is the start-of-text token."""
    ids = tokenizer(prompt)["input_ids"] if prompt else []
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return list(ids) or [start]


def _start_row(
    tokenizer: PreTrainedTokenizerFast, prompt: str, number: int, settings: SamplingSettings
) -> _Row:
    ids = prompt_ids(tokenizer, prompt)
    generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + number) % 2**63)
    draws = torch.rand(settings.max_new_tokens, generator=generator, dtype=torch.float64)
    return _Row(ids=ids, prompt_length=len(ids), draws=draws, visible=len(ids))


@torch.no_grad()
def _write(model, tokenizer, rows: list[_Row], settings: SamplingSettings, on_text, together: bool) -> None:
    """Write all rows to their end: each turn fills the model's context, then the window slides."""
    window = context_length(model)
    written = 0
    streamer = _Streamer(tokenizer, on_text, rows[0].ids[:]) if on_text else None
    while written < settings.max_new_tokens and (active := [row for row in rows if not row.finished]):
        count = settings.max_new_tokens - written
        if window is not None:  # each row slides on its own, whatever stands beside it
            for row in active:
                row.visible = row.visible if row.visible < window else max(window // 2, 1)
            # With a context of one token the next one still can be read off.
            count = min(count, max(window - max(row.visible for row in active), 1))
        inputs, mask = _left_padded(
            [row.ids[-row.visible :] for row in active], tokenizer.pad_token_id, model.device
        )
        draws = torch.stack([row.draws[written : written + count] for row in active])
        output = model.generate(
            inputs=inputs,
            attention_mask=mask,
            generation_config=_generation_config(tokenizer, settings, count),
            logits_processor=_drawing(settings, draws, inputs.shape[1]),
            streamer=streamer,
            synced_gpus=together,
        )
        for row, ids in zip(active, output[:, inputs.shape[1] :].tolist(), strict=True):
            if tokenizer.eos_token_id in ids:
                ids = ids[: ids.index(tokenizer.eos_token_id)]
                row.finished = True
            row.ids += ids
            row.new_ids += ids
            row.visible += len(ids)
        written += count
    if streamer:
        streamer.flush()


def _search(
    model, tokenizer, prompts: Sequence[str], settings: SamplingSettings, count: int
) -> Iterator[tuple[str, str]]:
    """Beam search: the `count` best texts of each prompt, as far as the model's context reaches."""
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    window = context_length(model)
    length = max(map(len, rows))
    if window is not None:
        length = min(length, max(window // 2, window - settings.max_new_tokens))
    inputs, mask = _left_padded([row[-length:] for row in rows], tokenizer.pad_token_id, model.device)
    room = (
        settings.max_new_tokens if window is None else min(settings.max_new_tokens, window - inputs.shape[1])
    )
    config = _generation_config(tokenizer, settings, room)
    config.num_return_sequences = count
    with torch.no_grad():
        output = model.generate(inputs=inputs, attention_mask=mask, generation_config=config)
    for number, ids in enumerate(output[:, inputs.shape[1] :].tolist()):
        if tokenizer.eos_token_id in ids:
            ids = ids[: ids.index(tokenizer.eos_token_id)]
        yield prompts[number // count], _continuation(tokenizer, rows[number // count], ids)


def _left_padded(rows: list[list[int]], pad_id: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, attention mask), int64 (B, T), short rows padded on the left so that all go on from the last column."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (length - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _generation_config(tokenizer, settings: SamplingSettings, max_new_tokens: int) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,  # `_drawing` leaves only the drawn token, so taking the best one is drawing
        num_beams=settings.num_beams,
        repetition_penalty=settings.repetition_penalty,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        use_cache=True,
    )


def _drawing(settings: SamplingSettings, draws: torch.Tensor, start: int) -> LogitsProcessorList:
    """The logits' way to one token: temperature, top-k, top-p, min-p, then the draw. Nothing for greedy."""
    if settings.temperature == 0:
        return LogitsProcessorList()
    processors: list[LogitsProcessor] = [TemperatureLogitsWarper(settings.temperature)]
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        processors.append(MinPLogitsWarper(settings.min_p))
    return LogitsProcessorList([*processors, _Draw(draws, start)])


class _Draw(LogitsProcessor):
    """Inverse-transform sampling: the first token whose cumulative probability exceeds the row's number."""

    def __init__(self, draws: torch.Tensor, start: int):
        self.draws, self.start = draws, start  # draws (B, steps) in [0, 1); `start` columns came before

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        cumulative = scores.float().softmax(-1).cumsum(-1)
        numbers = self.draws[:, input_ids.shape[1] - self.start, None].to(scores.device, torch.float32)
        drawn = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True)
        # Rounding can push the number onto the total: the last token with any probability is meant then.
        last = (
            (scores > -torch.inf)
            .long()
            .mul(torch.arange(scores.shape[-1], device=scores.device))
            .amax(-1, True)
        )
        return torch.full_like(scores, -torch.inf).scatter_(-1, torch.minimum(drawn, last), 0.0)


class _Streamer(BaseStreamer):
    """Hands on text as soon as its bytes are complete; one row only."""

    def __init__(self, tokenizer, on_text: Callable[[str], None], prompt_ids: Sequence[int]):
        self.prompt_ids = prompt_ids
        self.tokenizer, self.on_text = tokenizer, on_text
        self.ids: list[int] = []
        self.shown = 0
        self.at_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self.at_prompt:  # generate hands over the prompt first, once a turn
            self.at_prompt = False
            return
        self.ids += [int(i) for i in value.flatten() if int(i) != self.tokenizer.eos_token_id]
        text = _continuation(self.tokenizer, self.prompt_ids, self.ids)
        # A byte may be the first of a character, and what a run of bytes means is known at its end.
        is_byte = self.ids and BYTE_TOKEN.fullmatch(str(self.tokenizer.convert_ids_to_tokens(self.ids[-1])))
        if not is_byte and not text.endswith("�"):
            self._show(text)

    def end(self) -> None:
        self.at_prompt = True

    def flush(self) -> None:
        self._show(_continuation(self.tokenizer, self.prompt_ids, self.ids))

    def _show(self, text: str) -> None:
        if len(text) > self.shown:
            self.on_text(text[self.shown :])
            self.shown = len(text)


def _continuation(tokenizer: PreTrainedTokenizerFast, before: Sequence[int], ids: Sequence[int]) -> str:
    """Text of `ids` after others: SentencePiece-like decoders drop the space at the start of a text."""
    start = _decode(tokenizer, before[-1:])
    whole = _decode(tokenizer, [*before[-1:], *ids])
    return whole[len(start) :] if whole.startswith(start) else _decode(tokenizer, ids)


def _decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))
