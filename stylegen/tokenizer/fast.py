"""Ids without the tokenizers library, several times as fast, where they are proved to be the same.

Two kinds of tokenizer can be served: a byte-level BPE with GPT-2's split, by tiktoken, and characters, by a table. What
is proved of the first: that both take the same merges (`_byte_ranks`), and that both split a text at the same places
(`_splits_alike`). Whatever fails a proof is left to its own library.
"""

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import tiktoken
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

NORMAL_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
NUM_CODE_POINTS = 0x110000
# How pre_tokenizers.ByteLevel splits: the split of GPT-2. White space before a word gives its last character to it.
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def fast_ids(backend: Tokenizer) -> Callable[[str], np.ndarray | None] | None:
    """A function from a text to its ids (uint32), or to None for a text it cannot do; None if there is no such way.

    It may be called from several threads. The ids are those of `backend.encode(text, add_special_tokens=False)`.
    """
    normalizer = backend.normalizer
    if normalizer is not None and state(normalizer)["type"] not in NORMAL_FORMS:
        return None
    plain_ids = _word_ids(backend) or _character_ids(backend)
    if plain_ids is None:
        return None
    added = added_words(backend)

    def ids(text: str) -> np.ndarray | None:
        normal = normal_form(normalizer, text)
        # Added tokens are looked for before anything else, some in the text as it is, some in its normal form.
        if any(word in form for form in {text, normal} for word in added):
            return None
        return plain_ids(normal)

    return ids


def state(part: Any) -> dict[str, Any]:
    """What a part of a tokenizer (normalizer, pre-tokenizer, model) is made of, as in tokenizer.json."""
    return json.loads(part.__getstate__())


def normal_form(normalizer: normalizers.Normalizer | None, text: str) -> str:
    """The text in the normal form of a tokenizer that has one of NORMAL_FORMS, or none."""
    return text if normalizer is None or text.isascii() else normalizer.normalize_str(text)


def added_words(backend: Tokenizer) -> set[str]:
    """The added tokens as they may stand in a text and in its normal form."""
    words = {token.content for token in backend.get_added_tokens_decoder().values()}
    return words if backend.normalizer is None else words | {*map(backend.normalizer.normalize_str, words)}


def code_points(text: str) -> np.ndarray:
    """The characters of a text as numbers, uint32 (N,)."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def is_plain(model: dict[str, Any]) -> bool:
    """Whether a model's state is that of a BPE that only merges: the same word, the same tokens, and no other rule."""
    extras = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "ignore_merges")
    return model["type"] == "BPE" and not any(model[extra] for extra in extras)


def merges_nothing(backend: Tokenizer) -> bool:
    """Whether the tokenizer is one of characters: no split, and a BPE that never joins two symbols."""
    if backend.pre_tokenizer is not None:
        return False
    model = state(backend.model)
    return is_plain(model) and not model["merges"]


def _character_ids(backend: Tokenizer) -> Callable[[str], np.ndarray | None] | None:
    if not merges_nothing(backend):
        return None
    table = np.full(NUM_CODE_POINTS, -1, dtype=np.int32)
    for word, id_ in state(backend.model)["vocab"].items():
        if len(word) == 1:  # longer ones are special, bytes, or out of reach
            table[ord(word)] = id_

    def ids(text: str) -> np.ndarray | None:
        found = table[code_points(text)]
        return None if (found < 0).any() else found.astype(np.uint32)

    return ids


def _word_ids(backend: Tokenizer) -> Callable[[str], np.ndarray | None] | None:
    served = _tiktoken_ranks(backend)
    if served is None:
        return None
    ranks, table = served
    # Threads that share one wait for each other at every word: each has its own.
    own = threading.local()

    def ids(text: str) -> np.ndarray | None:
        if not _splits_alike(text):
            return None
        if not hasattr(own, "encoding"):
            own.encoding = _encoding(GPT2_SPLIT, ranks)
        try:
            return table[own.encoding.encode_to_numpy(text, disallowed_special=())]
        except ValueError:  # a run of a million white characters is more than the stack of its regex holds
            return None

    return ids


