"""Arguments -> token cache."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from stylegen.blocks.cache import SIDES, TokenCache, open_entry, write_meta, write_sides
from stylegen.blocks.split import Side, split_store
from stylegen.config import END_OF_TEXT, SHAKESPEARE, TrainArguments, UsageError
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
from stylegen.tokenizer import as_pretrained, load_tokenizer, train_backend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CACHE_FORMAT = 4
# The files of a folder that decide what its tokenizer is.
TOKENIZER_FILES = ("*token*.json", "vocab*", "merges.txt", "*.model", "*.gguf")
# The library's tokenizer, the id of its <|endoftext|>, and how to get that of Transformers around it.
Encoder = tuple[Tokenizer, int, Callable[[], "PreTrainedTokenizerFast"]]


def prepare_text(
    arguments: TrainArguments,
    train: Source,
    validation: Source | None,
    libraries: Callable[[], None] = lambda: None,
) -> TokenCache:
    """Find the token cache of these sources, or read, split and tokenize them.

    libraries  called before Transformers is used: a thread may wait there until it is imported
    Raises UsageError for text that cannot be used.
    """
    sources, version = _sources(arguments, train, validation)
    options = _text_options(arguments)
    percentage = arguments.validation_split_percentage or DEFAULT_SPLIT_PERCENTAGE
    split = (percentage, arguments.seed) if len(sources) == 1 else None
    state = [source.state() for source in sources]
    identity, get_encoder = _tokenizer(arguments, libraries)
    prompts = arguments.completion_only_loss  # where they end takes a second look at every pair

    def build(folder: Path) -> None:
        findings = Findings()
        stores = [_store(folder, source, options, findings) for source in sources]
        if [source.state() for source in sources] != state:
            raise UsageError(f"{train} changed while it was read; start again when nothing writes to it")
        same = same_content(path for source in sources for path in source.paths())
        findings.same_content = [f"{path} has the same content as {earlier}" for path, earlier in same]
        sides = _sides(train, stores, split)
        backend, end, get_tokenizer = get_encoder(sides[0])
        num_workers = arguments.preprocessing_num_workers or os.cpu_count() or 1
        counts = write_sides(folder, sides, backend, end, num_workers, prompts)
        libraries()
        tokenizer = get_tokenizer()
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
    cache = open_entry(cache_folder(arguments), key, build, arguments.overwrite_cache, libraries)
    for name, stream in zip(SIDES, (cache.train, cache.validation), strict=True):
        if stream.counts.tokens < 2:
            raise UsageError(
                f"the {name} text is {stream.counts.tokens} token long, but predicting one needs two; give more text"
            )
    return cache


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


def _tokenizer(
    arguments: TrainArguments, libraries: Callable[[], None]
) -> tuple[Any, Callable[[Side], Encoder]]:
    """(what makes two tokenizers the same, how to get this one once the training side is known)."""
    if kind := arguments.train_tokenizer:
        options = (
            arguments.vocab_size,
            arguments.normalizer,
            arguments.min_frequency,
            arguments.special_tokens,
        )

        def trained(side: Side) -> Encoder:
            backend = train_backend(kind, side.store.documents(side.ranges), side.characters, *options)
            end = backend.token_to_id(END_OF_TEXT) or 0
            return backend, end, lambda: as_pretrained(backend, arguments.special_tokens)

        return [kind, *options], trained
    where: tuple[str, str | None, str | None]
    if arguments.tokenizer_name:
        where = (arguments.tokenizer_name, None, None)
    else:
        assert arguments.model_name_or_path
        where = (arguments.model_name_or_path, arguments.model_revision, arguments.gguf_file)

    def loaded() -> Encoder:
        libraries()
        tokenizer = load_tokenizer(*where)
        return tokenizer.backend_tokenizer, int(tokenizer.eos_token_id or 0), lambda: tokenizer

    folder = Path(where[0])
    if folder.is_dir():
        files = sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)})
        return [where, Source(files=tuple(files)).state()], lambda side: loaded()
    encoder = loaded()  # a name on the hub can come to mean another one
    return encoder[0].to_str(), lambda side: encoder


def cache_folder(arguments: TrainArguments) -> Path:
    """Where what can be made again is kept."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "stylegen")
    return Path(arguments.cache_dir or default).expanduser()


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()
