"""Encoding documents in parts, on several threads and by other ways than the library: the ids stay the library's."""

import functools
import itertools
import random
import re
import threading
import unicodedata

import numpy as np
import pytest
import tiktoken
from hypothesis import example, given
from hypothesis import strategies as st
from test_tokenizer import (
    FOREIGN,
    FORMS,
    OURS,
    TEXT,
    backend_bpe,
    encode_documents,
    examples,
    ids_of_the_whole,
    model_parts,
    nasty_text,
    tokenizer_named,
    trained,
    wrapped,
)
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from stylegen.tokenizer import END_OF_TEXT, fast, slices
from stylegen.tokenizer.encode import (
    SAFE_CUT,
    SPACE_CUT,
    SPACE_CUT_SPLITS,
    UNITS_PER_WORKER,
    _in_order,
    _safe_cut,
)

# As their tokenizer.json spell them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES_ONLY = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SERVED_BY_TIKTOKEN = ("bpe", "gpt2", *(f"bpe {form}" for form in FORMS))
SERVED_BY_A_TABLE = ("char", *(f"char {form}" for form in FORMS))
OF_TODAY = ("SmolLM 2", "Llama 3", "Qwen 2")
PIECES = [
    " 1", "12345", "½", "a  b", "x\n", "!\n", "!\r\n y", "O'Neil's", "'S ", "\u00a0 ", "    \n  ", "ſ",
    "＜|endoftext|＞",
]  # fmt: skip
text = st.lists(nasty_text | st.sampled_from(PIECES), max_size=4).map("".join)


def split_by(regex: str, behavior: str = "isolated", invert: bool = False, then=BYTES_ONLY):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), behavior, invert), then])


@functools.cache
def named(name: str):
    """The tokenizers of test_tokenizer.py and stand-ins for those of today's models, small and with their splits."""
    if name == "SmolLM 2":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return wrapped(backend_bpe(pre_tokenizers.Sequence([digits, BYTE_LEVEL])))
    if name == "Llama 3":
        return wrapped(backend_bpe(split_by(LLAMA3)))
    if name == "Qwen 2":
        return wrapped(backend_bpe(split_by(QWEN2), normalizers.NFC()))
    return tokenizer_named(name)


def chunked(document: str, lengths: list[int]) -> list[str]:
    """A document in chunks of these lengths, over and over."""
    ends = [
        0,
        *itertools.takewhile(lambda end: end < len(document), itertools.accumulate(itertools.cycle(lengths))),
    ]
    return [document[start:end] for start, end in itertools.pairwise([*ends, len(document)])]


def encoded(tokenizer, documents, num_workers=2, **options) -> list[list[int]]:
    """Ids of each document, put together from the parts by their ends."""
    parts = list(encode_documents(tokenizer, documents, num_workers, **options))
    starts = np.cumsum([0, *(len(ids) for ids, _ in parts)])
    ends = np.concatenate([start + ends for start, (_, ends) in zip(starts, parts, strict=False)])
    stream = np.concatenate([ids for ids, _ in parts]).tolist()
    assert ends[-1] == len(stream)
    return [stream[start:end] for start, end in itertools.pairwise([0, *ends.tolist()])]


# Cutting

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(document=text, lengths=lengths, size=st.integers(1, 12), cut=st.sampled_from([SAFE_CUT, SPACE_CUT]))
@examples
def test_chunks_do_not_matter_to_the_slices(document, lengths, size, cut):
    assert list(slices(chunked(document, lengths), size, cut)) == list(slices([document], size, cut))


@pytest.mark.parametrize(
    ("document", "pieces"),
    [
        ("one two three", ["one", " two", " three"]),
        ("one\ntwo!\n three", ["one\ntwo!\n three"]),
        ("one  two  \n three", ["one  two  \n three"]),
        ("one\u00a0two \u00a0three", ["one\u00a0two \u00a0three"]),
    ],
)
def test_a_newer_split_is_cut_only_before_a_single_space(document, pieces):
    assert list(slices([document], 1, SPACE_CUT)) == pieces


