"""Burrows's Delta from generated text to the author's, in units of the author's distance to himself.

J. Burrows, "Delta: a measure of stylistic difference and a guide to likely authorship", Literary and Linguistic
Computing 17(3), 2002: the shares of the most frequent words, each as a z-score; Delta is the mean absolute difference
of two texts' z-scores. Four choices are ours, each against something that would be taken for style:

- A window is not one long passage but 20 short ones, taken at equal steps from the whole text. Samples are short, so a
  window of them mixes subjects, which a long passage of the author does not, and small samples of his own came out far.
- A generated window is the mean of the whole text with the scatter that the author's windows have. A text in which
  frequent words are rarer than in his scatters less, and gibberish came out no farther than a trained model's text.
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
ENOUGH_WINDOWS = 20  # from here on the validation windows say how they scatter
DRAWS = 1000  # of the bootstrap, in batches of BATCH
BATCH = 100
SCATTER = 25  # training windows whose scatter is enough in each of them
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
        training, size = self._passages(train())
        unseen, unseen_size = self._passages(validation)
        self._sizes = (size, unseen_size)
        if self.lack(window):
            return
        shares = self._windows(training)
        deviation = shares.std(0)
        self._mean = shares.mean(0)
        self._scale = np.where(deviation > 0, deviation, np.inf)  # what never varies says nothing
        self._scatter = self._z(shares)  # around 0
        z = self._z(self._windows(unseen))[: len(shares)]
        self._num_unseen = len(z)
        self._profile = z.mean(0)
        whole = len(shares) // len(z) * len(z)
        profiles = self._scatter[:whole].reshape(-1, *z.shape).mean(1)
        self._unseen = np.concatenate([_delta(z, profile) for profile in profiles])

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
        The interval resamples the text's passages and the validation windows; few of those borrow the training
        windows' scatter. It is taken around the distance: what is resampled is noisier than what it stands for.
        """
        passages, _ = self._passages(text)
        generator, count = np.random.default_rng(seed), len(passages)
        times = (
            generator.multinomial(count, np.full(count, 1 / count), BATCH) for _ in range(DRAWS // BATCH)
        )
        above = np.concatenate([self._far(weights @ passages, passages, SCATTER) for weights in times])
        pool = self._unseen
        if self._num_unseen < ENOUGH_WINDOWS:
            own = _delta(self._scatter, np.zeros_like(self._mean))
            pool = np.append(pool, own * (np.median(pool) / np.median(own)))
        below = np.median(generator.choice(pool, (DRAWS, self._num_unseen)), axis=1)
        distance = self._far(passages.sum(0)[None], passages, len(self._scatter))[0] / np.median(self._unseen)
        low, high = distance * np.quantile(above / below, (0.025, 0.975)) / np.median(above / below)
        return float(distance), float(low), float(high)

    def _far(self, counts: np.ndarray, passages: np.ndarray, num_windows: int) -> np.ndarray:
        """Median Delta of the windows of texts, each of which has as many passages as `passages`, (texts,).

        counts       of the features in each text, (texts, features)
        passages     those of the text itself, which tell how much its mean scatters
        num_windows  of the training text, whose scatter they take
        """
        means = self._z(counts / (len(passages) * (self._window // PASSAGES)))
        own = (passages.var(0) / (self._window // PASSAGES * self._scale) ** 2).mean() / len(passages)
        scatter = np.sqrt(max(1 - own, 0)) * self._scatter[:: max(len(self._scatter) // num_windows, 1)]
        return np.median(_delta(means[:, None] + scatter, self._profile), axis=1)

    def _passages(self, chunks: Chunks) -> tuple[np.ndarray, int]:
        """(how often each feature stands in each passage, (passages, features); how long the text is)."""
        features, length = self._features, self._window // PASSAGES

        def columns() -> Iterator[np.ndarray]:
            for chunk in chunks:
                at = np.searchsorted(features, chunk).clip(max=len(features) - 1)
                yield np.where(features[at] == chunk, at, len(features)).astype(np.uint8)

        text = np.concatenate([np.zeros(0, np.uint8), *columns()])
        counts = np.zeros((len(text) // length, len(features) + 1), np.uint16)
        for row, passage in zip(counts, text[: len(counts) * length].reshape(-1, length), strict=True):
            row[:] = np.bincount(passage, minlength=len(row))
        return counts[:, :-1], len(text)

    def _windows(self, passages: np.ndarray) -> np.ndarray:
        """Share of each feature in each window, (windows, features): the first of k has passages 1, k + 1, ..."""
        count = len(passages) // PASSAGES
        return passages[: count * PASSAGES].reshape(PASSAGES, count, -1).sum(0) / self._window

    def _z(self, shares: np.ndarray) -> np.ndarray:
        return (shares - self._mean) / self._scale


def _most_frequent(chunks: Chunks) -> np.ndarray:
    counts: Counter[int] = Counter()
    for chunk in chunks:
        numbers, times = np.unique(chunk, return_counts=True)
        counts.update(dict(zip(numbers.tolist(), times.tolist(), strict=True)))
    first = sorted(counts, key=lambda number: (-counts[number], number))[:NUM_FEATURES]
    return np.sort(np.array(first or [-1], dtype=np.int64))  # -1 is no feature's number


def _delta(windows: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Burrows's Delta of each row of z-scores to a profile."""
    return np.abs(windows - profile).mean(-1)
