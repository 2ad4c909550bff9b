"""The author's text, prepared to be asked about generated texts, and what it answers."""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from stylegen.config import UsageError
from stylegen.style.copying import COPY_WORDS, CopyIndex, spans
from stylegen.style.distance import Delta
from stylegen.style.text import BORDER, WORD, distinct_share, encode, trigrams, words_per_end

WINDOW_WORDS = 1000
WINDOW_CHARACTERS = 5000


@dataclass(frozen=True)
class Written:
    """One generated text, without its prompt."""

    prompt: str
    text: str


@dataclass(frozen=True)
class StyleMeasures:
    """Of one set of texts, as docs/style.md defines them; None where the texts give no value.

    Rates and `new_words` are shares, `longest_copy` counts words, and `distance*`, `sentence_words`, `line_words` are
    ratios: 1.0 is the author's. `too_little` says what is too short for a distance, `longest_place` where the longest
    copy stands: document, line and word, and its beginning.
    """

    texts: int
    words: int
    distance: float | None
    distance_low: float | None
    distance_high: float | None
    distance_chars: float | None
    too_little: str
    copy_rate: float | None
    copy_rate_validation: float | None
    longest_copy: int
    longest_copy_validation: int
    longest_place: str
    distinct_2: float | None
    distinct_3: float | None
    repetition_4: float | None
    new_words: float | None
    sentence_words: float | None
    line_words: float | None

    def metrics(self) -> dict[str, float]:
        """The `style/*` values of a logged row, those that there are."""
        left_out = ("texts", "words", "longest_copy_validation")
        return {
            f"style/{name}": float(value)
            for name, value in asdict(self).items()
            if isinstance(value, (int, float)) and name not in left_out
        }


class StyleReference:
    """An author's text: built once, in time and memory linear in its length, and then asked many times."""

    @classmethod
    def build(
        cls, train: Iterable[tuple[str, str]], validation: Iterable[tuple[str, str]]
    ) -> "StyleReference":
        """From the documents of both sides, each as (where it comes from, its text).

        Raises UsageError for a training text without a word. Too little of either is no error.
        """
        return cls(list(train), [text for _, text in validation])

    def __init__(self, train: list[tuple[str, str]], validation: list[str]):
        self._train, texts = train, [text for _, text in train]
        self._numbers: dict[str, int] = {}  # word -> number
        ids = encode(texts, self._numbers)
        if not self._numbers:
            raise UsageError("the training text has no word in it; give more text")
        self._borders = np.flatnonzero(ids == BORDER).tolist()
        self._copies = CopyIndex(ids)
        unseen = self._encode(validation)
        self._words = Delta("words", lambda: [ids[ids != BORDER]], [unseen[unseen != BORDER]], WINDOW_WORDS)
        self._characters = Delta(
            "characters", lambda: trigrams(texts), trigrams(validation), WINDOW_CHARACTERS
        )
        self._ends = words_per_end(texts, int(np.count_nonzero(ids)))
        self._unseen_rate, (self._unseen_longest, _) = self._copying(unseen)

    def measure(self, texts: Sequence[Written], seed: int = 0) -> StyleMeasures:
        """All measures of a set of texts; `seed` is that of the bootstrap interval."""
        written = [text.text for text in texts]
        ids = self._encode(written)
        words = ids[ids != BORDER]
        lack = self._words.lack(len(words))
        lack_characters = self._characters.lack(sum(map(len, trigrams(written))))
        near: tuple[float | None, ...] = (None,) * 3 if lack else self._words.ratio([words], seed)
        characters = None if lack_characters else self._characters.ratio(trigrams(written), seed)[0]
        rate, (longest, place) = self._copying(ids)
        starts = range(0, max(len(ids) - WINDOW_WORDS + 1, 1), WINDOW_WORDS)
        stretches = [ids[start : start + WINDOW_WORDS] for start in starts]
        distinct_4 = distinct_share(np.split(ids, np.flatnonzero(ids == BORDER)), 4)
        sentence, line = np.divide(words_per_end(written, len(words)), self._ends).tolist()
        return StyleMeasures(
            texts=len(texts), words=len(words), too_little="; ".join(filter(None, (lack, lack_characters))),
            distance=near[0], distance_low=near[1], distance_high=near[2], distance_chars=characters,
            copy_rate=rate, longest_copy=longest, longest_place=self._place(place, longest) if longest else "",
            copy_rate_validation=self._unseen_rate, longest_copy_validation=self._unseen_longest,
            distinct_2=distinct_share(stretches, 2), distinct_3=distinct_share(stretches, 3),
            repetition_4=None if distinct_4 is None else 1 - distinct_4,
            new_words=float((words > len(self._numbers)).mean()) if len(words) else None,
            sentence_words=sentence if len(words) else None, line_words=line if len(words) else None,
        )  # fmt: skip

    def copied_runs(self, text: str) -> list[tuple[int, int]]:
        """Where `text` stands word for word in the training text, as (first character, end), in order.

        What is marked is copied runs of 8 words; those that overlap or touch are one.
        """
        words = [match.span() for match in WORD.finditer(text)]
        starts = self._copies.runs(self._encode([text])) > 0
        covered = np.convolve(np.append(starts, False), np.ones(COPY_WORDS))[: len(words)] > 0
        return [(words[first][0], words[end - 1][1]) for first, end in spans(covered)]

    def _encode(self, texts: Iterable[str]) -> np.ndarray:
        return encode(texts, dict(self._numbers))  # new words have higher numbers

    def _copying(self, ids: np.ndarray) -> tuple[float | None, tuple[int, int]]:
        """(share of the runs of 8 words that are copied, the longest copied run)."""
        runs = self._copies.runs(ids)
        lengths = np.diff(np.flatnonzero(ids == BORDER), prepend=-1) - 1
        total = int(np.maximum(lengths - COPY_WORDS + 1, 0).sum())
        return float(np.count_nonzero(runs) / total) if total else None, self._copies.longest(runs)

    def _place(self, place: int, length: int) -> str:
        document = bisect.bisect_left(self._borders, place)
        word = place - (self._borders[document - 1] + 1 if document else 0)
        where, text = self._train[document]
        matches = list(itertools.islice(WORD.finditer(text), word, word + min(length, 12)))
        first, end = matches[0].start(), matches[-1].end()
        line = text.count("\n", 0, first) + 1
        return f"{where}, line {line:,}, word {word + 1:,}: {' '.join(text[first:end].split())}"
