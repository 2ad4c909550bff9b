"""Gutenberg's headers and footers, separators and spaced punctuation: what goes, what stays, in pieces of any size."""

import itertools
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegen.corpus import clean
from stylegen.corpus.clean import cut_boilerplate, detokenize, split_at

START = "*** START OF THE PROJECT GUTENBERG EBOOK A DAY AT SEA ***\n"
END = "*** END OF THE PROJECT GUTENBERG EBOOK A DAY AT SEA ***\n"
HEADER = "The Project Gutenberg EBook of A Day at Sea, by N. N.\n\nTitle: A Day at Sea\n\n" + START + "\n\n\n"
FOOTER = "\n\n\nEnd of Project Gutenberg's A Day at Sea, by N. N.\n\n" + END + "\nA long licence.\n"
BOOK = "  A DAY AT SEA\n\nIt rained.\n\nThe end.\n"


def cut(*pieces: str) -> tuple[str, int]:
    """The text that is kept, and the number of characters reported."""
    reports: list[int] = []
    text = "".join(cut_boilerplate(pieces, reports.append))
    assert len(reports) <= 1
    return text, sum(reports)


def pieces_of(text: str, borders: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(border % (len(text) + 1) for border in borders)})
    return [text[begin:end] for begin, end in itertools.pairwise(edges)]


BORDERS = st.lists(st.integers(0, 1 << 20), max_size=8)


# Headers and footers


@pytest.mark.parametrize(
    "start",
    [
        START,
        "*** START OF THIS PROJECT GUTENBERG EBOOK A DAY AT SEA ***\n",
        "***START OF THE PROJECT GUTENBERG EBOOK A DAY AT SEA***\n",
        "*** START OF THE PROJECT GUTENBERG ETEXT A DAY AT SEA ***\n",
        "*** Start of the Project Gutenberg EBook A Day at Sea ***\n",
        "*** START OF THE PROJECT GUTENBERG EBOOK A DAY AT SEA, BEING\nTHE TRUE STORY OF\nA SHIP ***\n",
        "*** START OF THE PROJECT GUTENBERG EBOOK A DAY AT SEA\n",
        "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n",
        "*END THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.02/11/02*END*\n",
    ],
)
def test_a_header_goes_with_its_line_and_the_blank_lines_after_it(start):
    header = (
        "The Project Gutenberg Etext of A Day at Sea\n\n**START**THE SMALL PRINT!**START**\nTerms.\n" + start
    )
    assert cut(header + "\n \n" + BOOK) == (BOOK, len(header) + 3)


def test_a_title_ends_with_its_first_asterisks():
    assert cut(START + "It **rained**.\n")[0] == "It **rained**.\n"


@pytest.mark.parametrize(
    "end",
    [
        END,
        "***END OF THIS PROJECT GUTENBERG EBOOK A DAY AT SEA***\n",
        "*** End of the Project Gutenberg EBook of A Day at Sea ***\n",
        "End of Project Gutenberg's A Day at Sea, by N. N.\n\n" + END,
        "End of the Project Gutenberg EBook of A Day at Sea\n",
        "End of The Project Gutenberg Etext of A Day at Sea\n",
        "End of this Project Gutenberg e-text\n",
        "END OF PROJECT GUTENBERG ETEXT A DAY AT SEA\n",
    ],
)
def test_a_footer_goes_with_the_blank_lines_before_it_and_all_after_it(end):
    footer = "\n \n\n" + end + "\nA long licence.\n\nMore of it."
    assert cut(BOOK + footer) == (BOOK, len(footer))


def test_joined_books_are_cut_each():
    second = "Chapter 1\n\nThe second book.\n"
    text = HEADER + BOOK + FOOTER + HEADER + second + FOOTER
    assert cut(text) == (BOOK + second, len(text) - len(BOOK + second))


def test_a_text_before_the_first_footer_is_kept_though_a_header_follows():
    assert cut(BOOK + FOOTER + HEADER + BOOK + FOOTER)[0] == BOOK + BOOK


