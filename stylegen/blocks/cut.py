"""Token cache -> blocks, how many bytes of text they stand for, and the words about them for the log."""

from typing import TYPE_CHECKING

import numpy as np

from stylegen.blocks.cache import SIDES, TokenCache, TokenStream
from stylegen.blocks.packing import Blocks, PackedBlocks, StreamBlocks
from stylegen.config import TrainArguments, UsageError
from stylegen.loss import IGNORED
from stylegen.tokenizer import token_byte_lengths

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHUNK_TOKENS = 1 << 20


def cut_blocks(arguments: TrainArguments, cache: TokenCache) -> tuple[Blocks, Blocks]:
    """Training and validation blocks. Raises UsageError if a side has no room for one."""
    assert arguments.block_size and cache.tokenizer.pad_token_id is not None
    pad_id: int = cache.tokenizer.pad_token_id
    if arguments.packing != "stream":
        limits = (arguments.max_train_samples, arguments.max_eval_samples)
        train, validation = (
            PackedBlocks(
                stream,
                arguments.block_size,
                pad_id,
                truncate=arguments.packing == "pad",
                completion_only=arguments.completion_only_loss,
                limit=limit,
            )
            for stream, limit in zip((cache.train, cache.validation), limits, strict=True)
        )
        if not (len(train) and len(validation)):
            raise UsageError(
                f"no {'validation' if len(train) else 'train'} pair has a completion within block_size "
                f"{arguments.block_size}; use a larger one"
            )
        return train, validation
    available = cache.validation.counts.tokens - 1
    if arguments.validation_split_percentage and available < arguments.block_size:
        raise UsageError(
            f"no room for one validation block: {arguments.validation_split_percentage:g} % of the text is "
            f"{available} tokens, block_size is {arguments.block_size}; use a smaller --block_size, a larger "
            f"--validation_split_percentage, or a --validation_file"
        )
    return (
        StreamBlocks(
            cache.train, arguments.block_size, pad_id, arguments.max_train_samples, arguments.random_windows,
            arguments.seed,
        ),
        StreamBlocks(cache.validation, arguments.block_size, pad_id, arguments.max_eval_samples),
    )  # fmt: skip


def predicted_bytes(stream: TokenStream, blocks: Blocks, tokenizer: "PreTrainedTokenizerFast") -> int:
    """UTF-8 bytes of the text behind the predicted tokens of `blocks`.

    All of the stream: its text, in plain blocks without the first token. Less: what the labels decode to, of a
    tokenizer with a normalizer in proportion to the text as it was given.
    """
    lengths = token_byte_lengths(tokenizer)
    num_labels = blocks.num_labels(np.arange(len(blocks)))
    if isinstance(blocks, StreamBlocks) and num_labels == stream.counts.tokens - 1:
        return max(stream.counts.num_bytes - int(lengths[stream.tokens[0]]), 1)
    if num_labels == stream.counts.tokens + 1:  # packed, with what ends the last document
        return stream.counts.num_bytes
    total = 0.0
    for index in range(len(blocks)):
        labels = blocks.batch(np.array([index]))["labels"]
        total += int(lengths[labels[labels != IGNORED].numpy()].sum())
    if tokenizer.backend_tokenizer.normalizer is not None:  # they decode to the normal form, not to the text
        starts = range(0, len(stream.tokens), CHUNK_TOKENS)
        decoded = sum(int(lengths[stream.tokens[start : start + CHUNK_TOKENS]].sum()) for start in starts)
        total *= stream.counts.num_bytes / max(decoded, 1)
    return max(round(total), 1)


def describe_text(cache: TokenCache) -> list[str]:
    """The table of documents for the log, with what was dropped and why."""
    rows = [f"{'documents':12}{'count':>12}{'characters':>16}{'tokens':>16}"]
    for name, stream in zip(SIDES, (cache.train, cache.validation), strict=True):
        counts = stream.counts
        rows.append(f"{name:12}{counts.documents:>12,}{counts.characters:>16,}{counts.tokens:>16,}")
    dropped = cache.findings["dropped"]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
    rows.append(f"{'dropped':12}{sum(dropped.values()):>12,}" + (f"  ({reasons})" if reasons else ""))
    if texts := cache.findings["boilerplate_texts"]:
        rows.append(
            f"Project Gutenberg headers and footers cut from {texts:,} text{'s' * (texts > 1)} "
            f"({cache.findings['boilerplate_characters']:,} characters); --keep_boilerplate keeps them"
        )
    rows += [f"warning: {line}" for line in cache.findings["same_content"]]
    return rows


def describe(name: str, stream: TokenStream, blocks: Blocks) -> str:
    """One line for the log: how a side is cut, and how much of it is used."""
    used = blocks.num_labels(np.arange(len(blocks)))
    text = f"{name}: {len(blocks):,} block{'s' * (len(blocks) != 1)} of {blocks.block_size}"
    if isinstance(blocks, StreamBlocks):
        if blocks.random_windows:
            text += f", {blocks.random_windows:,} of them random windows that change with each epoch"
        used -= blocks.random_windows * blocks.block_size
        last = blocks.num_labels(np.array([blocks.num_plain - 1]))
        text += f", the last with {last}" if last < blocks.block_size and not blocks.random_windows else ""
        available = stream.counts.tokens - 1
    else:
        filled = used / (len(blocks) * blocks.block_size)
        text += f", {100 * filled:.2f} % of their labels count"
        available = stream.counts.tokens + 1
    return f"{text}; kept {100 * used / available:.2f} % of the {stream.counts.tokens:,} tokens"
