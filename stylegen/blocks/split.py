"""Training and validation side of a store: whole documents where they come near the percentage, else the tail."""

from dataclasses import dataclass

import numpy as np

from stylegen.config import UsageError
from stylegen.corpus.store import TextStore

WINDOW_BYTES = 1 << 20  # a line end is looked for this far on both sides of the place to cut at


@dataclass(frozen=True)
class Side:
    """Documents of one side.

    store       where their text is
    ranges      int64 (documents, 2): first byte and end of each
    prompts     int64 (documents,): bytes at the start that are prompt
    characters  of all of them
    """

    store: TextStore
    ranges: np.ndarray
    prompts: np.ndarray
    characters: int

    @classmethod
    def whole(cls, store: TextStore) -> "Side":
        """Every document of a store."""
        return cls(store, store.ranges, store.prompts, int(store.characters.sum()))


def split_store(store: TextStore, percentage: float, seed: int) -> tuple[Side, Side]:
    """Training and validation side, `percentage` of the characters in the second.

    Whole documents, drawn with `seed`, where some of them come near the percentage; else the tail of the text,
    cut at a line end. A pair is never cut.
    Raises UsageError for a single pair.
    """
    target = store.characters.sum() * percentage / 100
    chosen = np.zeros(len(store.characters), dtype=bool)
    size = 0
    for index in np.random.default_rng(seed).permutation(len(chosen)).tolist():
        length = int(store.characters[index])
        if size + length / 2 <= target:  # it brings the size nearer to the target
            chosen[index] = True
            size += length
    if not (0.5 * target <= size <= 1.5 * target and 0 < chosen.sum() < len(chosen)):
        if not store.prompts.any():
            return _cut_tail(store, round(target))
        chosen = _one_pair(store, target)
    sides = [
        Side(store, store.ranges[mask], store.prompts[mask], int(store.characters[mask].sum()))
        for mask in (~chosen, chosen)
    ]
    return sides[0], sides[1]


def _one_pair(store: TextStore, target: float) -> np.ndarray:
    """Pairs are never cut: where they are too few, the one whose size comes nearest is held out."""
    if len(store.characters) < 2:
        raise UsageError(
            "one pair cannot be training and validation text; give more pairs, or validation pairs"
        )
    return np.arange(len(store.characters)) == np.abs(store.characters - target).argmin()


def _cut_tail(store: TextStore, target: int) -> tuple[Side, Side]:
    after = np.cumsum(store.characters[::-1])[::-1]  # characters from the start of each document to the end
    index = int(np.flatnonzero(after >= target)[-1])
    remaining = target - int(after[index] - store.characters[index])
    start, end = store.ranges[index].tolist()
    position = start + _bytes_of(store, start, end, max(int(store.characters[index]) - remaining, 0))
    cut = _nearest_line_end(store, start, end, position)
    before, behind = store.ranges[: index + 1].copy(), store.ranges[index:].copy()
    before[-1, 1] = behind[0, 0] = cut
    in_first = int(store.characters[:index].sum()) + sum(map(len, store.chunks(start, cut)))
    in_second = int(store.characters.sum()) - in_first
    return _without_empty(store, before, in_first), _without_empty(store, behind, in_second)


def _without_empty(store: TextStore, ranges: np.ndarray, characters: int) -> Side:
    """A side that the cut may have left an empty document; pairs are not cut, so there are no prompts."""
    kept = ranges[ranges[:, 0] < ranges[:, 1]]
    return Side(store, kept, np.zeros(len(kept), dtype=np.int64), characters)


def _bytes_of(store: TextStore, start: int, end: int, characters: int) -> int:
    """Bytes that the first `characters` of a range take."""
    size = 0
    for chunk in store.chunks(start, end):
        size += len(chunk[:characters].encode())
        characters -= len(chunk)
        if characters <= 0:
            break
    return size


def _nearest_line_end(store: TextStore, start: int, end: int, position: int) -> int:
    """A cut near `position` just after a line break, else after a space, that leaves text on both sides.

    Near is within half of what follows `position`; with nothing near the cut is at `position` itself.
    """
    reach = min((end - position) // 2, WINDOW_BYTES)
    low = max(position - reach - 1, start)
    window = store.read(low, min(position + reach, end))
    middle = position - low
    for mark in (b"\n", b" "):
        found = (window.rfind(mark, 0, middle), window.find(mark, middle))
        cuts = [
            low + at + 1 for at in found if at >= 0 and 2 * abs(low + at + 1 - position) <= end - position
        ]
        cuts = [cut for cut in cuts if _has_text(store, start, cut) and _has_text(store, cut, end)]
        if cuts:
            return min(cuts, key=lambda cut: abs(cut - position))
    return position


def _has_text(store: TextStore, start: int, end: int) -> bool:
    return any(chunk.strip() for chunk in store.chunks(start, end))
