"""Tokenizers: any text comes back, training is repeatable, and cutting a document changes no id."""

import functools
import json
import random
import unicodedata

import numpy as np
import pytest
from conftest import make_text
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

from stylegen.config import UsageError
from stylegen.tokenizer import (
    END_OF_TEXT,
    DocumentEncoder,
    fitting_vocab_size,
    load_tokenizer,
    slices,
    token_byte_lengths,
    train_tokenizer,
)
from stylegen.tokenizer.encode import SAFE_CUT, _safe_cut
from stylegen.tokenizer.train import LONGEST_TRAINED_WORD, _training_pieces


def encode_documents(tokenizer, documents, num_workers, **options):
    return DocumentEncoder(tokenizer.backend_tokenizer, **options)(documents, num_workers)


def encode(tokenizer, document, **options):
    """Ids of one text, by the way that documents go."""
    return np.concatenate([ids for ids, _ in encode_documents(tokenizer, [[document]], 1, **options)])


# What has broken tokenizers: white space of every kind and in runs, text without line breaks, joined emoji and
# flags, marks that combine, contractions, and the vocabularies' own words met in a text.
NASTY = [
    " ", "  ", "\n", "\n\n", "\t", "\r\n", "\x1c", "\x1f", "\x85", "\u00a0", "\u2003", "\u2028", "\u3000", "\x00",
    "\u180e", "\u200b", "\ufeff", "a", "the", "King", "naïve", "don't", "we'll", "'s", "I'M", "123", "²", "...", "_",
    "!?", "\u0301", "e\u0301", "é", "ﬁ", "¨", "世界", "こんにちは", "안녕", "नमस्ते", "مرحبا", "🎉",
    "👩\u200d👩\u200d👧", "🇩🇪", "<|endoftext|>", "<|endof", "<0x41>", "\\n", "Ġ", "▁", "\U0010ffff",
]  # fmt: skip
separators = st.sampled_from(["", "", " ", " ", "\n", "  ", " \n"])
nasty_text = st.lists(
    st.tuples(st.sampled_from(NASTY) | st.text(max_size=3), separators).map("".join), max_size=18
).map("".join)
examples = settings(max_examples=200, deadline=None, database=None)


def make_words(num_words: int) -> str:
    """Made words, the same each time: `make_text` has too few for a large vocabulary."""
    draw = random.Random(0)
    return " ".join("".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(num_words))


TEXT = make_text(300) + "Don't say we'll naïve 世界 🎉 12 345 ...  \n\n\tend\u00a0\u00e9"


def trained(kind, documents, vocab_size=None, form="none", **options) -> PreTrainedTokenizerFast:
    """Trained on documents of one chunk each."""
    num_characters = sum(map(len, documents))
    chunks = ([document] for document in documents)
    return train_tokenizer(kind, chunks, num_characters, vocab_size, form, **options)


def backend_bpe(pre_tokenizer, normalizer=None) -> Tokenizer:
    """A byte-level BPE of 400 words whose text is split by `pre_tokenizer`, as foreign tokenizers come."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer:
        backend.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return backend


def wrapped(backend: Tokenizer, **options) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT, **options)


@functools.cache
def tokenizer_named(name: str):
    """The tokenizers of these tests, each made once."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = Regex(r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if name in ("bpe", "char"):
        return trained(name, [TEXT], 400 if name == "bpe" else None)
    if name.startswith(("bpe ", "char ")):
        kind, form = name.split()
        return trained(kind, [TEXT], 400 if kind == "bpe" else None, form)
    if name == "gpt2":
        model = backend_bpe(byte_level).model
        vocabulary, merges = model_parts(model)
        return GPT2Tokenizer(vocab=vocabulary, merges=merges)
    if name == "own split, as of Llama 3":
        return wrapped(
            backend_bpe(pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), bytes_only]))
        )
    if name == "words of several words":
        backend = Tokenizer(models.BPE())
        backend.train_from_iterator(
            [TEXT], trainers.BpeTrainer(vocab_size=1000, special_tokens=[END_OF_TEXT], show_progress=False)
        )
        return wrapped(backend)
    if name == "no split":
        return wrapped(backend_bpe(bytes_only))
    if name == "space in front":
        return wrapped(backend_bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)))
    if name == "prepending normalizer":
        return wrapped(backend_bpe(byte_level, normalizers.Prepend("_")))
    if name == "stripping normalizer":
        return wrapped(backend_bpe(byte_level, normalizers.Strip()))
    if name == "token that eats spaces":
        backend = backend_bpe(byte_level)
        backend.add_tokens([AddedToken("<mask>", lstrip=True), AddedToken("the", rstrip=True)])
        return wrapped(backend)
    assert name == "token of two words"
    backend = backend_bpe(byte_level)
    backend.add_tokens(["King a", "a\na"])
    return wrapped(backend)


