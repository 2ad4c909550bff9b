"""Documents -> token cache on disk -> training and validation blocks -> batches.

The documents of a side are tokenized whole and joined, `<|endoftext|>` between them, into one stream of ids that
is memory-mapped from the cache. Block i is `block_size` inputs starting at i * block_size, with the next token
of the stream as the label of each, so neighbours share one token and every token but the first is predicted
exactly once. The last block is padded, its missing labels ignored. Which blocks a step takes is arithmetic on
(seed, epoch, position): nothing has to be read or skipped to resume.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from stylegen.config import UsageError
from stylegen.model import IGNORED
from stylegen.tokenizer import encode, load_tokenizer, num_ids, token_byte_lengths

CACHE_FORMAT = 1


@dataclass(frozen=True)
class TextCounts:
    """What a side of the split consists of."""

    documents: int
    characters: int
    num_bytes: int  # UTF-8 bytes of the text
    tokens: int  # of the stream, separators included


@dataclass(frozen=True)
class TokenStream:
    """One side of the split: its ids, memory-mapped, and what they were made from."""

    tokens: np.ndarray
    counts: TextCounts


@dataclass(frozen=True)
class TokenCache:
    """Both sides, the tokenizer, and the fingerprint of text, tokenizer and options that they stand for."""

    train: TokenStream
    validation: TokenStream
    tokenizer: PreTrainedTokenizerFast
    fingerprint: str


class Blocks:
    """A token stream cut into blocks; `len()` is their number.

    stream      ids of one side, at least 2
    block_size  inputs per block (T)
    pad_id      the input where a padded block has none
    limit       use only the first `limit` blocks
    """

    def __init__(self, stream: np.ndarray, block_size: int, pad_id: int, limit: int | None = None):
        self.stream, self.block_size, self.pad_id = stream, block_size, pad_id
        available = -(-(len(stream) - 1) // block_size)
        self.count = min(available, limit or available)

    def __len__(self) -> int:
        return self.count

    def num_labels(self, indices: np.ndarray) -> int:
        """Predicted (not ignored) tokens in these blocks."""
        starts = indices.astype(np.int64) * self.block_size
        return int(np.minimum(len(self.stream) - 1 - starts, self.block_size).sum())

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels`, int64 (B, T). No index gives one block of ignored labels only."""
        rows = max(len(indices), 1)
        input_ids = np.full((rows, self.block_size), self.pad_id, dtype=np.int64)
        labels = np.full((rows, self.block_size), IGNORED, dtype=np.int64)
        for row, index in enumerate(indices):
            start = int(index) * self.block_size
            window = self.stream[start : start + self.block_size + 1]
            input_ids[row, : len(window) - 1] = window[:-1]
            labels[row, : len(window) - 1] = window[1:]
        return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}


def step_indices(seed: int, epoch: int, position: int, num_blocks: int, total_batch_size: int) -> np.ndarray:
    """The blocks of one optimizer step: `position` counts steps within the epoch, the last may be short."""
    order = np.random.default_rng([seed, epoch]).permutation(num_blocks)
    return order[position * total_batch_size : (position + 1) * total_batch_size]


def micro_batches(indices: np.ndarray, batch_size: int, world_size: int, rank: int) -> list[np.ndarray]:
    """The share of one rank in a step, one array a forward pass; all ranks get the same number of arrays.

    A short last group leaves some ranks with fewer blocks or none.
    """
    per_pass = batch_size * world_size
    passes = [indices[start : start + per_pass] for start in range(0, len(indices), per_pass)]
    return [part[rank * batch_size : (rank + 1) * batch_size] for part in passes]


