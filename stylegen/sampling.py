"""Prompts -> text. No accelerate, no tracker: a model, a tokenizer, settings.

Every text has its own stream of random numbers, a function of (seed, its number, token), so it does not depend on
what else is in the batch, and drawing leaves torch's global generator alone. Beyond the model's context a window
slides: the last half of the context is kept and writing goes on. Stop strings and bad words are looked for in the
text and not in the tokens, of which many sequences spell the same text.
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
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from stylegen.config import UsageError
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
    stop: Sequence[str] = ()
    bad_words: Sequence[str] = ()
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
    # Transformers fills open values from the model's. Of its own only what it must never write stays.
    model.generation_config = GenerationConfig(suppress_tokens=own.suppress_tokens)
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
                (prompt, _before_stop(_row_text(tokenizer, row), settings.stop))
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
    streamer = _Streamer(tokenizer, on_text, rows[0].ids[:], settings.stop) if on_text else None
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
        start = inputs.shape[1]
        choice = _drawing(
            settings, torch.stack([row.draws[written : written + count] for row in active]), start
        )
        if settings.bad_words:
            choice = LogitsProcessorList(
                [_WithoutBadWords(settings.bad_words, choice, tokenizer, active, start)]
            )
        output = model.generate(
            inputs=inputs,
            attention_mask=mask,
            generation_config=_generation_config(tokenizer, settings, count),
            logits_processor=choice,
            stopping_criteria=StoppingCriteriaList(
                [_AtStopString(settings.stop, tokenizer, active, start)] if settings.stop else []
            ),
            streamer=streamer,
            synced_gpus=together,
        )
        for row, ids in zip(active, output[:, start:].tolist(), strict=True):
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
        self.rest = draws[:, :1]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        probabilities = scores.float().softmax(-1)
        cumulative = probabilities.cumsum(-1)
        numbers = self.draws[:, input_ids.shape[1] - self.start, None].to(scores.device, torch.float32)
        places = numbers * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, places, right=True)
        # Rounding can push the number onto the total: the last token with any probability is meant then.
        last = (
            (scores > -torch.inf)
            .long()
            .mul(torch.arange(scores.shape[-1], device=scores.device))
            .amax(-1, True)
        )
        drawn = torch.minimum(drawn, last)
        # Where in the token's share the number fell, 0 to 1: evenly spread again, for a second draw.
        share = probabilities.gather(-1, drawn)
        self.rest = ((places - cumulative.gather(-1, drawn) + share) / share).clamp(0, 1)
        return torch.full_like(scores, -torch.inf).scatter_(-1, drawn, 0.0)


class _WithoutBadWords(LogitsProcessor):
    """Takes tokens away that would complete a bad word, as long as one of them is chosen; then the next is chosen.

    Without top-k and the like, tokens follow the model's distribution over those that are left: what was drawn in
    vain is drawn again with what is left of its number.
    """

    def __init__(self, words, choice, tokenizer, rows: list[_Row], start: int):
        self.words, self.choice, self.tokenizer, self.rows, self.start = words, choice, tokenizer, rows, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores, step = scores.clone(), input_ids.shape[1] - self.start
        texts: dict[int, tuple[list[int], str]] = {}
        for i, row in enumerate(self.rows):
            new = input_ids[i, self.start :].tolist()
            if not row.finished and self.tokenizer.eos_token_id not in new:
                texts[i] = (ids := [*row.ids, *new]), _decode(self.tokenizer, ids)
        while True:
            chosen = self.choice(input_ids, scores)
            tokens = chosen.argmax(-1).tolist()
            bad = [i for i, (ids, text) in texts.items() if self._completes(text, [*ids, tokens[i]])]
            if not bad:
                return chosen
            for i in bad:
                scores[i, tokens[i]] = -torch.inf
                if not (scores[i] > -torch.inf).any():
                    raise UsageError("bad_words leave the model no token to write; leave some out")
                if self.choice and isinstance(draw := self.choice[-1], _Draw):
                    draw.draws[i, step] = draw.rest[i, 0]
            texts = {i: texts[i] for i in bad}

    def _completes(self, before: str, ids: list[int]) -> bool:
        """Whether a bad word ends in what the last of `ids` adds to the text `before`."""
        after = _decode(self.tokenizer, ids)
        pairs = enumerate(zip(before, after, strict=False))
        old = next((place for place, (one, other) in pairs if one != other), min(len(before), len(after)))
        return any(after.find(word, max(old - len(word) + 1, 0)) >= 0 for word in self.words)


class _AtStopString(StoppingCriteria):
    """Ends each row as soon as a stop string is in its text."""

    def __init__(self, stop: Sequence[str], tokenizer, rows: list[_Row], start: int):
        self.stop, self.tokenizer, self.rows, self.start = stop, tokenizer, rows, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        for row, ids in zip(self.rows, input_ids[:, self.start :].tolist(), strict=True):
            if not row.finished:
                text = _row_text(self.tokenizer, row, ids)
                row.finished = any(string in text for string in self.stop)
        return torch.tensor([row.finished for row in self.rows], device=input_ids.device)


class _Streamer(BaseStreamer):
    """Hands on text as soon as its bytes are complete and it cannot begin a stop string; one row only."""

    def __init__(
        self, tokenizer, on_text: Callable[[str], None], prompt_ids: Sequence[int], stop: Sequence[str]
    ):
        self.prompt_ids, self.stop = prompt_ids, stop
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
            text = _before_stop(text, self.stop)
            starts = (string[:length] for string in self.stop for length in range(1, len(string)))
            held = max((len(start) for start in starts if text.endswith(start)), default=0)
            self._show(text[: len(text) - held])

    def end(self) -> None:
        self.at_prompt = True

    def flush(self) -> None:
        self._show(_before_stop(_continuation(self.tokenizer, self.prompt_ids, self.ids), self.stop))

    def _show(self, text: str) -> None:
        if len(text) > self.shown:
            self.on_text(text[self.shown :])
            self.shown = len(text)


def _before_stop(text: str, stop: Sequence[str]) -> str:
    return text[: min((at for string in stop if (at := text.find(string)) >= 0), default=len(text))]


def _row_text(tokenizer: PreTrainedTokenizerFast, row: _Row, ids: Sequence[int] = ()) -> str:
    """What was written in a row, with `ids` after it."""
    return _continuation(tokenizer, row.ids[: row.prompt_length], [*row.new_ids, *ids])


def _continuation(tokenizer: PreTrainedTokenizerFast, before: Sequence[int], ids: Sequence[int]) -> str:
    """Text of `ids` after others: SentencePiece-like decoders drop the space at the start of a text."""
    start = _decode(tokenizer, before[-1:])
    whole = _decode(tokenizer, [*before[-1:], *ids])
    return whole[len(start) :] if whole.startswith(start) else _decode(tokenizer, ids)


def _decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))