def model_parts(model: models.BPE):
    """Vocabulary and merges of a trained BPE."""
    state = json.loads(Tokenizer(model).to_str())["model"]
    return state["vocab"], [tuple(merge) for merge in state["merges"]]


OURS = ("bpe", "char", "gpt2")
FORMS = ("nfc", "nfd", "nfkc", "nfkd")
FOREIGN = (
    "own split, as of Llama 3",
    "words of several words",
    "no split",
    "space in front",
    "prepending normalizer",
    "stripping normalizer",
    "token that eats spaces",
    "token of two words",
)


def ids_of_the_whole(tokenizer, document: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(document, add_special_tokens=False).ids


# Round trip


@pytest.mark.parametrize("name", OURS)
@given(document=nasty_text)
@examples
def test_any_text_comes_back(name, document):
    tokenizer = tokenizer_named(name)
    assert tokenizer.decode(encode(tokenizer, document)) == document


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "document",
    [
        "",
        " ",
        "\n",
        " two  spaces , before . the ' marks ?",
        "👩\u200d👩\u200d👧 🇩🇪 e\u0301\u0323 नमस्ते 世界",
        "\U0001f9ff never seen \u4e00 in training \u00ff",
        "<0x41> is six characters, and so is \\x41",
    ],
)
def test_this_text_comes_back(name, document):
    tokenizer = tokenizer_named(name)
    assert tokenizer.decode(encode(tokenizer, document)) == document


@pytest.mark.parametrize("name", ["bpe", "char"])
def test_every_character_comes_back(name):
    tokenizer = tokenizer_named(name)
    document = "".join(chr(code) for code in (*range(0xD800), *range(0xE000, 0x11000)))
    assert tokenizer.decode(encode(tokenizer, document)) == document


@pytest.mark.parametrize("name", ["bpe", "char", "bpe nfc", "char nfkd"])
def test_a_saved_tokenizer_gives_the_same_ids_and_text(name, tmp_path):
    tokenizer = tokenizer_named(name)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    document = "".join(NASTY)
    assert len(loaded) == len(tokenizer)
    assert loaded.eos_token_id == loaded.pad_token_id == loaded.bos_token_id == tokenizer.eos_token_id
    np.testing.assert_array_equal(encode(loaded, document), encode(tokenizer, document))
    assert loaded.decode(encode(loaded, document)) == tokenizer.decode(encode(tokenizer, document))


# Cutting


@given(document=nasty_text, size=st.integers(1, 8))
@examples
def test_slices_joined_are_the_document(document, size):
    pieces = list(slices([document], size))
    assert "".join(pieces) == document
    assert all(len(piece) >= size for piece in pieces[:-1])
    assert all(pieces) or document == ""


@pytest.mark.parametrize(
    ("document", "pieces"),
    [
        ("one two three", ["one", " two", " three"]),
        ("one\ntwo", ["one", "\ntwo"]),
        ("one  two\n\nthree \n four\ttive", ["one  two\n\nthree \n four\ttive"]),
        ("one\x1c two \x1cthree", ["one\x1c two \x1cthree"]),
        ("one.\u00a0two three", ["one.\u00a0two", " three"]),
        (" one two ", [" one", " two "]),
        ("", [""]),
    ],
)
def test_a_document_is_cut_only_before_a_single_space_or_line_break(document, pieces):
    assert list(slices([document], 1)) == pieces


def test_a_short_document_is_not_cut():
    assert list(slices(["one two " * 1000])) == ["one two " * 1000]


@pytest.mark.parametrize("name", [*OURS, *(f"{kind} {form}" for kind in ("bpe", "char") for form in FORMS)])
@given(document=nasty_text)
@examples
def test_cutting_changes_no_id(name, document):
    tokenizer = tokenizer_named(name)
    assert encode(tokenizer, document, size=1).tolist() == ids_of_the_whole(tokenizer, document)


@pytest.mark.parametrize("name", FOREIGN)
@example(document="say the king a <mask> of the lord King a b a\na")
@given(document=nasty_text)
@examples
def test_a_tokenizer_that_looks_across_a_cut_gets_the_whole_document(name, document):
    tokenizer = tokenizer_named(name)
    assert encode(tokenizer, document, size=1).tolist() == ids_of_the_whole(tokenizer, document)


