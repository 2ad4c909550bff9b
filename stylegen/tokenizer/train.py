"""Train a tokenizer in one pass over a text: byte-level BPE, or characters.

Both are byte-exact for any text: what there is no word for is spelled in bytes. The same text gives the same tokenizer.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from stylegen.config import END_OF_TEXT, UsageError
from stylegen.tokenizer.encode import slices
from stylegen.tokenizer.fast import NUM_CODE_POINTS, code_points, normal_form

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Words longer than this are pieces of data, not words; training on them whole costs time with its square.
LONGEST_TRAINED_WORD = 256
# The library takes 256 pieces at once; small ones, that they do not fill the memory.
TRAINED_CHARACTERS = 1 << 14


def train_tokenizer(
    kind: str,
    documents: Iterable[Iterable[str]],
    num_characters: int,
    vocab_size: int | None,
    normalizer: str,
    min_frequency: int = 0,
    special_tokens: Sequence[str] = (),
) -> "PreTrainedTokenizerFast":
    """What `train_backend` makes of the same values, as a tokenizer of Transformers."""
    backend = train_backend(
        kind, documents, num_characters, vocab_size, normalizer, min_frequency, special_tokens
    )
    return as_pretrained(backend, special_tokens)


def train_backend(
    kind: str,
    documents: Iterable[Iterable[str]],
    num_characters: int,
    vocab_size: int | None,
    normalizer: str,
    min_frequency: int = 0,
    special_tokens: Sequence[str] = (),
) -> Tokenizer:
    """Train a tokenizer on documents, each an iterable of chunks of its text; the same text gives the same tokenizer.

    kind            "bpe" or "char"
    num_characters  how many there are about, to find a size that fits
    vocab_size      words of the BPE, special tokens and bytes counted, or None for `fitting_vocab_size`
    normalizer      "none", "nfc", "nfd", "nfkc" or "nfkd"
    min_frequency   pairs (bpe) seen less often are not merged; characters (char) are left to their bytes
    special_tokens  more of them, whose ids follow that of `<|endoftext|>`, which is 0
    Raises UsageError for special tokens that cannot be, or a vocabulary too small for what is always in it.
    """
    special = [END_OF_TEXT, *special_tokens]
    _check_special_tokens(special)
    form = None if normalizer == "none" else getattr(normalizers, normalizer.upper())()
    if kind == "char":
        return _character_tokenizer(documents, form, max(min_frequency, 1), special)
    return _byte_level_bpe(
        documents, form, vocab_size or fitting_vocab_size(num_characters), min_frequency, special
    )


def as_pretrained(backend: Tokenizer, special_tokens: Sequence[str] = ()) -> "PreTrainedTokenizerFast":
    """The tokenizer of Transformers around one that `train_backend` made with these special tokens; the same ids."""
    from transformers import PreTrainedTokenizerFast  # not above: texts are prepared while it is imported

    roles = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=list(special_tokens),
        **roles,
    )


def fitting_vocab_size(num_characters: int) -> int:
    """The power of two next to the square root of the text's length, between 512 and 32,768.

    A rule of thumb: the output layer is most of a small model's time, and a word must be seen to be learnt.
    """
    return int(min(max(2 ** round(np.log2(max(num_characters, 1)) / 2), 512), 32768))


def _check_special_tokens(special: list[str]) -> None:
    if "" in special:
        raise UsageError("special_tokens holds an empty token; give each some characters")
    if special.count(END_OF_TEXT) > 1:
        raise UsageError(f"special_tokens holds {END_OF_TEXT}, which is there already; leave it out")
    twice = next((token for token in special if special.count(token) > 1), None)
    if twice is not None:
        raise UsageError(f"special_tokens holds {twice} more than once; give each token once")


def _byte_level_bpe(
    documents: Iterable[Iterable[str]],
    form: normalizers.Normalizer | None,
    vocab_size: int,
    min_frequency: int,
    special: list[str],
) -> Tokenizer:
    smallest = len(special) + 256
    if vocab_size < smallest:
        raise UsageError(
            f"vocab_size is {vocab_size}, but the bytes and the special tokens alone are {smallest}; give that or more"
        )
    backend = Tokenizer(models.BPE())
    if form is not None:
        backend.normalizer = form
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_training_pieces(documents), trainer)
    return backend


def _training_pieces(documents: Iterable[Iterable[str]]) -> Iterator[str]:
    limit = LONGEST_TRAINED_WORD
    long_run = re.compile(rf"\S{{{limit + 1}}}|\s{{{limit + 1}}}")
    part = re.compile(rf"\s{{0,{limit}}}\S{{1,{limit}}}|\s{{1,{limit}}}")
    for document in documents:
        for piece in slices(document, TRAINED_CHARACTERS):
            if long_run.search(piece):
                yield from (found.group() for found in part.finditer(piece))
            else:
                yield piece


def _character_tokenizer(
    documents: Iterable[Iterable[str]],
    form: normalizers.Normalizer | None,
    min_frequency: int,
    special: list[str],
) -> Tokenizer:
    counts = _character_counts(documents, form)
    characters = map(chr, np.flatnonzero(counts >= min_frequency).tolist())
    # A special token may be one character, or written as a byte is: it is one word then.
    words = dict.fromkeys([*special, *characters, *(f"<0x{byte:02X}>" for byte in range(256))])
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    if form is not None:
        backend.normalizer = form
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(special)
    return backend


def _character_counts(documents: Iterable[Iterable[str]], form: normalizers.Normalizer | None) -> np.ndarray:
    """How often each code point is in the normal form of the text, int64 (0x110000,)."""
    counts = np.zeros(NUM_CODE_POINTS, dtype=np.int64)
    for document in documents:
        for piece in slices(document):
            seen = np.bincount(code_points(normal_form(form, piece)))
            counts[: len(seen)] += seen
    return counts