@pytest.mark.parametrize("character", [" ", "a", "\n", "世"])
def test_each_character_is_looked_at_once(character):
    """A piece without a safe cut grows; searched anew for each chunk, it would take time with its square."""

    class Counting:
        looked_at = 0

        def search(self, window, start):
            self.looked_at += max(len(window) - start, 0)
            return SAFE_CUT.search(window, start)

    counting = Counting()
    chunks = [character * 64] * 4000
    assert list(slices(iter(chunks), 1000, counting)) == ["".join(chunks)]
    assert counting.looked_at < 1.1 * 64 * 4000


def test_python_takes_no_character_for_visible_that_a_split_takes_for_white():
    everything = "".join(map(chr, (*range(0xD800), *range(0xE000, fast.NUM_CODE_POINTS))))
    assert re.fullmatch(r"\s+", fast._members(r"\s", everything))


@pytest.mark.parametrize("form", ["nfkc", "nfkd"])
def test_no_visible_character_ends_white_in_a_normal_form(form):
    """Else a cut behind it would be one inside a run of white space."""
    visible = (chr(code) for code in (*range(0x21, 0xD800), *range(0xE000, 0x30000)))
    text = "\x01".join(character for character in visible if not re.match(r"\s", character))
    assert not re.search("\\s\x01", getattr(normalizers, form.upper())().normalize_str(text))


@pytest.mark.parametrize("name", OF_TODAY)
def test_the_tokenizers_of_today_are_cut_at_spaces(name):
    assert _safe_cut(named(name).backend_tokenizer) is SPACE_CUT


def test_the_known_splits_are_those_of_the_models():
    assert SPACE_CUT_SPLITS == (LLAMA3, QWEN2)


@pytest.mark.parametrize(
    "split",
    [
        split_by(LLAMA3 + "|x"),
        split_by(LLAMA3, "removed"),
        split_by(LLAMA3, "merged_with_next"),
        split_by(LLAMA3, invert=True),
        split_by(LLAMA3, then=BYTE_LEVEL),
        split_by(LLAMA3, then=pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)),
        pre_tokenizers.Sequence([pre_tokenizers.Digits()]),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), BYTES_ONLY]),
        pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), BYTE_LEVEL]),
        pre_tokenizers.Whitespace(),
        pre_tokenizers.Metaspace(),
    ],
)
def test_a_split_that_only_resembles_them_gets_the_whole_document(split):
    backend = backend_bpe(BYTE_LEVEL)
    backend.pre_tokenizer = split
    assert _safe_cut(backend) is None


# The ids of documents


@given(
    documents=st.lists(text, min_size=1, max_size=3),
    lengths=lengths,
    size=st.integers(1, 12),
    workers=st.integers(1, 3),
)
@example(documents=["the <|endoftext|> king", "", "＜|endoftext|＞ a"], lengths=[3], size=1, workers=2)
@example(documents=["", "", "a", ""], lengths=[1], size=1, workers=1)
@example(
    documents=["x \n " + " " * 300 + "12 345 \u2028'Tis \u00a0 we'll\x85 "], lengths=[2], size=2, workers=2
)
@examples
def test_documents_have_the_ids_of_the_whole(documents, lengths, size, workers):
    chunks = [chunked(document, lengths) for document in documents]
    for name in ("bpe", *(f"bpe {form}" for form in FORMS), "char", "char nfkc", *OF_TODAY):
        ids = encoded(named(name), chunks, workers, size=size)
        assert ids == [ids_of_the_whole(named(name), document) for document in documents], name


@given(documents=st.lists(text, min_size=1, max_size=2), lengths=lengths)
@example(documents=["say the king a <mask> of the lord King a b a\na"], lengths=[5])
@examples
def test_documents_of_a_tokenizer_that_is_not_known_are_encoded_whole(documents, lengths):
    chunks = [chunked(document, lengths) for document in documents]
    for name in FOREIGN:
        ids = encoded(named(name), chunks, size=1)
        assert ids == [ids_of_the_whole(named(name), document) for document in documents], name