def split_documents(documents: Sequence[str], percentage: float, seed: int) -> tuple[list[str], list[str]]:
    """Training and validation documents, `percentage` of the characters in the second.

    Whole documents, drawn with `seed`, where some of them come near the percentage; else the tail of the text,
    cut at a line end.
    """
    target = sum(map(len, documents)) * percentage / 100
    chosen: set[int] = set()
    size = 0
    for index in np.random.default_rng(seed).permutation(len(documents)):
        if size + len(documents[index]) / 2 <= target:  # it brings the size nearer to the target
            chosen.add(int(index))
            size += len(documents[index])
    if 0.5 * target <= size <= 1.5 * target and 0 < len(chosen) < len(documents):
        return (
            [document for index, document in enumerate(documents) if index not in chosen],
            [document for index, document in enumerate(documents) if index in chosen],
        )
    return _cut_tail(documents, round(target))


def build_cache(
    train: Sequence[str],
    validation: Sequence[str],
    tokenizer: PreTrainedTokenizerFast | Callable[[], PreTrainedTokenizerFast],
    tokenizer_identity: str,
    cache_dir: Path,
    overwrite: bool = False,
) -> TokenCache:
    """Open the cache entry of these texts and this tokenizer, making it first if there is none.

    tokenizer           a tokenizer, or how to train it, called only if the entry does not exist
    tokenizer_identity  what makes two tokenizers the same: part of the fingerprint
    Raises UsageError if a side has no text.
    """
    _refuse_empty(train, validation)
    fingerprint = _fingerprint(train, validation, tokenizer_identity)
    entry = cache_dir / fingerprint
    if entry.exists() and (overwrite or not _is_whole(entry)):
        shutil.rmtree(entry, ignore_errors=True)  # another process may have come to the same conclusion
    if not entry.exists():
        _write_entry(
            entry,
            train,
            validation,
            tokenizer if isinstance(tokenizer, PreTrainedTokenizerFast) else tokenizer(),
        )
    return _open_entry(entry, fingerprint)


def predicted_bytes(stream: TokenStream, num_labels: int, tokenizer: PreTrainedTokenizerFast) -> int:
    """UTF-8 bytes of the text behind the first `num_labels` predicted tokens of a stream.

    All of them: the text without its first token. Fewer: what they decode to, separators not counted.
    """
    lengths = token_byte_lengths(tokenizer)
    if num_labels == len(stream.tokens) - 1:
        return max(stream.counts.num_bytes - int(lengths[stream.tokens[0]]), 1)
    return max(int(lengths[stream.tokens[1 : num_labels + 1]].sum()), 1)


def describe(name: str, stream: TokenStream, blocks: Blocks) -> str:
    """One line for the log: what a side is made of, and how much of it is used."""
    counts, used = stream.counts, blocks.num_labels(np.arange(len(blocks)))
    last = blocks.num_labels(np.array([len(blocks) - 1]))
    partial = f", the last with {last}" if last < blocks.block_size else ""
    plural = "" if counts.documents == 1 else "s"
    return (
        f"{name}: {counts.documents:,} document{plural}, {counts.characters:,} characters, {counts.tokens:,} tokens, "
        f"{len(blocks):,} blocks of {blocks.block_size}{partial}; "
        f"kept {100 * used / (len(stream.tokens) - 1):.2f} % of the tokens"
    )


def _refuse_empty(train: Sequence[str], validation: Sequence[str]) -> None:
    if not any(document.strip() for document in train):
        raise UsageError(
            "the training text is empty; give more text, or a smaller --validation_split_percentage"
        )
    if not any(document.strip() for document in validation):
        raise UsageError(
            f"the validation text is empty (the training text has {sum(map(len, train)):,} characters); give more "
            f"text, a --validation_file or a larger --validation_split_percentage"
        )


def _cut_tail(documents: Sequence[str], target: int) -> tuple[list[str], list[str]]:
    remaining, index = target, len(documents) - 1
    while index > 0 and len(documents[index]) < remaining:
        remaining -= len(documents[index])
        index -= 1
    text = documents[index]
    cut = _nearest_line_end(text, max(len(text) - remaining, 0))
    train = [*documents[:index], text[:cut]]
    validation = [text[cut:], *documents[index + 1 :]]
    return [document for document in train if document], [document for document in validation if document]


