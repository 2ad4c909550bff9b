"""What counts as a word, a sentence and a line; texts as arrays of numbers."""

import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

# Letters and digits, with single apostrophes inside. Marks belong to the letter before them, which Python's \w does not
# know; where words are not spaced (Chinese, Japanese) each character is one.
_MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u0670\u0900-\u0963\u0966-\u0dff\u0e31-\u0e4e"
_ALONE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = rf"(?:[^\W_{_ALONE}]|[{_MARKS}])"
WORD = re.compile(rf"[{_ALONE}]|{_LETTER}+(?:['’]{_LETTER}+)*")
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|\Z)|[。！？।]")
BORDER = 0  # stands after a text; words count from 1
SLICE = 1 << 20  # characters that are numbers at a time


def encode(texts: Iterable[str], numbers: dict[str, int]) -> np.ndarray:
    """The words of all texts, int32, BORDER after each text. Words are added to `numbers` as they come.

    They are compared without case, composed (NFC), and with a plain apostrophe.
    """
    spelled: dict[str, int] = {}  # as written -> number

    def number(word: str) -> int:
        plain = unicodedata.normalize("NFC", word).casefold().replace("’", "'")
        return spelled.setdefault(word, numbers.setdefault(plain, len(numbers) + 1))

    def all_numbers() -> Iterator[int]:
        for text in texts:
            for match in WORD.finditer(text):
                yield spelled.get(match[0]) or number(match[0])
            yield BORDER

    return np.fromiter(all_numbers(), dtype=np.int32)


def trigrams(texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Every three characters in a row, as they stand, as an int64; none reaches from one text into the next."""
    for text in texts:
        for start in range(0, len(text) - 2, SLICE):
            raw = text[start : start + SLICE + 2].encode("utf-32-le", "surrogatepass")
            codes = np.frombuffer(raw, dtype="<u4").astype(np.int64)
            yield codes[:-2] << 42 | codes[1:-1] << 21 | codes[2:]


def words_per_end(texts: Iterable[str], num_words: int) -> tuple[float, float]:
    """(words of a sentence, words of a line): all words / ends, which a text that is cut off does not bias.

    Without an end it is all words. Lines of white space do not count.
    """
    sentences = lines = 0
    for text in texts:
        sentences += sum(1 for _ in SENTENCE_END.finditer(text))
        lines += sum(1 for line in text.split("\n")[:-1] if line.strip())
    return num_words / max(sentences, 1), num_words / max(lines, 1)


def distinct_share(stretches: Iterable[np.ndarray], n: int) -> float | None:
    """Different runs of n words / all of them, each stretch counted for itself; None if there are none."""
    different = total = 0
    for ids in stretches:
        shifted = (ids[offset:].tolist() for offset in range(n))
        grams = [gram for gram in zip(*shifted, strict=False) if BORDER not in gram]
        different, total = different + len(set(grams)), total + len(grams)
    return different / total if total else None
