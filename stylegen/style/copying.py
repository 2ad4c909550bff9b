"""What stands word for word in the training text: an exact index of its runs of 8 words.

Runs of 2, 4 and 8 words are numbered by the pair of numbers of their halves, so that equal numbers mean equal words: no
hashes, no false hits, no misses. 0 is the number of what is not in the training text, or reaches over a border.
"""

import numpy as np

COPY_WORDS = 8  # the shortest run that counts as copied
_HALVES = (1, 2, 4)
_MOST_PLACES = (
    1000  # of one run that are followed to find longer ones: a refrain must not take quadratic time
)

_MOST_PAIRS = 5_000_000  # in memory at once; a text full of refrains is followed to fewer of their places


class CopyIndex:
    """The runs of a training text: `ids` int32 (N,), words numbered from 1, BORDER between documents."""

    def __init__(self, ids: np.ndarray):
        self._num_words = int(ids.max(initial=0))
        self._base = len(ids) + 1  # above every number
        self._pairs: list[np.ndarray] = []  # of each length, sorted: a run's number is the place of its pair
        runs = ids.astype(np.int64)
        for half in _HALVES:
            keys = self._keys(runs, half)
            ordered = np.sort(np.append(0, keys))  # np.unique hashes, which takes ten times as long
            self._pairs.append(ordered[np.append(True, np.diff(ordered) > 0)])
            runs = np.searchsorted(self._pairs[-1], keys)
        self._places = np.argsort(runs, kind="stable")  # where the runs begin, by their numbers
        self._runs = runs[self._places]

    def runs(self, ids: np.ndarray) -> np.ndarray:
        """Number of the run of 8 words that begins at each place of a text, int64 (N - 7,); 0 if it is not copied."""
        runs = np.where(ids <= self._num_words, ids, 0).astype(np.int64)
        for half, pairs in zip(_HALVES, self._pairs, strict=True):
            keys = self._keys(runs, half)
            at = np.searchsorted(pairs, keys).clip(max=len(pairs) - 1)
            runs = np.where(pairs[at] == keys, at, 0)
        return runs

    def longest(self, runs: np.ndarray) -> tuple[int, int]:
        """(words, where in the training text) of the longest run that a text of these `runs` shares; (0, 0) for none.

        Pairs of places that hold the same 8 words lie, for a longer run, on one diagonal (training - text) in a row.
        """
        hits = np.flatnonzero(runs)
        first = np.searchsorted(self._runs, runs[hits])
        most = min(_MOST_PLACES, max(1, _MOST_PAIRS // max(len(hits), 1)))
        counts = np.minimum(np.searchsorted(self._runs, runs[hits], side="right") - first, most)
        text = np.repeat(hits, counts)
        if not len(text):
            return 0, 0
        nth = np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts)
        training = self._places[np.repeat(first, counts) + nth]
        order = np.lexsort((text, training - text))
        text, training = text[order], training[order]
        starts = np.flatnonzero(np.append(True, (np.diff(text) != 1) | (np.diff(training) != 1)))
        lengths = np.diff(np.append(starts, len(text)))
        best = int(lengths.argmax())
        return int(lengths[best]) + COPY_WORDS - 1, int(training[starts[best]])

    def _keys(self, runs: np.ndarray, half: int) -> np.ndarray:
        left, right = runs[:-half], runs[half:]
        return np.where((left > 0) & (right > 0), left * self._base + right, 0)


def spans(flags: np.ndarray) -> list[tuple[int, int]]:
    """(first, end) of each stretch of true flags."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
