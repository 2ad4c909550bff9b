"""Load a tokenizer or train one, and turn whole documents into ids.

Two are trained here, both byte-exact for any text: byte-level BPE, and characters (a BPE without merges that
spells characters it has never seen as bytes). `<|endoftext|>` is the only special token: it stands between
documents, starts a text that has no prompt, ends it, and pads.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stylegen.config import UsageError, first_line

END_OF_TEXT = "<|endoftext|>"
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # how byte fallback spells what there is no word for
SLICE_CHARACTERS = 1 << 18
# A pre-token of the byte-level split starts at a single space or line break between two visible characters, so
# a text cut just before one gives the same ids. Longer runs of white space are looked at together: no cut there.
SAFE_CUT = re.compile(r"(?<=\S)(?=[ \n]\S)")
# Words longer than this are pieces of data, not words; training on them whole costs time with its square.
LONGEST_TRAINED_WORD = 256


def load_tokenizer(
    name_or_path: str, revision: str | None = None, gguf_file: str | None = None
) -> PreTrainedTokenizerFast:
    """A pretrained tokenizer with an end-of-text token, which also pads if there is no other."""
    try:
        options = {"gguf_file": gguf_file} if gguf_file else {}
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, revision=revision, **options)
    except Exception as error:  # whatever a folder of somebody else's makes the library raise
        raise UsageError(
            f"no tokenizer in {name_or_path} ({first_line(error)}); "
            f"give a folder or hub id with --tokenizer_name, or train one with --train_tokenizer bpe"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UsageError(
            f"the tokenizer in {name_or_path} has no tokenizer.json; convert it with transformers first"
        )
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"the tokenizer in {name_or_path} has no end-of-text token; set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def train_tokenizer(
    kind: str, documents: Sequence[str], vocab_size: int | None, normalizer: str
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on `documents`; the same documents give the same tokenizer.

    kind        "bpe" or "char"
    vocab_size  words of the BPE, or None for a size that fits the text
    normalizer  "none", "nfc", "nfd", "nfkc" or "nfkd"
    """
    form = None if normalizer == "none" else getattr(normalizers, normalizer.upper())()
    if kind == "char":
        backend = _character_tokenizer(documents, form)
    else:
        backend = _byte_level_bpe(documents, vocab_size or fitting_vocab_size(sum(map(len, documents))), form)
    if form is not None:
        backend.normalizer = form
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)


def fitting_vocab_size(num_characters: int) -> int:
    """The power of two next to the square root of the text's length, between 512 and 32,768.

    A rule of thumb: the output layer is most of a small model's time, and a word must be seen to be learnt.
    """
    return int(min(max(2 ** round(np.log2(max(num_characters, 1)) / 2), 512), 32768))


def encode(tokenizer: PreTrainedTokenizerFast, document: str) -> np.ndarray:
    """Ids (uint32) of one whole document, without the special tokens that a tokenizer may add around a text."""
    backend = tokenizer.backend_tokenizer
    pieces = list(slices(document)) if _cuts_at_white_space(backend) else [document]
    encodings = backend.encode_batch_fast(pieces, add_special_tokens=False)
    return np.concatenate([np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings])


def slices(document: str, size: int = SLICE_CHARACTERS) -> Iterator[str]:
    """Cut a document at safe places into pieces of `size` characters or more, to be tokenized in parallel."""
    start = 0
    while len(document) - start > size and (cut := SAFE_CUT.search(document, start + size)):
        yield document[start : cut.start()]
        start = cut.start()
    yield document[start:]


def num_ids(tokenizer: PreTrainedTokenizerFast) -> int:
    """The largest id and one (V): vocabularies may leave gaps, so their number of words can be less."""
    return max(tokenizer.get_vocab().values()) + 1


def token_byte_lengths(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """UTF-8 bytes of text behind each id, int64 (V,): 0 for special tokens, exact for byte-level and characters."""
    is_byte_level = isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel)
    added = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items()}
    special = set(tokenizer.all_special_ids)
    lengths = np.zeros(num_ids(tokenizer), dtype=np.int64)
    for word, id_ in tokenizer.get_vocab().items():
        if id_ in added:
            lengths[id_] = 0 if id_ in special else len(added[id_].encode())
        elif is_byte_level:
            lengths[id_] = len(word)  # one character of its alphabet stands for one byte
        else:
            lengths[id_] = 1 if BYTE_TOKEN.fullmatch(word) else len(word.replace("▁", " ").encode())
    return lengths


def _cuts_at_white_space(backend: Tokenizer) -> bool:
    """Whether ids stay the same when a text is cut at SAFE_CUT: true for the GPT-2 split and for characters."""
    forms = (normalizers.NFC, normalizers.NFD, normalizers.NFKC, normalizers.NFKD)
    if backend.normalizer is not None and not isinstance(backend.normalizer, forms):
        return False
    added = backend.get_added_tokens_decoder().values()
    if any(re.search(r"\s", token.content) or token.lstrip or token.rstrip for token in added):
        return False
    split = backend.pre_tokenizer
    if split is None:
        return isinstance(backend.model, models.BPE) and not _merges(backend)
    return isinstance(split, pre_tokenizers.ByteLevel) and split.use_regex and not split.add_prefix_space


def _merges(backend: Tokenizer) -> bool:
    """Whether a BPE ever joins two symbols: characters do not, so they may be cut anywhere."""
    return '"merges":[]' not in backend.to_str()


def _byte_level_bpe(
    documents: Sequence[str], vocab_size: int, form: normalizers.Normalizer | None
) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    if form is not None:
        backend.normalizer = form
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_training_pieces(documents), trainer)
    return backend


def _training_pieces(documents: Iterable[str]) -> Iterator[str]:
    limit = LONGEST_TRAINED_WORD
    long_run = re.compile(rf"\S{{{limit + 1}}}|\s{{{limit + 1}}}")
    for document in documents:
        for piece in slices(document):
            if long_run.search(piece):
                yield from re.findall(rf"\s{{0,{limit}}}\S{{1,{limit}}}|\s{{1,{limit}}}", piece)
            else:
                yield piece


def _character_tokenizer(documents: Iterable[str], form: normalizers.Normalizer | None) -> Tokenizer:
    characters: set[str] = set()
    for document in documents:
        characters.update(form.normalize_str(document) if form else document)
    words = [END_OF_TEXT, *sorted(characters), *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([END_OF_TEXT])
    return backend
