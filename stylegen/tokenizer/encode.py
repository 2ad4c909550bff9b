"""Documents -> ids, in slices and on several cores, and the ids of the whole document all the same.

A text may be cut where its tokenizer splits it anyway (`_safe_cut`); a tokenizer that is not known well enough for that
gets whole documents. A document is an iterable of chunks of its text, so that it need not lie in memory.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from tokenizers import Tokenizer

from stylegen.tokenizer.fast import (
    NORMAL_FORMS,
    added_words,
    fast_ids,
    merges_nothing,
    splits_as_gpt2,
    state,
)

SLICE_CHARACTERS = 1 << 18
# A pre-token of the byte-level split starts at a single space or line break between two visible characters, so
# a text cut just before one gives the same ids. Longer runs of white space are looked at together: no cut there.
# The set comes first: the engine skips to its members quickly, where a look behind would be tried at every character.
SAFE_CUT = re.compile(r"[ \n](?<=\S[ \n])(?=\S)")
# Newer splits let punctuation take the line breaks behind it; before a space they too start anew.
SPACE_CUT = re.compile(r" (?<=\S )(?=\S)")
# Splits by which Llama 3 and Qwen 2 (and those that took them over) part a text; GPT-4's is that of Llama 3.
CONTRACTIONS_AND_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
MARKS_AND_WHITE_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPACE_CUT_SPLITS = (
    rf"{CONTRACTIONS_AND_WORDS}|\p{{N}}{{1,3}}|{MARKS_AND_WHITE_SPACE}",
    rf"{CONTRACTIONS_AND_WORDS}|\p{{N}}|{MARKS_AND_WHITE_SPACE}",
)
UNITS_PER_WORKER = 3  # one in work, one waiting, one whose turn has not come

Texts = tuple[list[str], list[int]]  # texts, and after how many of them a document ends
Ids = tuple[np.ndarray, np.ndarray]
T = TypeVar("T")
R = TypeVar("R")


def slices(
    chunks: Iterable[str], size: int = SLICE_CHARACTERS, cut: re.Pattern[str] = SAFE_CUT
) -> Iterator[str]:
    """Cut a document, given in chunks of any size, at safe places into pieces of `size` characters or a little more.

    Where no place is safe a piece grows until one is. The pieces joined are the document; at least one is given.
    """
    held: list[str] = []  # the piece as far as it was searched; each character is looked at once
    num_held, window = 0, ""
    for chunk in chunks:
        window += chunk
        start = 0
        while found := cut.search(window, start + max(size - num_held, 0)):
            yield "".join([*held, window[start : found.start()]])
            held, num_held, start = [], 0, found.start()
        # Whether there is a cut before the last character the next chunk will say, and it takes the one before.
        searched = max(len(window) - 2, start)
        held.append(window[start:searched])
        num_held += searched - start
        window = window[searched:]
    yield "".join([*held, window])


class DocumentEncoder:
    """Ids of whole documents, without the special tokens that a tokenizer may add around a text.

    What can be proved of the tokenizer is proved once, when this is made.
    """

    def __init__(self, backend: Tokenizer, size: int = SLICE_CHARACTERS):
        self.backend, self.size = backend, size
        self.fast = fast_ids(self.backend)
        self.cut = _safe_cut(self.backend)

    def __call__(self, documents: Iterable[Iterable[str]], num_workers: int) -> Iterator[Ids]:
        """Yield part after part (ids, ends), documents following each other.

        documents    each in chunks of text, cut anywhere between two characters
        num_workers  threads; each holds some pieces of `size` characters, and that is all that lies in memory
        ids          uint32, the tokens that come next
        ends         int64, positions among them at which a document ends: its last token is ids[end - 1]; an empty
                     document repeats an end, or gives 0 at the start of a part
        """
        units = _units(documents, self.size, self.cut)
        return _in_order(lambda unit: _encode_unit(self.backend, self.fast, *unit), units, num_workers)


def _pieces(document: Iterable[str], size: int, cut: re.Pattern[str] | None) -> Iterable[str]:
    return slices(document, size, cut) if cut else ["".join(document)]


def _units(documents: Iterable[Iterable[str]], size: int, cut: re.Pattern[str] | None) -> Iterator[Texts]:
    """Gather small documents, and the pieces of large ones, to about `size` characters."""
    texts: list[str] = []
    ends: list[int] = []
    num_characters = 0
    for document in documents:
        for text in _pieces(document, size, cut):
            if num_characters >= size:
                yield texts, ends
                texts, ends, num_characters = [], [], 0
            texts.append(text)
            num_characters += len(text) + 1  # and one, that a unit of empty documents ends too
        ends.append(len(texts))
    if texts:
        yield texts, ends


def _encode_unit(
    backend: Tokenizer, fast: Callable[[str], np.ndarray | None] | None, texts: list[str], ends: list[int]
) -> Ids:
    parts = [fast(text) if fast else None for text in texts]
    others = iter(
        _library_ids(backend, [text for text, ids in zip(texts, parts, strict=True) if ids is None])
    )
    ids = [next(others) if ids is None else ids for ids in parts]
    positions = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    return np.concatenate(ids), positions[ends]


def _library_ids(backend: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
    return [np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings]


def _in_order(function: Callable[[T], R], items: Iterable[T], num_workers: int) -> Iterator[R]:
    """`map` over a few threads that reads `items` only a little ahead of whoever takes the results."""
    pool = ThreadPoolExecutor(num_workers)
    window: deque[Future[R]] = deque()
    try:
        for item in items:
            window.append(pool.submit(function, item))
            if len(window) >= UNITS_PER_WORKER * num_workers:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
    finally:  # also when the reader has left or a worker has failed
        pool.shutdown(cancel_futures=True)


def _safe_cut(backend: Tokenizer) -> re.Pattern[str] | None:
    """Where a text may be cut without changing an id, or None if only the whole is known to have its ids."""
    if backend.normalizer is not None and state(backend.normalizer)["type"] not in NORMAL_FORMS:
        return None
    added = backend.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip for token in added) or re.search(
        r"\s", "".join(added_words(backend))
    ):
        return None
    if splits_as_gpt2(backend) or merges_nothing(backend):
        return SAFE_CUT
    split = backend.pre_tokenizer and state(backend.pre_tokenizer)
    match split and split.get("pretokenizers"):
        case [{"type": "Digits"}, {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return SPACE_CUT
        case [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
        ] if regex in SPACE_CUT_SPLITS:
            return SPACE_CUT
    return None
