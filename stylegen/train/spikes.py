"""Losses that stand out from those before them: of one rank, from what its forward passes have told anyway."""

import math

# How much of what was learned stays with each pass. The mean has to follow a loss that falls.
MEAN_MEMORY, DEVIATION_MEMORY = 0.95, 0.98
FIRST_PASSES = 100  # are only learned from
DEVIATIONS = 6.0  # trainings without a fault came to 3.6
SMALLEST = 0.3  # nats per token
MOST_REPORTS = 5


class LossSpikes:
    """Running mean of the loss per token, and how far its passes scatter.

    Few tokens scatter more than many: the deviation is that of one token, divided by the root of their number.
    A spike is taken in as if it were just below the limit. So it hardly hides the next one, and a loss that stays high
    becomes the usual one.
    """

    def __init__(self) -> None:
        self.passes, self.reports, self.is_high = 0, 0, False
        self._tokens = self._losses = self._weight = self._squares = 0.0

    def add(self, loss_sum: float, tokens: int) -> str | None:
        """Take in one pass; returns words about it if it is the first of a spike, of the first few in a process."""
        if tokens == 0 or not math.isfinite(loss_sum):
            return None
        loss, words = loss_sum / tokens, None
        mean = self._losses / self._tokens if self.passes else loss
        if self.passes >= FIRST_PASSES:
            deviation = math.sqrt(self._squares / self._weight / tokens)
            limit = mean + max(DEVIATIONS * deviation, SMALLEST)
            if loss > limit and not self.is_high and self.reports < MOST_REPORTS:
                self.reports += 1
                words = f"{loss:.2f} nats per token, usually {mean:.2f} with a deviation of {deviation:.2f}"
            self.is_high = loss > limit
            loss = min(loss, limit)
        self.passes += 1
        self._tokens = MEAN_MEMORY * self._tokens + tokens
        self._losses = MEAN_MEMORY * self._losses + tokens * loss
        self._weight = DEVIATION_MEMORY * self._weight + 1
        self._squares = DEVIATION_MEMORY * self._squares + tokens * (loss - mean) ** 2
        return words
