"""The token cache: one folder an entry, found without reading the text, written once, whole or not there at all.

    CACHE_DIR/KEY/
      meta.json                    counts, fingerprints of text and tokenizer, what was met while reading
      train.bin validation.bin     ids of a side, uint16 or uint32: <|endoftext|> document <|endoftext|> ...
      train.starts.npy ...         int64 (documents + 1,): where each document's <|endoftext|> stands, and the last one
      train.prompts.npy ...        int64 (documents,): tokens that are prompt, where the loss leaves them out
      tokenizer/

KEY stands for the files' paths, sizes and modification times and for every option. While an entry is written under
another name its lock is held; who comes second waits, and what a killed builder left is swept by the next one.
"""

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from tokenizers import Tokenizer
from tqdm import tqdm

from stylegen.blocks.split import Side
from stylegen.config import UsageError
from stylegen.tokenizer import DocumentEncoder, load_tokenizer, num_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger("stylegen")
SIDES = ("train", "validation")
LEFTOVER = re.compile(r"[0-9a-f]{32}(-old)?\.(tmp|lock)")
PAIRS_AT_ONCE = 1000


@dataclass(frozen=True)
class TextCounts:
    """What a side of the split consists of."""

    documents: int
    characters: int
    num_bytes: int  # UTF-8 bytes of the text
    tokens: int  # of the stream, separators between documents included


@dataclass(frozen=True)
class TokenStream:
    """One side of the split, memory-mapped.

    framed   ids (tokens + 2,), with <|endoftext|> before the first and after the last document too
    starts   int64 (documents + 1,), positions in `framed` of the <|endoftext|> before each document and at the end
    prompts  int64 (documents,), tokens at the start of each document that are prompt, or None if nobody asked
    """

    framed: np.ndarray
    starts: np.ndarray
    prompts: np.ndarray | None
    counts: TextCounts

    @property
    def tokens(self) -> np.ndarray:
        """The stream: documents with <|endoftext|> between them."""
        return self.framed[1:-1]


@dataclass(frozen=True)
class TokenCache:
    """Both sides, the tokenizer, fingerprints of the text (with its split) and the tokenizer, and what was met."""

    train: TokenStream
    validation: TokenStream
    tokenizer: "PreTrainedTokenizerFast"
    fingerprints: dict[str, str]
    findings: dict[str, Any]


def open_entry(
    cache_dir: Path,
    key: str,
    build: Callable[[Path], None],
    overwrite: bool = False,
    libraries: Callable[[], None] = lambda: None,
) -> TokenCache:
    """The entry of `key`, made by `build(folder)` first if there is none; waits if another process is making it.

    libraries  called before Transformers is used
    Raises UsageError if `cache_dir` cannot be used.
    """
    entry = cache_dir / key
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        _sweep(cache_dir)
        cache = None if overwrite else _open(entry, libraries)
        if cache is None:
            with _locked(cache_dir, key):
                # Another process may have made it meanwhile.
                cache = None if overwrite else _open(entry, libraries)
                if cache is None:
                    logger.info(f"reading and tokenizing the text, once, into {entry}")
                    _build(entry, build)
                    cache = _open(entry, libraries)
        assert cache is not None
        return cache
    except OSError as error:
        raise UsageError(
            f"the token cache {cache_dir} cannot be used: {error}; choose another --cache_dir"
        ) from error


def write_sides(
    folder: Path, sides: Sequence[Side], backend: Tokenizer, end: int, num_workers: int, prompts: bool
) -> dict[str, dict[str, int]]:
    """Tokenize both sides into `folder`, noting where prompts end if asked to; returns the counts of each by name.

    end  id of <|endoftext|>
    """
    encode, dtype = DocumentEncoder(backend), _dtype(backend)
    counts = {}
    for name, side in zip(SIDES, sides, strict=True):
        counts[name] = _write_side(folder, name, side, dtype(end), encode, num_workers)
        if prompts:
            np.save(folder / f"{name}.prompts.npy", _prompt_tokens(side, backend))
    return counts


def write_meta(folder: Path, tokenizer: "PreTrainedTokenizerFast", meta: dict[str, Any]) -> None:
    """Complete an entry: the tokenizer and meta.json."""
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    dtype = np.dtype(_dtype(tokenizer)).name
    (folder / "meta.json").write_text(json.dumps({"dtype": dtype, **meta}, indent=1), encoding="utf-8")


