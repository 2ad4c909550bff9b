"""Token stream -> blocks: plain ones with random windows beside them, packed documents, or one document a block.

A block is `block_size` inputs and, for each, the next token as its label. Nothing is dropped in silence: what a
block has no room for is the next block's, and what padding and truncation leave out is not in `num_labels`.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch

from stylegen.blocks.cache import TokenStream
from stylegen.config import UsageError
from stylegen.loss import IGNORED

Batch = dict[str, torch.Tensor]


class Blocks(ABC):
    """Training sequences by number; `len()` counts them.

    stream      the side of the cache they are cut from
    block_size  inputs per block (T)
    pad_id      the input where a block has none
    """

    stream: TokenStream
    block_size: int
    pad_id: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def num_labels(self, indices: np.ndarray) -> int:
        """Predicted (not ignored) tokens in these blocks."""

    @abstractmethod
    def spans(self, index: int, epoch: int) -> list[tuple[int, int, int]]:
        """What a block consists of: (begin, end) in `stream.framed`, one more than its inputs, and the first label
        that counts."""

    def segments(self, index: int, epoch: int) -> list[tuple[np.ndarray, int]]:
        """The same as (ids, first label that counts)."""
        framed = self.stream.framed
        return [(framed[begin:end], first_label) for begin, end, first_label in self.spans(index, epoch)]

    def batch(self, indices: np.ndarray, epoch: int = 0) -> Batch:
        """`input_ids` and `labels`, int64 (B, T). No index gives one block of ignored labels only."""
        rows = max(len(indices), 1)
        input_ids = np.full((rows, self.block_size), self.pad_id, dtype=np.int64)
        labels = np.full((rows, self.block_size), IGNORED, dtype=np.int64)
        positions = np.tile(np.arange(self.block_size), (rows, 1)) if self.restarts_positions else None
        for row, index in enumerate(indices):
            start = 0
            for ids, first_label in self.segments(int(index), epoch):
                end = start + len(ids) - 1
                input_ids[row, start:end] = ids[:-1]
                labels[row, start + first_label : end] = ids[1 + first_label :]
                start = end
                if positions is not None:  # what follows, padding too, begins at 0
                    positions[row, start:] = np.arange(self.block_size - start)
        arrays = {"input_ids": input_ids, "labels": labels}
        if positions is not None:
            arrays["position_ids"] = positions
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @property
    def restarts_positions(self) -> bool:
        """Whether a batch has `position_ids`, int64 (B, T), which begin anew at 0 with each document."""
        return False


class StreamBlocks(Blocks):
    """A stream cut every `block_size` tokens: neighbours share one, every token but the first is predicted once.

    stream          one side of the cache, at least 2 tokens
    limit           use only the first `limit` blocks
    random_windows  as many more blocks, each at an offset drawn by (seed, epoch, index) within one document
    """

    def __init__(
        self,
        stream: TokenStream,
        block_size: int,
        pad_id: int,
        limit: int | None = None,
        random_windows: int = 0,
        seed: int = 0,
    ):
        self.stream, self.block_size, self.pad_id = stream, block_size, pad_id
        self.num_tokens = len(stream.tokens)
        available = -(-(self.num_tokens - 1) // block_size)
        self.num_plain = min(available, limit or available)
        self.random_windows, self.seed = random_windows, seed
        if random_windows:
            self.starts = stream.starts[:-1]
            # A document of n tokens has n - block_size windows with a label for each input.
            self.offsets = np.cumsum(np.maximum(np.diff(stream.starts) - 1 - block_size, 0))
            if self.offsets[-1] == 0:
                raise UsageError(
                    f"random_windows needs a document longer than block_size {block_size}, but the longest training "
                    f"document has {int(np.diff(stream.starts).max()) - 1} tokens; use a smaller --block_size"
                )

    def __len__(self) -> int:
        return self.num_plain + self.random_windows

    def num_labels(self, indices: np.ndarray) -> int:
        plain = indices[indices < self.num_plain].astype(np.int64) * self.block_size
        in_plain = np.minimum(self.num_tokens - 1 - plain, self.block_size).sum()
        return int(in_plain) + (len(indices) - len(plain)) * self.block_size

    def spans(self, index: int, epoch: int) -> list[tuple[int, int, int]]:
        start = index * self.block_size if index < self.num_plain else self._window(index, epoch)
        end = min(start + self.block_size + 1, self.num_tokens)
        return [(1 + start, 1 + end, 0)]  # the stream is `framed` without its ends

    def _window(self, index: int, epoch: int) -> int:
        """Where in the stream this epoch's random window begins."""
        drawn = int(np.random.default_rng([self.seed, epoch, index]).integers(self.offsets[-1]))
        document = int(np.searchsorted(self.offsets, drawn, side="right"))
        before = int(self.offsets[document - 1]) if document else 0
        return int(self.starts[document]) + drawn - before