@pytest.mark.parametrize("name", [*OURS, *OF_TODAY])
def test_documents_longer_than_a_unit_and_many_in_one(name):
    documents = [TEXT * 30, "", *TEXT.splitlines(keepends=True), TEXT * 20]
    chunks = [chunked(document, [1000]) for document in documents]
    assert encoded(named(name), chunks) == [ids_of_the_whole(named(name), document) for document in documents]


def test_ends_are_where_documents_end():
    tokenizer = trained("char", ["abc"])  # one id a character, a is 1
    parts = list(encode_documents(tokenizer, [["a", "b"], [], [""], ["c"]], 1))
    assert [(ids.tolist(), ends.tolist()) for ids, ends in parts] == [([1, 2, 3], [2, 2, 2, 3])]
    assert [(ids.dtype, ends.dtype) for ids, ends in parts] == [(np.uint32, np.int64)]


def test_a_document_longer_than_a_part_ends_in_its_last():
    tokenizer = trained("char", ["ab "])  # <|endoftext|>, space, a, b
    parts = list(encode_documents(tokenizer, [["a b a"], ["b"]], 1, size=2))
    assert [(ids.tolist(), ends.tolist()) for ids, ends in parts] == [
        ([2, 1, 3], []),
        ([1, 2], [2]),
        ([3], [1]),
    ]


def test_no_documents_give_no_parts():
    assert list(encode_documents(named("bpe"), [], 2)) == []


def test_documents_without_text_do_not_gather_without_end():
    parts = list(encode_documents(named("bpe"), ([] for _ in range(1000)), 2, size=10))
    assert sum(len(ends) for _, ends in parts) == 1000
    assert max(len(ends) for _, ends in parts) <= 10


# Other ways than the library


@pytest.mark.parametrize("name", [*SERVED_BY_TIKTOKEN, *SERVED_BY_A_TABLE])
def test_our_tokenizers_have_a_faster_way(name):
    """Else the tests above would compare the library with itself."""
    tokenizer = named(name)
    ids = fast.fast_ids(tokenizer.backend_tokenizer)(TEXT)
    assert ids.dtype == np.uint32
    assert ids.tolist() == ids_of_the_whole(tokenizer, TEXT)


@pytest.mark.parametrize(
    "name", [*OF_TODAY, *sorted(set(FOREIGN) - {"token that eats spaces", "token of two words"})]
)
def test_no_other_tokenizer_has(name):
    assert fast.fast_ids(named(name).backend_tokenizer) is None


@pytest.mark.parametrize("name", ["bpe", "bpe nfkc"])
def test_every_character_is_split_as_the_library_does(name):
    document = "".join(f"a{chr(code)} {chr(code)}1" for code in (*range(0xD800), *range(0xE000, 0x10000)))
    document = document.replace(END_OF_TEXT, "")
    ids = fast.fast_ids(named(name).backend_tokenizer)(document)
    assert ids.tolist() == ids_of_the_whole(named(name), document)


def test_long_words_are_merged_as_the_library_does():
    """tiktoken has an algorithm for short words and one for long ones."""
    draw = random.Random(0)
    ids_of = fast.fast_ids(named("bpe").backend_tokenizer)
    for length in (10, 90, 110, 500, 5000):
        for alphabet in ("thekings", "ab", "a", "oe ", "世é"):
            document = "".join(draw.choices(alphabet, k=length))
            assert ids_of(document).tolist() == ids_of_the_whole(named("bpe"), document)


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("bpe", f"the {END_OF_TEXT} king"),
        ("char", f"the {END_OF_TEXT} king"),
        ("bpe nfkc", "the ＜|endoftext|＞ king"),  # is not the special token, but only the library knows
        (
            "bpe nfc",
            f"the {END_OF_TEXT}\u0338 king",
        ),  # is, though in the normal form its last character is another
        ("char", "the 鿿 king"),  # a character that was not in the text
        ("bpe", "a" + " " * 1_200_000 + "b"),  # more white space than tiktoken's regex can hold
    ],
)
def test_a_text_that_the_faster_way_cannot_do_goes_to_the_library(name, document):
    tokenizer = named(name)
    assert fast.fast_ids(tokenizer.backend_tokenizer)(document) is None
    assert encoded(tokenizer, [[document]]) == [ids_of_the_whole(tokenizer, document)]


