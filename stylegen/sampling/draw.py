"""Logits -> one token a row: penalty, temperature, top-k, top-p, min-p, the draw; and none that makes a bad word.

Top-k, top-p and min-p each leave the tokens from some logit up, so the highest of the three is all that is needed, and
tokens of the same logit stay or go together. None sorts the vocabulary, which took longer than the model itself.
"""

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerFast

from stylegen.config import UsageError
from stylegen.sampling.rows import Row, SamplingSettings, decode

NUCLEUS_TOKENS = 1024  # that top-p looks at first: a model that has learnt something rarely needs more


class Chooser:
    """Chooses the next token of each row by the settings."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, settings: SamplingSettings, suppressed: Sequence[int]
    ):
        self.tokenizer, self.settings, self.suppressed = tokenizer, settings, list(suppressed)

    def choose(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
        """The tokens that come next. logits (B, V), of any type; left as they are.

        A finished row gets any token. Raises UsageError where bad words leave none.
        """
        settings = self.settings
        scores = logits.to(torch.float32, copy=True)
        if self.suppressed:
            scores[:, self.suppressed] = -torch.inf
        if settings.repetition_penalty != 1:
            for row, line in zip(rows, scores, strict=True):
                _penalize(line, row.visible_ids, settings.repetition_penalty)
        numbers = torch.tensor(
            [0.0 if row.finished else row.draws[len(row.ids) - row.prompt_length] for row in rows]
        )
        numbers = numbers.to(scores.device)
        tokens, rest = self._one_each(scores, numbers)
        chosen = tokens.tolist()
        if settings.bad_words:
            self._avoid_bad_words(scores, rows, chosen, rest)
        return chosen

    def _one_each(self, scores: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.settings.temperature == 0:
            return scores.argmax(-1), numbers
        return draw(limit(scores / self.settings.temperature, self.settings), numbers)

    def _avoid_bad_words(
        self, scores: torch.Tensor, rows: Sequence[Row], chosen: list[int], rest: torch.Tensor
    ) -> None:
        """Take tokens away that would complete a bad word, as long as one of them is chosen, and choose again.

        Without top-k and the like, tokens follow the model's distribution over those that are left: what was drawn in
        vain is drawn again with what is left of its number.
        """
        for i, row in enumerate(rows):
            before = decode(self.tokenizer, row.ids)
            while not row.finished and self._completes(before, [*row.ids, chosen[i]]):
                scores[i, chosen[i]] = -torch.inf
                if not (scores[i] > -torch.inf).any():
                    raise UsageError("bad_words leave the model no token to write; leave some out")
                token, rest[i : i + 1] = self._one_each(scores[i : i + 1], rest[i : i + 1])
                chosen[i] = int(token)

    def _completes(self, before: str, ids: list[int]) -> bool:
        """Whether a bad word ends in what the last of `ids` adds to the text `before`."""
        after = decode(self.tokenizer, ids)
        pairs = enumerate(zip(before, after, strict=False))
        old = next((place for place, (one, other) in pairs if one != other), min(len(before), len(after)))
        return any(after.find(word, max(old - len(word) + 1, 0)) >= 0 for word in self.settings.bad_words)


def limit(scores: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """The scores (B, V), -inf for tokens that top-k, top-p of these and min-p of those leave out."""
    floor = scores.new_full((len(scores), 1), -torch.inf)
    if settings.top_k:
        floor = scores.topk(min(settings.top_k, scores.shape[-1])).values[:, -1:]
    if settings.top_p < 1:
        kept = scores.masked_fill(scores < floor, -torch.inf) if settings.top_k else scores
        floor = torch.maximum(floor, _nucleus_floor(kept, settings.top_p))
    if settings.min_p:
        floor = torch.maximum(floor, scores.amax(-1, True) + math.log(settings.min_p))
    return scores if bool((floor == -torch.inf).all()) else scores.masked_fill(scores < floor, -torch.inf)


def draw(scores: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse-transform sampling: the first token whose cumulative probability exceeds the row's number.

    scores   float32 (B, V)
    numbers  float32 (B,), from 0 to 1
    Returns the tokens (B,), and where in the token's share the number fell, 0 to 1: evenly spread again, for a
    second draw.
    """
    probabilities = scores.softmax(-1)
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    # Rounding can push the number onto the total: the last token with any probability is meant then.
    places = torch.minimum(numbers[:, None] * total, total.nextafter(torch.zeros_like(total)))
    drawn = torch.searchsorted(cumulative, places, right=True)
    share = probabilities.gather(-1, drawn)
    rest = ((places - cumulative.gather(-1, drawn) + share) / share).clamp(0, 1)
    return drawn[:, 0], rest[:, 0]


def _nucleus_floor(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """(B, 1): the least score of the likeliest tokens that together have the probability `top_p`."""
    total = scores.logsumexp(-1, True)
    for count in (min(NUCLEUS_TOKENS, scores.shape[-1]), scores.shape[-1]):
        values = scores.topk(count).values
        probabilities = (values - total).exp()
        sums = probabilities.cumsum(-1)
        if bool((sums[:, -1] >= top_p).all()):
            break
    inside = sums - probabilities < top_p  # what is likelier does not reach it yet
    return values.gather(-1, inside.sum(-1, keepdim=True) - 1)


def _penalize(scores: torch.Tensor, ids: Sequence[int], penalty: float) -> None:
    """Make tokens that are there less likely, in place (CTRL, Keskar et al., 2019, section 4.1)."""
    there = torch.tensor(sorted(set(ids)), device=scores.device)
    found = scores[there]
    scores[there] = torch.where(found < 0, found * penalty, found / penalty)
