"""Prompts to texts: in batches, turn by turn where the window slides, or by beam search."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.generation import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from stylegen.model import context_length
from stylegen.sampling.decode import Decoder, left_padded
from stylegen.sampling.draw import Chooser
from stylegen.sampling.kernels import decoding_attention
from stylegen.sampling.rows import (
    Row,
    SamplingSettings,
    Streamer,
    before_stop,
    continuation,
    prompt_ids,
    start_row,
)

logger = logging.getLogger("stylegen")
OnText = Callable[[str], None]


def write_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    settings: SamplingSettings,
    *,
    num_return_sequences: int = 1,
    batch_size: int = 8,
    first_number: int = 0,
    on_text: OnText | None = None,
    together: bool = False,
) -> Iterator[tuple[str, str]]:
    """Yield (prompt, continuation) for each prompt, `num_return_sequences` times, in order.

    first_number  number of the first text, which its random numbers depend on
    on_text       called with each new piece of text as it is written, for a single text
    together      the model is cut over processes, and each of them writes the same texts at the same time
    The model is put into evaluation mode and back into the mode it was in.
    """
    if settings.num_beams > 1:
        for prompt in prompts:
            with _ready(model):
                texts = _search(model, tokenizer, prompt, settings, num_return_sequences)
            yield from ((prompt, text) for text in texts)
        return
    jobs = [prompt for prompt in prompts for _ in range(num_return_sequences)]
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        numbers = range(first_number + start, first_number + start + len(batch))
        texts = write_batch(model, tokenizer, batch, numbers, settings, on_text=on_text, together=together)
        yield from zip(batch, texts, strict=True)


def write_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    numbers: Sequence[int],
    settings: SamplingSettings,
    *,
    on_text: OnText | None = None,
    together: bool = False,
) -> list[str]:
    """The continuations of prompts, written side by side, without a beam search.

    numbers  of the texts, which their random numbers depend on
    The rest is as for `write_texts`.
    """
    rows = [
        start_row(tokenizer, prompt, number, settings)
        for prompt, number in zip(prompts, numbers, strict=True)
    ]
    with _ready(model) as suppressed:
        chooser = Chooser(tokenizer, settings, suppressed)
        streamer = Streamer(tokenizer, on_text, rows[0], settings.stop) if on_text else None
        _write(model, rows, settings.max_new_tokens, _Pen(chooser, streamer, together))
    return [before_stop(row.text(tokenizer), settings.stop) for row in rows]


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


@contextlib.contextmanager
def _ready(model: PreTrainedModel) -> Iterator[list[int]]:
    """Within, the model is as writing needs it; gives the tokens that it must never write."""
    was_training, own = model.training, model.generation_config
    suppressed = list(own.suppress_tokens or ()) if own else []
    # Transformers fills open values from the model's. Of its own only what it must never write stays.
    model.generation_config = GenerationConfig(suppress_tokens=suppressed or None)
    model.eval()
    try:
        with decoding_attention(model), torch.no_grad():
            yield suppressed
    finally:
        model.train(was_training)
        model.generation_config = own


class _Pen:
    """Writes what comes next into the rows, and finishes those that end."""

    def __init__(self, chooser: Chooser, streamer: Streamer | None, together: bool):
        self.chooser, self.streamer, self.together = chooser, streamer, together
        self.tokenizer, self.stop = chooser.tokenizer, chooser.settings.stop

    def write(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
        """Add a token to each row that goes on. logits (B, V); returns the tokens, of finished rows any."""
        tokens = self.chooser.choose(logits, rows)
        if self.together:  # were one of another opinion, the others would wait for it without an end
            agreed = torch.tensor(tokens, device=logits.device)
            torch.distributed.broadcast(agreed, 0)
            tokens = agreed.tolist()
        for row, token in zip(rows, tokens, strict=True):
            if not row.finished:
                self._add(row, token)
        return tokens

    def _add(self, row: Row, token: int) -> None:
        if token == self.tokenizer.eos_token_id:
            row.finished = True
            return
        row.append(token)
        if self.stop:
            text = row.text(self.tokenizer)
            row.finished = any(string in text for string in self.stop)
        if self.streamer:
            self.streamer.show_complete()


def _write(model: PreTrainedModel, rows: Sequence[Row], max_new_tokens: int, pen: _Pen) -> None:
    """Write all rows to their end: each turn fills the model's context, then the window slides."""
    window, turn = context_length(model), _turn if Decoder.takes(model) else _turn_of_transformers
    written = 0
    while written < max_new_tokens and (active := [row for row in rows if not row.finished]):
        count = max_new_tokens - written
        if window is not None:  # each row slides on its own, whatever stands beside it
            for row in active:
                row.visible = row.visible if row.visible < window else max(window // 2, 1)
            # With a context of one token the next one still can be read off.
            count = min(count, max(window - max(row.visible for row in active), 1))
        turn(model, active, count, pen)
        written += count
    if pen.streamer:
        pen.streamer.show_rest()


def _turn(model: PreTrainedModel, rows: list[Row], count: int, pen: _Pen) -> None:
    """Write `count` tokens, or up to the end of all rows."""
    decoder = Decoder(model, pen.tokenizer.pad_token_id)
    logits = decoder.start([row.visible_ids for row in rows])
    for left in reversed(range(count)):
        tokens = pen.write(logits, rows)
        places = [place for place, row in enumerate(rows) if not row.finished]
        if not places or not left:
            return
        if 2 * len(places) <= len(rows):  # copying what is kept of the others costs about a token
            decoder.keep(places)
            rows, tokens = [rows[place] for place in places], [tokens[place] for place in places]
        logits = decoder.go_on(tokens)


def _turn_of_transformers(model: PreTrainedModel, rows: list[Row], count: int, pen: _Pen) -> None:
    """The same for architectures that keep something else than keys and values, or are called in their own way."""
    inputs, mask = left_padded([row.visible_ids for row in rows], pen.tokenizer.pad_token_id, model.device)
    generate: Any = model.generate
    generate(
        inputs=inputs,
        attention_mask=mask,
        generation_config=GenerationConfig(
            max_new_tokens=count, do_sample=False, pad_token_id=pen.tokenizer.pad_token_id, use_cache=True
        ),
        logits_processor=LogitsProcessorList([_Written(pen, rows)]),
        stopping_criteria=StoppingCriteriaList([_Finished(rows)]),
        synced_gpus=pen.together,
    )


class _Written(LogitsProcessor):
    """Leaves only the tokens that the pen wrote."""

    def __init__(self, pen: _Pen, rows: Sequence[Row]):
        self.pen, self.rows = pen, rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens = torch.tensor(self.pen.write(scores, self.rows), device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens[:, None], 0.0)


class _Finished(StoppingCriteria):
    """Ends the rows that the pen has finished."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        return torch.tensor([row.finished for row in self.rows], device=input_ids.device)


def _search(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    settings: SamplingSettings,
    count: int,
) -> list[str]:
    """Beam search: the `count` best texts of a prompt, as far as the model's context reaches."""
    ids, window = prompt_ids(tokenizer, prompt), context_length(model)
    room = settings.max_new_tokens
    seen = ids
    if window is not None:
        seen = ids[-max(window // 2, window - room, 1) :]
        room = min(room, window - len(seen))
    inputs = torch.tensor([seen], device=model.device)
    config = GenerationConfig(
        max_new_tokens=room,
        do_sample=False,
        num_beams=settings.num_beams,
        num_return_sequences=count,
        repetition_penalty=settings.repetition_penalty,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        use_cache=True,
    )
    generate: Any = model.generate
    output = generate(inputs=inputs, attention_mask=torch.ones_like(inputs), generation_config=config)
    texts = []
    for new in output[:, inputs.shape[1] :].tolist():
        if tokenizer.eos_token_id in new:
            new = new[: new.index(tokenizer.eos_token_id)]
        texts.append(continuation(tokenizer, ids, new))
    return texts