def test_an_old_header_that_was_moved_to_the_end_is_no_header():
    small_print = "*END THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.02/11/02*END*\n"
    assert cut(BOOK + "\nEnd of Project Gutenberg's A Day at Sea\n\nTerms.\n" + small_print + "\n")[0] == BOOK


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n" + BOOK + "\n\n",
        "I found it on Project Gutenberg, at the end of the Project Gutenberg list.\n",
        "It was the\nEnd of the Project Gutenberg EBook of old times, she thought.\n",
        "\n\nEnd of Project Gutenberg's first decade came soon.\n",
        "He typed *** START OF THE PROJECT GUTENBERG EBOOK X *** and slept.\n",
        "*** START OF THE SHOW ***\nGUTENBERG\n*** END OF THE SHOW ***\n",
        "*** START: FULL LICENSE ***\n",
    ],
)
def test_a_text_that_only_mentions_it_is_untouched(text):
    assert cut(text) == (text, 0)


def test_a_header_is_looked_for_at_the_head_only():
    line = "word " * 12 + "\n"
    far = line * (clean.HEAD // len(line) + 1)
    assert cut(far + START + BOOK) == (far + START + BOOK, 0)
    near = line * (clean.HEAD // len(line) - 1)
    assert cut(near + START + BOOK) == (BOOK, len(near + START))


def test_nothing_is_given_before_the_head_is_read_and_little_is_held_afterwards():
    given = 0

    def source():
        for number in range(40):
            assert given == 0 if number <= 16 else given > (number - 3) << 16
            yield "x" * (1 << 16)

    for piece in cut_boilerplate(source(), lambda dropped: None):
        given += len(piece)
    assert given == 40 << 16


def test_an_endless_line_does_not_stay_in_memory():
    tracemalloc.start()
    try:
        pieces = ("Gutenberg " * 50_000 for _ in range(40))
        assert sum(map(len, cut_boilerplate(pieces, lambda dropped: None))) == 20_000_000
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


SHAPES = st.sampled_from(
    [
        START,
        END,
        HEADER,
        FOOTER,
        BOOK,
        "\n",
        " \n",
        "\n" * 150,
        "word " * 80 + "\n",
        "Project Gutenberg ",
        "typed " + END,
    ]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(SHAPES, max_size=9).map("".join), st.sampled_from([1, 2, 3, 10, 50, 200]))
def test_how_a_text_is_cut_into_pieces_changes_nothing(text, size):
    """With every length scaled down, so that much happens at the borders; these markers are 200 long at most."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"HEAD": 100, "CHUNK": 1, "REACH": 200, "BEFORE": 60}.items():
            patch.setattr(clean, name, value)
        whole = cut(text)
        assert len(whole[0]) + whole[1] == len(text)
        assert cut(*(text[begin : begin + size] for begin in range(0, len(text), size))) == whole


@settings(deadline=None, max_examples=200)
@given(st.lists(SHAPES, max_size=9).map("".join), BORDERS)
def test_nor_does_it_with_the_real_lengths(text, borders):
    assert cut(*pieces_of(text, borders)) == cut(text)


@settings(deadline=None, max_examples=200)
@given(st.text(), BORDERS)
def test_a_text_without_markers_comes_back_as_it_is(text, borders):
    assert cut(*pieces_of(text, borders)) == (text, 0)


# Separators


def documents(pieces: list[str], separator: str) -> list[str]:
    found, parts = [], []
    for piece, ends in split_at(pieces, separator):
        assert piece or (ends and not parts), "an empty piece that is no empty document"
        parts.append(piece)
        if ends:
            found.append("".join(parts))
            parts = []
    assert not parts, "the last piece ends a document"
    return found


def test_documents_are_what_lies_between_separators():
    assert list(split_at(["one<|end|>two\n<|e", "nd|><|end|>"], "<|end|>")) == [
        ("one", True),
        ("two\n", True),
        ("", True),
        ("", True),
    ]


def test_a_text_without_separators_is_one_document_and_flows():
    assert list(split_at(["abcdef", "ghi"], "||")) == [("abcd", False), ("efg", False), ("hi", True)]
    assert list(split_at([], "||")) == [("", True)]


@settings(deadline=None, max_examples=300)
@given(st.text("ab|\n", max_size=40), st.sampled_from(["|", "||", "ab", "aa", "|a|", "\n\n"]), BORDERS)
def test_splitting_is_that_of_the_whole_text(text, separator, borders):
    assert documents(pieces_of(text, borders), separator) == text.split(separator)


# Spaced punctuation

BEFORE = (
    "[ WP ] You ca n't die . <newline> <newline> `` Do n't , '' she said , `` you 'll ( maybe ) see ; it 's "
    "Tom 's ! ! '' <newline> \" Why ? \" I asked . \" Well ... \" <newline> <newline> We 'd - as I 've said - "
    "go at 10 : 30 ."
)
AFTER = """[WP] You can't die.

"Don't," she said, "you'll (maybe) see; it's Tom's!!"
"Why?" I asked. "Well..."

We'd - as I've said - go at 10: 30."""


def test_spaced_punctuation_is_joined_as_it_was_written():
    assert detokenize(BEFORE) == AFTER


def test_quotes_that_lack_a_partner_stay_as_they_are():
    text = 'He said " no , and left .\n\n" Yes , " she said .'
    assert detokenize(text) == 'He said " no, and left.\n\n"Yes," she said.'


def test_quotes_take_only_the_space_on_their_inside():
    assert detokenize('A 5" and a 6" one. " Yes " ,she said.') == 'A 5" and a 6" one. "Yes" ,she said.'


def test_a_quote_that_is_attached_already_counts_as_a_partner():
    assert detokenize('"Hi " he said " bye"') == '"Hi" he said "bye"'


@pytest.mark.parametrize(
    "text",
    [
        AFTER,
        "I use .NET, version .5 (or so) :) and a list [ ] of ``names``; x = ''.",
        "The 's' key, 'tis true, rock 'n' roll.",
        "One - two -- three — four.\n\n  Indented, with  two spaces.\n",
        'An inch is 1" here. "Well," he said.',
    ],
)
def test_a_clean_text_stays_as_it_is(text):
    assert detokenize(text) == text


WORDS = st.sampled_from(
    ["the", "sea", "Tom's", "don't", "you'll", "(maybe)", "I've", "half-way", "10:30", "e.g.", "-"]
)
SENTENCES = st.tuples(
    st.lists(WORDS, min_size=1, max_size=6).map(" ".join), st.sampled_from([".", "!", "?!", "...", ";"])
).map("".join)
CLEAN = st.lists(
    st.lists(SENTENCES | SENTENCES.map('"{}"'.format), min_size=1, max_size=4).map(" ".join),
    min_size=1,
    max_size=4,
).map("\n\n".join)


@settings(deadline=None, max_examples=200)
@given(CLEAN)
def test_no_clean_text_is_changed(text):
    assert detokenize(text) == text


@settings(deadline=None, max_examples=200)
@given(CLEAN)
def test_what_was_spaced_comes_back(text):
    spaced = text
    for mark in ("?!", "...", ";", '"', "(", ")", "'s", "n't", "'ll", "'ve", "\n"):
        spaced = spaced.replace(mark, f" {mark} ")
    spaced = " ".join(spaced.replace("\n", "<newline>").split())
    assert detokenize(spaced) == text


TOKENS = "`` '' \" 's n't do , . ... ! ? ( ) [ ] <newline> x it ' - : ; ’".split(" ")


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([*TOKENS, " ", "  ", "\n", "\n\n"]), max_size=12).map("".join))
def test_a_second_time_changes_nothing(text):
    assert detokenize(detokenize(text)) == detokenize(text)
