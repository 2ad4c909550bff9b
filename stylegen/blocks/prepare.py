"""Arguments -> token cache -> blocks, and the words about them for the log."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from stylegen.blocks.cache import SIDES, TokenCache, TokenStream, open_entry, write_meta, write_sides
from stylegen.blocks.packing import Blocks, PackedBlocks, StreamBlocks
from stylegen.blocks.split import Side, split_store
from stylegen.config import SHAKESPEARE, TrainArguments, UsageError
from stylegen.config.checks import DEFAULT_SPLIT_PERCENTAGE
from stylegen.corpus import (
    Findings,
    Source,
    TextOptions,
    dataset_splits,
    read_pieces,
    same_content,
)
from stylegen.corpus.store import TextStore
from stylegen.loss import IGNORED
from stylegen.tokenizer import load_tokenizer, token_byte_lengths, train_tokenizer

CACHE_FORMAT = 4
CHUNK_TOKENS = 1 << 20
# The files of a folder that decide what its tokenizer is.
TOKENIZER_FILES = ("*token*.json", "vocab*", "merges.txt", "*.model", "*.gguf")


def prepare_text(arguments: TrainArguments, train: Source, validation: Source | None) -> TokenCache:
    """Find the token cache of these sources, or read, split and tokenize them.

    Raises UsageError for text that cannot be used.
    """
    sources, version = _sources(arguments, train, validation)
    options = _text_options(arguments)
    percentage = arguments.validation_split_percentage or DEFAULT_SPLIT_PERCENTAGE
    split = (percentage, arguments.seed) if len(sources) == 1 else None
    state = [source.state() for source in sources]
    identity, get_tokenizer = _tokenizer(arguments)
    prompts = arguments.completion_only_loss  # where they end takes a second look at every pair

    def build(folder: Path) -> None:
        findings = Findings()
        stores = [_store(folder, source, options, findings) for source in sources]
        if [source.state() for source in sources] != state:
            raise UsageError(f"{train} changed while it was read; start again when nothing writes to it")
        same = same_content(path for source in sources for path in source.paths())
        findings.same_content = [f"{path} has the same content as {earlier}" for path, earlier in same]
        sides = _sides(train, stores, split)
        tokenizer = get_tokenizer(sides[0])
        num_workers = arguments.preprocessing_num_workers or os.cpu_count() or 1
        counts = write_sides(folder, sides, tokenizer, num_workers, prompts)
        digests = [store.digest for store in stores]
        fingerprints = {
            "text": _hash([digests, split]),
            "tokenizer": _hash(tokenizer.backend_tokenizer.to_str()),
        }
        for store in stores:
            store.path.unlink()
        meta = {"prompts": prompts, "fingerprints": fingerprints, "findings": asdict(findings)}
        write_meta(folder, tokenizer, {**counts, **meta})

    # The files themselves are in the state.
    where = [asdict(source) | {"files": None, "pair_files": bool(source.pair_files)} for source in sources]
    key = _hash([CACHE_FORMAT, state, where, version, asdict(options), split, identity, prompts])
    cache = open_entry(_cache_dir(arguments), key, build, arguments.overwrite_cache)
    for name, stream in zip(SIDES, (cache.train, cache.validation), strict=True):
        if stream.counts.tokens < 2:
            raise UsageError(
                f"the {name} text is {stream.counts.tokens} token long, but predicting one needs two; give more text"
            )
    return cache


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


def predicted_bytes(stream: TokenStream, blocks: Blocks, tokenizer: PreTrainedTokenizerFast) -> int:
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


def _sources(
    arguments: TrainArguments, train: Source, validation: Source | None
) -> tuple[list[Source], str | None]:
    """(training source and, if it is not to be split, the validation source; the version of a dataset)."""
    version = None
    if train.dataset and train.dataset != SHAKESPEARE:
        splits, version = dataset_splits(train.dataset, train.config_name)
        if validation is None and arguments.validation_split_percentage is None and "validation" in splits:
            validation = replace(train, split="validation")
    return [train] if validation is None else [train, validation], version


def _text_options(arguments: TrainArguments) -> TextOptions:
    return TextOptions(
        text_column=arguments.text_column,
        prompt_column=arguments.prompt_column,
        completion_column=arguments.completion_column,
        document_separator=arguments.document_separator,
        keep_boilerplate=arguments.keep_boilerplate,
        pair_separator=arguments.pair_separator,
        max_completion_words=arguments.max_completion_words,
        detokenize=arguments.detokenize,
    )


def _store(folder: Path, source: Source, options: TextOptions, findings: Findings) -> TextStore:
    path = folder / f"text-{len(list(folder.iterdir()))}"
    return TextStore.write(path, read_pieces(source, options, findings), findings)


def _sides(source: Source, stores: list[TextStore], split: tuple[float, int] | None) -> list[Side]:
    """Training and validation side: a store each, or one that is split by (percentage, seed)."""
    if not any(len(store.characters) for store in stores):
        raise UsageError(f"{source} is empty; give a file with text in it")
    sides = [*split_store(stores[0], *split)] if split else [Side.whole(store) for store in stores]
    _refuse_empty(*sides)
    return sides


def _refuse_empty(train: Side, validation: Side) -> None:
    if not train.characters:
        raise UsageError(
            "the training text is empty; give more text, or a smaller --validation_split_percentage"
        )
    if not validation.characters:
        raise UsageError(
            f"the validation text is empty (the training text has {train.characters:,} characters); give more "
            f"text, a --validation_file or a larger --validation_split_percentage"
        )


def _tokenizer(arguments: TrainArguments) -> tuple[Any, Callable[[Side], PreTrainedTokenizerFast]]:
    """(what makes two tokenizers the same, how to get this one once the training side is known)."""
    if kind := arguments.train_tokenizer:
        options = (
            arguments.vocab_size,
            arguments.normalizer,
            arguments.min_frequency,
            arguments.special_tokens,
        )
        return [kind, *options], lambda side: train_tokenizer(
            kind, side.store.documents(side.ranges), side.characters, *options
        )
    where: tuple[str, str | None, str | None]
    if arguments.tokenizer_name:
        where = (arguments.tokenizer_name, None, None)
    else:
        assert arguments.model_name_or_path
        where = (arguments.model_name_or_path, arguments.model_revision, arguments.gguf_file)
    folder = Path(where[0])
    if folder.is_dir():
        files = sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)})
        return [where, Source(files=tuple(files)).state()], lambda side: load_tokenizer(*where)
    tokenizer = load_tokenizer(*where)  # a name on the hub can come to mean another one
    return tokenizer.backend_tokenizer.to_str(), lambda side: tokenizer


def _cache_dir(arguments: TrainArguments) -> Path:
    default = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "stylegen")
    return Path(arguments.cache_dir or default).expanduser()


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()