def _tiktoken_ranks(backend: Tokenizer) -> tuple[dict[bytes, int], np.ndarray] | None:
    """tiktoken's ranks of a byte-level BPE and the id of each, uint32 (V,); None if its ids may differ."""
    if not splits_as_gpt2(backend):
        return None
    ranked = _ranked_words(backend)
    if ranked is None:
        return None
    to_bytes = {ord(character): byte for character, byte in _byte_alphabet().items()}
    ranks = {word.translate(to_bytes).encode("latin-1"): rank for rank, word in enumerate(ranked)}
    return ranks, np.array([*ranked.values()], dtype=np.uint32)


def splits_as_gpt2(backend: Tokenizer) -> bool:
    """Whether the pre-tokenizer is the byte-level one with GPT-2's split, and adds no space in front."""
    split = backend.pre_tokenizer and state(backend.pre_tokenizer)
    match split:
        case {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}:
            return True
    return False


def _ranked_words(backend: Tokenizer) -> dict[str, int] | None:
    """Ids of the 256 bytes, then of what the merges make, in their order; None if tiktoken may merge otherwise.

    Both merge the neighbours of lowest rank first, the leftmost of equals. The library merges the pairs it lists,
    tiktoken any pair whose bytes together have a rank. Suppose x and y meet, xy has a rank, but (x, y) is not
    listed: all that was merged inside xy would have been merged in the word xy alone too, so that word would end as
    x, y. So it is enough that every ranked word alone becomes one token. Then no pair is merged by one side only,
    and the ranks are in the same order because no two merges make the same word.
    """
    model, alphabet = state(backend.model), _byte_alphabet()
    if not is_plain(model):
        return None
    words = [*alphabet, *("".join(merge) for merge in model["merges"])]
    if len(set(words)) < len(words) or not set().union(*words) <= alphabet.keys():
        return None
    ranked = {word: model["vocab"].get(word) for word in words}
    alone = Tokenizer(backend.model).encode_batch_fast(words, add_special_tokens=False)
    if any(encoding.ids != [id_] for encoding, id_ in zip(alone, ranked.values(), strict=True)):
        return None
    return ranked


def _byte_alphabet() -> dict[str, int]:
    """Character that stands for a byte -> the byte: Latin-1 where it is visible, the others from U+0100 on."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    visible = [ord(character) for character in characters if ord(character) < 256]
    return dict(zip(characters, [*visible, *sorted({*range(256)}.difference(visible))], strict=True))


# The characters that both libraries, which have a Unicode table each, were found to put into the same classes.
_SAME_CLASSES = np.zeros(NUM_CODE_POINTS, dtype=bool)


def _splits_alike(text: str) -> bool:
    r"""Whether \p{L}, \p{N} and \s are the same characters of the text for both libraries; each is asked about once.

    The split sees a text through nothing else but ASCII letters, so if they are, it is the same for both.
    """
    numbers = code_points(text)
    if _SAME_CLASSES[numbers].all():
        return True
    new = np.unique(numbers[~_SAME_CLASSES[numbers]])
    characters = new.tobytes().decode("utf-32-le")
    if any(_members(one, characters) is None for one in (r"\p{L}", r"\p{N}", r"\s")):
        return False
    _SAME_CLASSES[new] = True
    return True


def _members(class_: str, text: str) -> str | None:
    """The characters of the text that are in a class of a regular expression; None if the libraries disagree."""
    bytes_alone = {bytes([byte]): byte for byte in range(256)}
    numbers = _encoding(f"[{class_}]+", bytes_alone).encode_to_numpy(text, disallowed_special=())
    ours = numbers.astype(np.uint8).tobytes().decode()  # what a pattern does not match, tiktoken leaves out
    return ours if ours == normalizers.Replace(Regex(f"[^{class_}]+"), "").normalize_str(text) else None


def _encoding(pattern: str, ranks: dict[bytes, int]) -> tiktoken.Encoding:
    # Without any special token tiktoken looks for an empty one at every character, which takes half as long again.
    special = {"<|none|>": len(ranks)}
    return tiktoken.Encoding("stylegen", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
