"""Burrows's Delta from generated text to the author's, in units of the author's distance to himself.

J. Burrows, "Delta: a measure of stylistic difference and a guide to likely authorship", Literary and Linguistic
Computing 17(3), 2002: the shares of the most frequent words, each as a z-score; Delta is the mean absolute difference
of two texts' z-scores. Three choices are ours, each against something that would be taken for style:

- A window is not one long passage but 20 short ones, taken at equal steps from the whole text. Samples are short, so a
  joined window of them mixes subjects, which a passage of the author does not: with long passages, pages of Shakespeare
  mixed like samples came out at 0.85, nearer to him than his next play at 1.00. Mixed alike, both are at 0.98 or 0.99.
- Windows are compared with a mean of windows: one window's own noise would hide what is looked for.
- In both halves of the ratio that is a mean of equally many, so a short validation text with a noisy mean does not
  make everything look far.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np

NUM_FEATURES = 150
PASSAGES = 20  # in a window
TRAINING_WINDOWS = 10  # fewer give no z-scores worth the name
ENOUGH_WINDOWS = 20  # from here on a text's own windows say how they scatter
DRAWS = 1000  # of the bootstrap
Chunks = Iterable[np.ndarray]


class Delta:
    """Distances to one author by one kind of feature, such as words."""

    def __init__(self, unit: str, train: Callable[[], Chunks], validation: Chunks, window: int):
        """From numbered features in order; with too little text only `lack` can be asked.

        unit    what the features are called
        train   called twice
        window  features in a window
        """
        self._unit, self._window = unit, window
        self._features = _most_frequent(train())
        shares, size = self._shares(train())
        others, other_size = self._shares(validation)
        self._sizes = (size, other_size)
        if not (len(shares) and len(others)):
            return
        deviation = shares.std(0)
        self._mean = shares.mean(0)
        self._scale = np.where(deviation > 0, deviation, np.inf)  # what never varies says nothing
        z, other_z = self._z(shares), self._z(others)[: len(shares)]
        self._profile = other_z.mean(0)
        whole = len(z) // len(other_z) * len(other_z)
        profiles = z[:whole].reshape(-1, *other_z.shape).mean(1)
        self._unseen = np.concatenate([_delta(other_z, profile) for profile in profiles])
        own = _delta(z, np.zeros_like(self._mean))
        self._scatter = own / np.median(own)

    def lack(self, size: int) -> str:
        """Which texts are too short for the distance of a text of `size` features, and what they need; or ""."""
        needs = (TRAINING_WINDOWS * self._window, self._window, self._window)
        rows = zip(("training", "validation", "generated"), (*self._sizes, size), needs, strict=True)
        short = [f"{have:,} of {name} text (needs {need:,})" for name, have, need in rows if have < need]
        return f"{self._unit}: {', '.join(short)}" if short else ""

    def ratio(self, text: Chunks, seed: int) -> tuple[float, float, float]:
        """(distance, low and high end of its 95 % bootstrap interval); 1.0 is as near as the author's unseen text.

        median(Delta of the text's windows to the mean of the validation windows) /
        median(Delta of the validation windows to means of equally many training windows).
        The interval resamples the windows in both medians; a side with few borrows the training windows' scatter.
        """
        far = _delta(self._z(self._shares(text)[0]), self._profile)
        draw = np.random.default_rng(seed).choice
        sides = (far, len(far)), (self._unseen, self._sizes[1] // self._window)
        above, below = (np.median(draw(self._pool(*side), (DRAWS, side[1])), axis=1) for side in sides)
        low, high = np.quantile(above / below, (0.025, 0.975))
        return float(np.median(far) / np.median(self._unseen)), float(low), float(high)

    def _shares(self, chunks: Chunks) -> tuple[np.ndarray, int]:
        """(share of each feature in each window, float64 (windows, features); how long the text is)."""
        features, width = self._features, len(self._features) + 1

        def columns() -> Iterator[np.ndarray]:
            for chunk in chunks:
                at = np.searchsorted(features, chunk).clip(max=len(features) - 1)
                yield np.where(features[at] == chunk, at, len(features)).astype(np.uint8)

        text = np.concatenate([np.zeros(0, np.uint8), *columns()])
        count = len(text) // self._window
        passages = text[: count * self._window].reshape(PASSAGES, count, self._window // PASSAGES)
        rows = passages.transpose(1, 0, 2).reshape(count, self._window)
        counts = np.array([np.bincount(row, minlength=width) for row in rows]).reshape(count, width)
        return counts[:, :-1] / self._window, len(text)

    def _z(self, shares: np.ndarray) -> np.ndarray:
        return (shares - self._mean) / self._scale

    def _pool(self, deltas: np.ndarray, count: int) -> np.ndarray:
        return deltas if count >= ENOUGH_WINDOWS else np.append(deltas, np.median(deltas) * self._scatter)


def _most_frequent(chunks: Chunks) -> np.ndarray:
    counts: Counter[int] = Counter()
    for chunk in chunks:
        numbers, times = np.unique(chunk, return_counts=True)
        counts.update(dict(zip(numbers.tolist(), times.tolist(), strict=True)))
    first = sorted(counts, key=lambda number: (-counts[number], number))[:NUM_FEATURES]
    return np.sort(np.array(first or [-1], dtype=np.int64))  # -1 is no feature's number


def _delta(windows: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Burrows's Delta of each row of z-scores to a profile."""
    return np.abs(windows - profile).mean(1)