@pytest.mark.parametrize("name", OURS)
def test_a_document_longer_than_a_slice_has_the_ids_of_the_whole(name):
    tokenizer = tokenizer_named(name)
    document = TEXT * 30
    assert len(list(slices([document]))) == 2
    assert encode(tokenizer, document).tolist() == ids_of_the_whole(tokenizer, document)


@pytest.mark.parametrize("name", OURS)
def test_our_tokenizers_are_really_cut(name):
    """Else the tests above would compare the whole with the whole."""
    assert _safe_cut(tokenizer_named(name).backend_tokenizer) is SAFE_CUT


# Encoding


@pytest.mark.parametrize("name", OURS)
def test_the_special_token_in_a_text_becomes_the_special_id(name):
    tokenizer = tokenizer_named(name)
    ids = encode(tokenizer, f"the{END_OF_TEXT}king").tolist()
    assert ids.count(tokenizer.eos_token_id) == 1
    at = ids.index(tokenizer.eos_token_id)
    assert ids == [*encode(tokenizer, "the"), tokenizer.eos_token_id, *encode(tokenizer, "king")]
    assert tokenizer.decode(ids[:at]) == "the"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "theking"


@pytest.mark.parametrize("name", OURS)
def test_no_other_text_becomes_the_special_id(name):
    tokenizer = tokenizer_named(name)
    others = [END_OF_TEXT[:-1], END_OF_TEXT[1:], END_OF_TEXT.upper(), "\x00", "\U0010ffff", ""]
    assert all(tokenizer.eos_token_id not in encode(tokenizer, text) for text in others)


@pytest.mark.parametrize("name", OURS)
def test_ids_are_uint32_even_of_no_text(name):
    tokenizer = tokenizer_named(name)
    assert encode(tokenizer, "").shape == (0,)
    assert encode(tokenizer, "").dtype == encode(tokenizer, "the king").dtype == np.uint32


@pytest.mark.parametrize("name", OURS)
@given(document=nasty_text)
@examples
def test_the_lengths_of_the_tokens_sum_to_the_bytes_of_the_text(name, document):
    tokenizer = tokenizer_named(name)
    lengths = token_byte_lengths(tokenizer)[encode(tokenizer, document)]
    # The special token stands between texts and is none itself.
    assert lengths.sum() == len(document.replace(END_OF_TEXT, "").encode())


def test_a_token_is_as_long_as_the_bytes_it_stands_for():
    tokenizer = trained("char", ["aé世🎉"])
    assert token_byte_lengths(tokenizer).tolist() == [0, 1, 2, 3, 4, *[1] * 256]


def test_ids_may_leave_gaps():
    """The vocabulary of GPT-4 has 100,261 words and ids up to 100,276."""
    backend = Tokenizer(models.BPE(vocab={END_OF_TEXT: 0, "a": 1, "é": 9}, merges=[]))
    lengths = token_byte_lengths(wrapped(backend))
    assert lengths[[0, 1, 9]].tolist() == [0, 1, 2]


def test_a_tokenizer_that_frames_a_text_with_special_tokens_is_not_let():
    backend = backend_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))
    end = backend.token_to_id(END_OF_TEXT)
    backend.post_processor = TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, end)]
    )
    assert backend.encode("the").ids[0] == end
    assert end not in encode(wrapped(backend), "the")


def test_a_character_is_one_id_and_an_unseen_one_its_bytes():
    tokenizer = trained("char", ["abca"])
    # <|endoftext|> is 0, then the characters in their order, then the 256 bytes.
    assert encode(tokenizer, "cab").tolist() == [3, 1, 2]
    assert encode(tokenizer, "é").tolist() == [4 + 0xC3, 4 + 0xA9]
    assert tokenizer.convert_ids_to_tokens([0, 1, 4, 4 + 0xC3]) == [END_OF_TEXT, "a", "<0x00>", "<0xC3>"]


# Training


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_the_same_documents_give_the_same_tokenizer(kind):
    documents = [make_text(100, seed=seed) for seed in range(5)]
    made = [trained(kind, documents, 600).backend_tokenizer.to_str() for _ in range(4)]
    assert len(set(made)) == 1


def test_the_order_of_the_documents_does_not_matter():
    documents = [make_text(100, seed=seed) for seed in range(5)]
    for kind in ("bpe", "char"):
        forwards = trained(kind, documents, 600).backend_tokenizer.to_str()
        backwards = trained(kind, documents[::-1], 600).backend_tokenizer.to_str()
        assert forwards == backwards