def _write_side(
    folder: Path,
    name: str,
    side: Side,
    end: np.uint16 | np.uint32,
    encode: DocumentEncoder,
    num_workers: int,
) -> dict[str, int]:
    starts = np.zeros(len(side.ranges) + 1, dtype=np.int64)
    document, position = 0, 1
    with _progress(f"tokenizing {name}", side) as bar, open(folder / f"{name}.bin", "wb") as file:
        file.write(end.tobytes())
        documents = (_counted(chunks, bar) for chunks in side.store.documents(side.ranges))
        for ids, ends in encode(documents, num_workers):
            starts[document + 1 : document + len(ends) + 1] = position + ends + np.arange(len(ends))
            ids = np.insert(ids.astype(end.dtype), ends, end)
            file.write(ids.tobytes())
            document, position = document + len(ends), position + len(ids)
    np.save(folder / f"{name}.starts.npy", starts)
    num_bytes = int((side.ranges[:, 1] - side.ranges[:, 0]).sum())
    return asdict(TextCounts(len(side.ranges), side.characters, num_bytes, position - 2))


def _open(entry: Path, libraries: Callable[[], None]) -> TokenCache | None:
    """An entry, or None if it is not there or not whole: cleaners of cache folders take single files."""
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        sides = {name: _open_side(entry, name, meta) for name in SIDES}
        libraries()
        tokenizer = load_tokenizer(str(entry / "tokenizer"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return TokenCache(
        **sides, tokenizer=tokenizer, fingerprints=meta["fingerprints"], findings=meta["findings"]
    )


def _open_side(entry: Path, name: str, meta: dict[str, Any]) -> TokenStream:
    counts = TextCounts(**meta[name])
    framed = np.memmap(entry / f"{name}.bin", dtype=meta["dtype"], mode="r")
    starts = np.load(entry / f"{name}.starts.npy", mmap_mode="r")
    prompts = np.load(entry / f"{name}.prompts.npy", mmap_mode="r") if meta["prompts"] else None
    if len(framed) != counts.tokens + 2 or len(starts) != counts.documents + 1:
        raise ValueError("cut short")
    return TokenStream(framed, starts, prompts, counts)


def _build(entry: Path, build: Callable[[Path], None]) -> None:
    temporary = entry.with_name(f"{entry.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a builder that was killed: we hold its lock
    temporary.mkdir()
    try:
        build(temporary)
        if entry.exists():  # under a name that is swept if the deletion is interrupted
            os.rename(entry, entry.with_name(f"{entry.name}-old.tmp"))
        os.rename(temporary, entry)
    finally:
        for leftover in entry.parent.glob(f"{entry.name}*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _locked(cache_dir: Path, key: str) -> Iterator[None]:
    """Hold the lock of an entry. Its file is deleted while it is held: who waited on it notices and tries again."""
    path = cache_dir / f"{key}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is preparing this text; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _progress(name: str, side: Side) -> tqdm:
    """A bar on a terminal, once it takes longer than a moment."""
    return tqdm(
        total=side.characters, desc=name, unit="char", unit_scale=True, delay=2, disable=None, leave=False
    )


def _counted(chunks: Iterator[str], bar: tqdm) -> Iterator[str]:
    for chunk in chunks:
        bar.update(len(chunk))
        yield chunk


def _sweep(cache_dir: Path) -> None:
    """Delete what killed builders left: their locks went with them."""
    for leftover in cache_dir.iterdir():
        if not LEFTOVER.fullmatch(leftover.name):  # the folder may hold other things, and they are not ours
            continue
        path = leftover.with_suffix(".lock")
        lock = FileLock(path)
        with contextlib.suppress(Timeout, OSError):
            lock.acquire(timeout=0)
            shutil.rmtree(leftover.with_suffix(".tmp"), ignore_errors=True)
            path.unlink(missing_ok=True)
            lock.release()


def _dtype(tokenizer: "PreTrainedTokenizerFast | Tokenizer") -> Any:
    return np.uint16 if num_ids(tokenizer) <= 1 << 16 else np.uint32


def _prompt_tokens(side: Side, backend: Tokenizer) -> np.ndarray:
    """Tokens of each document that end within its prompt: a token across the border belongs to the completion."""
    counts: list[int] = []
    for start in range(0, len(side.ranges), PAIRS_AT_ONCE):
        texts = [side.store.read(*span) for span in side.ranges[start : start + PAIRS_AT_ONCE].tolist()]
        borders = [
            len(text[:num_bytes].decode())
            for text, num_bytes in zip(texts, side.prompts[start:].tolist(), strict=False)
        ]
        # The library knows the place of each token in the text as it was given, whatever it normalizes or adds.
        encodings = backend.encode_batch([text.decode() for text in texts], add_special_tokens=False)
        for encoding, border in zip(encodings, borders, strict=True):
            counts.append(sum(end <= border for _, end in encoding.offsets))
    return np.array(counts, dtype=np.int64)
