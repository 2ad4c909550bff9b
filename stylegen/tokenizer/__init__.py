"""Load a tokenizer or train one, and turn whole documents into ids.

Two are trained here, both byte-exact for any text: byte-level BPE, and characters (a BPE without merges that
spells characters it has never seen as bytes). `<|endoftext|>` is their first special token: it stands between
documents, starts a text that has no prompt, ends it, and pads. Transformers is imported where it is needed: a text is
read, and a tokenizer trained, in the time that this takes.
"""

import re
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer, decoders

from stylegen.config import END_OF_TEXT, UsageError, first_line
from stylegen.tokenizer.encode import DocumentEncoder, slices
from stylegen.tokenizer.train import as_pretrained, fitting_vocab_size, train_backend, train_tokenizer
from stylegen.trust import check_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "BYTE_TOKEN",
    "END_OF_TEXT",
    "DocumentEncoder",
    "as_pretrained",
    "fitting_vocab_size",
    "load_tokenizer",
    "num_ids",
    "slices",
    "token_byte_lengths",
    "train_backend",
    "train_tokenizer",
]

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # how byte fallback spells what there is no word for


def load_tokenizer(
    name_or_path: str, revision: str | None = None, gguf_file: str | None = None
) -> "PreTrainedTokenizerFast":
    """A pretrained tokenizer with an end-of-text token, which also pads if there is no other."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    check_source(name_or_path, gguf_file, adapter=True)
    try:
        options = {"gguf_file": gguf_file} if gguf_file else {}
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path, revision=revision, trust_remote_code=False, **options
        )
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
    tokenizer.init_kwargs.pop("auto_map", None)  # of the hub: a folder of ours names no code
    # Some are saved as they were last used, on texts cut to a length. Documents are encoded whole.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def num_ids(tokenizer: "PreTrainedTokenizerFast | Tokenizer") -> int:
    """The largest id and one (V): vocabularies may leave gaps, so their number of words can be less."""
    return max(tokenizer.get_vocab().values()) + 1


def token_byte_lengths(tokenizer: "PreTrainedTokenizerFast") -> np.ndarray:
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