def _nearest_line_end(text: str, position: int) -> int:
    """A cut near `position` just after a line break, else after white space, that leaves text on both sides.

    Near is within half of what follows `position`; with nothing near the cut is at `position` itself.
    """
    for mark in ("\n", " "):
        before, after = text.rfind(mark, 0, position), text.find(mark, position)
        cuts = [
            cut + 1
            for cut in (before, after)
            if cut >= 0 and 2 * abs(cut + 1 - position) <= len(text) - position
        ]
        cuts = [cut for cut in cuts if text[:cut].strip() and text[cut:].strip()]
        if cuts:
            return min(cuts, key=lambda cut: abs(cut - position))
    return position


def _fingerprint(train: Sequence[str], validation: Sequence[str], tokenizer_identity: str) -> str:
    digest = hashlib.blake2b(f"{CACHE_FORMAT}\n{tokenizer_identity}\n".encode(), digest_size=16)
    for side in (train, validation):
        digest.update(f"{len(side)}\n".encode())
        for document in side:
            raw = document.encode()
            digest.update(f"{len(raw)}\n".encode())
            digest.update(raw)
    return digest.hexdigest()


def _write_entry(
    entry: Path, train: Sequence[str], validation: Sequence[str], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write the entry under another name, then rename: an entry that exists is complete."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", suffix=".tmp", dir=entry.parent))
    try:
        dtype = np.uint16 if num_ids(tokenizer) <= 1 << 16 else np.uint32
        sides = {}
        for name, documents in (("train", train), ("validation", validation)):
            with open(temporary / f"{name}.bin", "wb") as file:
                tokens = sum(
                    file.write(part.astype(dtype).tobytes()) for part in _stream(documents, tokenizer)
                )
            sides[name] = asdict(
                TextCounts(
                    documents=len(documents),
                    characters=sum(map(len, documents)),
                    num_bytes=sum(len(document.encode()) for document in documents),
                    tokens=tokens // np.dtype(dtype).itemsize,
                )
            )
        tokenizer.save_pretrained(str(temporary / "tokenizer"))
        (temporary / "meta.json").write_text(json.dumps({"dtype": np.dtype(dtype).name, **sides}, indent=1))
        os.rename(temporary, entry)
    except FileExistsError:
        pass  # another process finished the same entry first
    except OSError:
        if not (entry / "meta.json").exists():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _stream(documents: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[np.ndarray]:
    separator = np.array([tokenizer.eos_token_id], dtype=np.uint32)
    for index, document in enumerate(documents):
        if index:
            yield separator
        yield encode(tokenizer, document)


def _is_whole(entry: Path) -> bool:
    """Whether an entry has all its files in full: cleaners of cache folders take single files."""
    try:
        meta = json.loads((entry / "meta.json").read_text())
        load_tokenizer(str(entry / "tokenizer"))
        itemsize = np.dtype(meta["dtype"]).itemsize
        sides = ("train", "validation")
        return all(
            (entry / f"{name}.bin").stat().st_size == meta[name]["tokens"] * itemsize for name in sides
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _open_entry(entry: Path, fingerprint: str) -> TokenCache:
    meta = json.loads((entry / "meta.json").read_text())
    sides = {}
    for name in ("train", "validation"):
        counts = TextCounts(**meta[name])
        if counts.tokens < 2:
            raise UsageError(
                f"the {name} text is {counts.tokens} token long, but predicting one needs two; give more text"
            )
        sides[name] = TokenStream(np.memmap(entry / f"{name}.bin", dtype=meta["dtype"], mode="r"), counts)
    return TokenCache(tokenizer=load_tokenizer(str(entry / "tokenizer")), fingerprint=fingerprint, **sides)