@pytest.mark.parametrize("vocab_size", [257, 258, 300, 512, 2000])
def test_a_bpe_has_exactly_the_words_asked_for(vocab_size):
    tokenizer = trained("bpe", [make_words(2000)], vocab_size)
    assert len(tokenizer) == tokenizer.vocab_size == vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab_size))
    assert tokenizer.eos_token_id == 0


def test_a_text_too_small_for_the_words_asked_for_gives_those_it_has():
    # 256 bytes, <|endoftext|>, and "ab" the only pair.
    assert len(trained("bpe", ["ab ab"], 1000)) == 257 + len(["ab", " ab"])


def test_a_bpe_without_a_size_gets_the_one_that_fits():
    text = make_words(2000)
    assert len(trained("bpe", [text])) == fitting_vocab_size(len(text)) == 512


@pytest.mark.parametrize(
    ("documents", "num_characters"), [(["abca"], 3), (["ab", "bc", ""], 3), (["é世🎉\n "], 5), ([""], 0)]
)
def test_a_character_tokenizer_has_its_characters_the_bytes_and_the_end(documents, num_characters):
    tokenizer = trained("char", documents)
    assert len(tokenizer) == num_characters + 256 + 1


@pytest.mark.parametrize(
    ("num_characters", "vocab_size"),
    [
        (0, 512),
        (1, 512),
        (100_000, 512),  # its root is 316
        (2**18, 512),
        (1_115_394, 1024),  # tinyshakespeare; its root is 1,056
        (2_000_000, 1024),  # 1,414: just nearer, in octaves, to 1,024 than to 2,048
        (2_200_000, 2048),  # 1,483
        (5_000_000, 2048),  # 2,236
        (2**30, 32768),
        (10**12, 32768),
    ],
)
def test_the_fitting_size_is_the_power_of_two_next_to_the_root(num_characters, vocab_size):
    assert fitting_vocab_size(num_characters) == vocab_size


@pytest.mark.parametrize("kind", ["bpe", "char"])
@pytest.mark.parametrize("form", FORMS)
def test_text_comes_back_in_the_normal_form_asked_for(kind, form):
    tokenizer = tokenizer_named(f"{kind} {form}")
    document = "e\u0301 \u00e9 ﬁne ½ ¨a \u1e9b\u0323 各\ufa5d 한"
    expected = unicodedata.normalize(form.upper(), document)
    assert tokenizer.decode(encode(tokenizer, document)) == expected


def test_characters_are_counted_in_their_normal_form():
    assert len(trained("char", ["e\u0301 \u00e9"], None, "nfc")) == len(["é", " "]) + 257
    assert len(trained("char", ["e\u0301 \u00e9"], None, "nfd")) == len(["e", "\u0301", " "]) + 257


@pytest.mark.parametrize("kind", ["bpe", "char"])
@pytest.mark.parametrize("form", ["none", "nfc", "nfkd"])
def test_how_a_document_comes_in_chunks_does_not_matter(kind, form):
    """A mark may come in the chunk behind its letter, and the parts of a word in two."""
    document = make_text(50) + "e\u0301 \u00e9 ﬁne " * 20
    whole = train_tokenizer(kind, [[document]], len(document), 400, form)
    for size in (1, 7, 64):
        chunks = (document[at : at + size] for at in range(0, len(document), size))
        cut = train_tokenizer(kind, iter([chunks]), len(document), 400, form)
        assert cut.backend_tokenizer.to_str() == whole.backend_tokenizer.to_str()


def test_a_pair_seen_less_often_is_not_merged():
    text = "ab " * 5 + "cd " * 4
    assert "cd" in trained("bpe", [text], 300).get_vocab()
    words = trained("bpe", [text], 300, min_frequency=5).get_vocab()
    assert "ab" in words and "cd" not in words