@pytest.mark.parametrize("normalized", [True, False])
def test_added_tokens_are_found_in_the_text_and_in_its_normal_form(normalized):
    tokenizer = wrapped(backend_bpe(BYTE_LEVEL, normalizers.NFKC()))
    tokenizer.backend_tokenizer.add_tokens([AddedToken("ﬁn", normalized=normalized), AddedToken("²")])
    for document in ("the ﬁn king", "the fin king", "m² a", "m2 a"):
        expected = ids_of_the_whole(tokenizer, document)
        assert encoded(tokenizer, [[document]], size=1) == [expected]


def bpe_of(merges: list[tuple[str, str]], without: str = "", **options) -> Tokenizer:
    """A byte-level BPE of these merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [END_OF_TEXT, *alphabet, *dict.fromkeys(left + right for left, right in merges)]
    vocabulary = {word: id_ for id_, word in enumerate(words) if word != without}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **options))
    backend.pre_tokenizer = BYTE_LEVEL
    return backend


def test_merges_of_which_tiktoken_would_take_another_are_left_to_the_library():
    """b and c meet first, and a with bc is not on the list: the library stops, to tiktoken abc has a rank."""
    backend = bpe_of([("b", "c"), ("a", "b"), ("ab", "c")])
    assert [token.value for token in backend.model.tokenize("abc")] == ["a", "bc"]
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"bc": 256, b"ab": 257, b"abc": 258}
    twin = tiktoken.Encoding("twin", pat_str=fast.GPT2_SPLIT, mergeable_ranks=ranks, special_tokens={})
    assert twin.encode_ordinary("xabc") == [ord("x"), 258]

    assert fast._tiktoken_ranks(backend) is None
    assert encoded(wrapped(backend), [["xabc abc"]]) == [ids_of_the_whole(wrapped(backend), "xabc abc")]


def test_the_same_merges_in_an_order_that_is_safe_are_tiktokens():
    backend = bpe_of([("a", "b"), ("b", "c"), ("ab", "c")])
    assert fast._tiktoken_ranks(backend) is not None
    assert encoded(wrapped(backend), [["xabc bc"]]) == [ids_of_the_whole(wrapped(backend), "xabc bc")]


@given(pairs=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=8), seed=st.integers(0, 99))
@examples
def test_whatever_the_merges_are_the_ids_are_the_librarys(pairs, seed):
    """Merge tables by chance, most of which no training would give."""
    words, merges = ["a", "b", "c"], []
    for left, right in pairs:
        merges.append((words[left % len(words)], words[right % len(words)]))
        words.append("".join(merges[-1]))
    tokenizer = wrapped(bpe_of(merges))
    document = "".join(random.Random(seed).choices("aabbc ", k=60))
    assert encoded(tokenizer, [[document]]) == [ids_of_the_whole(tokenizer, document)]


@pytest.mark.parametrize(
    "backend",
    [
        bpe_of([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]),  # abc twice
        bpe_of([("a", "b")], without="x"),
        bpe_of([("a", "b")], dropout=0.1),
        bpe_of([("a", "b")], ignore_merges=True),
        bpe_of([("a", "b")], end_of_word_suffix="</w>"),
        bpe_of([("a", "b")], continuing_subword_prefix=""),
    ],
    ids=["a word of two merges", "a byte missing", "dropout", "ignore_merges", "suffix", "no prefix"],
)
def test_only_a_bpe_without_further_rules_is_tiktokens(backend, request):
    assert (fast._tiktoken_ranks(backend) is not None) == ("no prefix" in request.node.name)


@pytest.mark.parametrize(
    "split", [BYTES_ONLY, pre_tokenizers.ByteLevel(add_prefix_space=True), split_by(LLAMA3), None]
)
def test_only_the_split_of_gpt2_is_tiktokens(split):
    backend = bpe_of([("a", "b")])
    assert fast._tiktoken_ranks(backend) is not None
    backend.pre_tokenizer = split
    assert fast._tiktoken_ranks(backend) is None


def test_characters_the_libraries_see_differently_are_found():
    """[:alpha:] is ASCII to the one and Unicode to the other; \\p{L} might be, of two Unicode versions."""
    assert fast._members("[:alpha:]", "a1b") == "ab"
    assert fast._members("[:alpha:]", "a1é") is None


def test_tiktoken_is_not_used_when_the_tables_differ(monkeypatch):
    monkeypatch.setattr(fast, "_SAME_CLASSES", np.zeros(fast.NUM_CODE_POINTS, dtype=bool))
    real = fast._members
    monkeypatch.setattr(fast, "_members", lambda class_, text: None if "é" in text else real(class_, text))
    ids = fast.fast_ids(named("bpe").backend_tokenizer)
    assert ids("the king speaks") is not None
    assert ids("the king spéaks") is None
    assert ids("the king speaks") is not None  # the others are known to be seen alike


def test_the_classes_that_agree_are_pythons_own_but_for_newer_characters():
    everything = "".join(map(chr, (*range(0xD800), *range(0xE000, fast.NUM_CODE_POINTS))))
    for class_, initial in ((r"\p{L}", "L"), (r"\p{N}", "N")):
        members = set(fast._members(class_, everything))
        known = {character for character in everything if unicodedata.category(character) != "Cn"}
        assert members & known == {
            character for character in known if unicodedata.category(character)[0] == initial
        }


def test_ids_may_be_in_any_order():
    vocabulary, merges = model_parts(named("bpe").backend_tokenizer.model)
    mixed = dict(
        zip(vocabulary, random.Random(0).sample(range(len(vocabulary)), len(vocabulary)), strict=True)
    )
    backend = Tokenizer(models.BPE(vocab=mixed, merges=merges))
    backend.pre_tokenizer = BYTE_LEVEL
    tokenizer = wrapped(backend)
    assert fast.fast_ids(backend) is not None
    assert encoded(tokenizer, [[TEXT]]) == [ids_of_the_whole(tokenizer, TEXT)]


# Threads


def test_results_come_in_order():
    """Whichever is ready first."""
    ready = threading.Event()

    def function(number):
        if number == 0:
            ready.wait(60)
        elif number == 1:
            ready.set()
        return number

    assert list(_in_order(function, range(50), 2)) == list(range(50))


def test_no_more_is_read_ahead_than_the_workers_need_and_a_reader_may_leave():
    before = threading.active_count()
    num_read = 0

    def documents():
        nonlocal num_read
        while True:
            num_read += 1
            yield ["the king "]

    parts = encode_documents(named("bpe"), documents(), 2, size=1)
    for _ in range(10):
        next(parts)
    assert num_read <= 10 + 2 * UNITS_PER_WORKER + 1  # and the one that shows a unit is full
    parts.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("num_good", [0, 3, 100])
def test_what_fails_in_a_worker_is_raised_and_nothing_hangs(num_good):
    before = threading.active_count()
    documents = itertools.chain(itertools.repeat(["a"], num_good), [["\ud800"]], itertools.repeat(["a"]))
    with pytest.raises(UnicodeEncodeError):
        list(encode_documents(named("char"), documents, 2, size=1))
    assert threading.active_count() == before


def test_what_fails_while_reading_is_raised_and_nothing_hangs():
    before = threading.active_count()

    def documents():
        yield ["a"]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(encode_documents(named("bpe"), documents(), 2, size=1))
    assert threading.active_count() == before