class PackedBlocks(Blocks):
    """Whole documents in blocks, each with <|endoftext|> before it as input and after it as label.

    stream           one side of the cache
    truncate         one document a block, what it has no room for left out; else several share one, none sees another,
                     and a document longer than a block goes on in the next
    completion_only  labels of the prompt part of a pair are ignored
    limit            use only the first `limit` blocks
    """

    def __init__(
        self,
        stream: TokenStream,
        block_size: int,
        pad_id: int,
        *,
        truncate: bool = False,
        completion_only: bool = False,
        limit: int | None = None,
    ):
        self.stream, self.block_size, self.pad_id = stream, block_size, pad_id
        self.restart = not truncate
        self.begin, self.length, document = _cut(stream.starts, block_size, truncate)
        offset = self.begin - stream.starts[document]
        prompts = stream.prompts[document] if completion_only and stream.prompts is not None else 0
        self.ignored = np.clip(prompts - offset, 0, self.length)
        counted = np.flatnonzero(self.ignored < self.length)  # a segment without a label teaches nothing
        block = np.arange(len(counted)) if truncate else _in_order(best_fit(self.length[counted], block_size))
        order = np.argsort(block, kind="stable")
        self.order = counted[order]
        self.first = np.searchsorted(block[order], np.arange(block.max(initial=-1) + 2))
        labels = np.concatenate([[0], np.cumsum((self.length - self.ignored)[self.order])])
        self.labels = np.diff(labels[self.first])
        self.count = min(len(self.labels), limit or len(self.labels))

    def __len__(self) -> int:
        return self.count

    @property
    def restarts_positions(self) -> bool:
        return self.restart

    def num_labels(self, indices: np.ndarray) -> int:
        return int(self.labels[indices].sum())

    def spans(self, index: int, epoch: int) -> list[tuple[int, int, int]]:
        chosen = self.order[self.first[index] : self.first[index + 1]]
        columns = (self.begin[chosen], self.begin[chosen] + self.length[chosen] + 1, self.ignored[chosen])
        return list(zip(*(column.tolist() for column in columns), strict=True))


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The bin of each length, int64 (N,): longest first, each into the fullest bin that still has room for it.

    Best-fit decreasing; the lengths are at most `capacity`, so bins are found by the room they have left.
    """
    bins = np.empty(len(lengths), dtype=np.int64)
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms, num_bins = 0, 0  # bit r of `rooms`: some bin has room for exactly r more
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, chosen = capacity, num_bins
            num_bins += 1
        if left := room - length:
            with_room[left].append(chosen)
            rooms |= 1 << left
        bins[index] = chosen
    return bins


def _in_order(bins: np.ndarray) -> np.ndarray:
    """The same bins, numbered by the first thing in each: the first blocks are then a fair part of the text."""
    _, first = np.unique(bins, return_index=True)
    number = np.empty_like(first)
    number[np.argsort(first)] = np.arange(len(first))
    return number[bins]


def _cut(starts: np.ndarray, block_size: int, truncate: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(begin in the framed stream, inputs, document) of each segment: documents, cut where they exceed a block."""
    lengths = np.diff(starts)
    pieces = np.ones_like(lengths) if truncate else -(-lengths // block_size)
    document = np.repeat(np.arange(len(lengths)), pieces)
    number = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = np.asarray(starts)[document] + number * block_size
    return begin, np.minimum(np.asarray(starts)[document + 1] - begin, block_size), document