def test_a_character_seen_less_often_is_left_to_its_bytes():
    tokenizer = trained("char", ["aab", "bé"], min_frequency=2)
    assert len(tokenizer) == len(["a", "b"]) + 257
    assert encode(tokenizer, "abé").tolist() == [1, 2, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode(encode(tokenizer, "abé")) == "abé"


def test_a_character_is_counted_over_all_documents_and_in_its_normal_form():
    tokenizer = trained("char", ["e\u0301x", "\u00e9"], None, "nfc", min_frequency=2)
    assert "é" in tokenizer.get_vocab() and "x" not in tokenizer.get_vocab()


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_special_tokens_are_single_ids_also_after_saving(kind, tmp_path):
    made = trained(kind, [TEXT], 400, special_tokens=["<|user|>", "<|bot|>"])
    made.save_pretrained(tmp_path)
    for tokenizer in (made, load_tokenizer(str(tmp_path))):
        assert tokenizer.convert_tokens_to_ids([END_OF_TEXT, "<|user|>", "<|bot|>"]) == [0, 1, 2]
        assert {0, 1, 2} == set(tokenizer.all_special_ids)
        ids = encode(tokenizer, "the<|bot|>king<|user|>")
        assert ids.tolist() == [*encode(tokenizer, "the"), 2, *encode(tokenizer, "king"), 1]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "theking"
        assert tokenizer.eos_token == tokenizer.pad_token == END_OF_TEXT
        assert token_byte_lengths(tokenizer)[:3].tolist() == [0, 0, 0]


def test_special_tokens_are_counted_in_the_size():
    assert len(trained("bpe", [make_words(2000)], 300, special_tokens=["<|user|>", "<|bot|>"])) == 300


def test_a_special_token_of_one_character_is_one_word():
    tokenizer = trained("char", ["abc"], special_tokens=["b", "<0x41>"])
    assert sorted(tokenizer.get_vocab().values()) == list(range(1 + 2 + len("ac") + 255))
    assert encode(tokenizer, "ab").tolist() == [3, 1]


@pytest.mark.parametrize(
    ("special_tokens", "message"),
    [
        (["<|a|>", ""], "^special_tokens holds an empty token; give each some characters$"),
        (["<|a|>", "<|b|>", "<|a|>"], r"^special_tokens holds <\|a\|> more than once; give each token once$"),
        ([END_OF_TEXT], r"^special_tokens holds <\|endoftext\|>, which is there already; leave it out$"),
    ],
)
def test_special_tokens_that_cannot_be_are_refused(special_tokens, message):
    for kind in ("bpe", "char"):
        with pytest.raises(UsageError, match=message):
            trained(kind, [TEXT], 400, special_tokens=special_tokens)


def test_a_vocabulary_too_small_for_bytes_and_special_tokens_is_refused():
    with pytest.raises(
        UsageError, match=r"^vocab_size is 257, but the bytes and the special tokens alone are 258;"
    ):
        trained("bpe", [TEXT], 257, special_tokens=["<|user|>"])


@pytest.mark.parametrize("word", ["-", " ", "\n", "\u00a0", "世", "a", "\u0301", "🎉"])
def test_no_word_that_is_trained_on_is_long(word):
    """Training takes time with the square of the longest: 200,000 spaces in a row took 45 s."""
    longest = 0
    document = f"the king {word * 5000} the queen{word * 300}"
    pieces = list(_training_pieces([[document]]))
    for piece in pieces:
        splits = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(piece)
        longest = max(longest, *(end - start for _, (start, end) in splits))
    assert "".join(pieces) == document
    assert longest <= LONGEST_TRAINED_WORD + 1  # a space goes with its word


def test_a_long_word_is_encoded_and_comes_back():
    document = "x" * 100_000 + " " + "ACGT" * 25_000
    tokenizer = trained("bpe", [document], 300)
    assert tokenizer.decode(encode(tokenizer, document)) == document


# Loading


def test_a_gpt2_tokenizer_is_loaded_and_pads_with_the_end_of_text(tmp_path):
    tokenizer = tokenizer_named("gpt2")
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.eos_token == loaded.pad_token == END_OF_TEXT
    assert len(loaded) == len(tokenizer)


def test_a_padding_token_of_its_own_is_kept(tmp_path):
    backend = backend_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))
    wrapped(backend, pad_token="<pad>").save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "<pad>"


def test_a_tokenizer_saved_while_it_truncated_encodes_the_whole(tmp_path):
    backend = backend_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))
    whole = ids_of_the_whole(wrapped(backend), TEXT)
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    wrapped(backend).save_pretrained(tmp_path)
    assert len(ids_of_the_whole(wrapped(backend), TEXT)) == 8
    assert encode(load_tokenizer(str(tmp_path)), TEXT).tolist() == whole


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    message = f"^no tokenizer in {tmp_path} .*; give a folder or hub id with --tokenizer_name, or train one"
    with pytest.raises(UsageError, match=message):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path):
    backend = backend_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    message = (
        f"^the tokenizer in {tmp_path} has no end-of-text token; set eos_token in its tokenizer_config.json$"
    )
    with pytest.raises(UsageError, match=message):
        load_tokenizer(str(tmp_path))
