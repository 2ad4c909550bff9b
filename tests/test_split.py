"""The split of a store into sides: whole documents where they come near, else the tail; nothing lost or twice."""

import tempfile
from pathlib import Path

import pytest
from conftest import make_text
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stylegen.blocks.split import split_store
from stylegen.config import UsageError
from stylegen.corpus import Findings, Piece
from stylegen.corpus.store import TextStore

examples = settings(max_examples=200, deadline=None, database=None)


def split_documents(documents, percentage, seed):
    """The documents of both sides, through a store on disk."""
    with tempfile.TemporaryDirectory() as folder:
        store = TextStore.write(Path(folder) / "text", map(Piece, documents), Findings())
        sides = split_store(store, percentage, seed)
        texts = tuple(["".join(chunks) for chunks in store.documents(side.ranges)] for side in sides)
        assert [side.characters for side in sides] == [sum(map(len, side)) for side in texts]
        return texts


def joined(documents):
    return "".join(documents)


def test_whole_documents_are_held_out_where_they_come_near_the_percentage():
    documents = [f"{number:03d}" + "x" * 97 for number in range(40)]
    train, validation = split_documents(documents, 10, seed=0)
    assert len(validation) == 4
    assert sorted(train + validation) == documents
    assert train == sorted(train)
    assert validation == sorted(validation)


def test_the_documents_held_out_are_those_of_the_seed():
    documents = [f"document {number}" for number in range(100)]
    assert split_documents(documents, 10, seed=1) == split_documents(documents, 10, seed=1)
    assert len({tuple(split_documents(documents, 10, seed)[1]) for seed in range(5)}) == 5


@pytest.mark.parametrize("seed", range(5))
def test_documents_of_unequal_size_are_counted_in_characters(seed):
    documents = [str(number % 10) * (20 * number) for number in range(1, 60)]
    train, validation = split_documents(documents, 10, seed)
    assert sorted(train + validation) == sorted(documents)
    share = len(joined(validation)) / len(joined(documents))
    assert 0.05 <= share <= 0.15


@pytest.mark.parametrize("percentage", [0.5, 5, 10, 50, 90])
def test_one_document_is_cut_near_the_percentage_at_a_line_end(percentage):
    text = make_text(1000)
    (train,), (validation,) = split_documents([text], percentage, seed=0)
    assert train + validation == text
    assert train.endswith("\n")
    longest_line = max(map(len, text.splitlines(keepends=True)))
    assert abs(len(validation) - len(text) * percentage / 100) <= longest_line / 2 + 1


def test_where_whole_documents_come_nowhere_near_the_last_is_cut():
    documents = ["a\n" * 500, "b\n" * 500, "c\n" * 500]
    train, validation = split_documents(documents, 10, seed=0)
    assert train == [*documents[:2], "c\n" * 350]
    assert validation == ["c\n" * 150]


def test_a_tail_may_reach_over_several_documents():
    # 216 characters are wanted: the two short documents are too little, the long one is too much.
    documents = ["a\n" * 500, "b\n" * 20, "c\n" * 20]
    train, validation = split_documents(documents, 20, seed=0)
    assert train == ["a\n" * 432]
    assert validation == ["a\n" * 68, "b\n" * 20, "c\n" * 20]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x" * 1000, "x" * 50),  # nowhere to cut: exactly the percentage
        ("世" * 100, "世" * 5),
        ("word " * 200, "word " * 10),
        ("x" * 999 + "\n", "x" * 49 + "\n"),  # a line break at the very end is no place to cut
    ],
)
def test_text_without_a_line_break_is_cut_near_the_percentage(text, expected):
    assert split_documents([text], 5, seed=0) == ([text[: -len(expected)]], [expected])


@pytest.mark.parametrize(
    "text", ["The title\n" + "word " * 2000, "word " * 2000 + "\nThe end", "Title\n" + "x" * 9000]
)
def test_a_line_break_far_from_the_percentage_is_no_place_to_cut(text):
    train, validation = split_documents([text], 10, seed=0)
    assert joined(train) + joined(validation) == text
    # Near is what it is for whole documents.
    assert 0.5 * 0.1 <= len(joined(validation)) / len(text) <= 1.5 * 0.1


documents_of_text = st.lists(st.text("ab \n世\U0001f389", max_size=40), min_size=1, max_size=8)


@given(documents=documents_of_text, percentage=st.floats(0.1, 99), seed=st.integers(0, 3))
@examples
def test_no_text_is_lost_or_counted_twice(documents, percentage, seed):
    documents = [document for document in documents if document.strip()]  # a store keeps no others
    assume(documents)
    train, validation = split_documents(documents, percentage, seed)
    whole = sorted(train + validation) == sorted(documents)
    assert whole or joined(train) + joined(validation) == joined(documents)


def pair_store(tmp_path, number):
    pieces = [Piece(f"prompt {index}\n" + "story\n" * (20 + index % 3), prompt=9) for index in range(number)]
    return TextStore.write(tmp_path / "text", pieces, Findings())


@pytest.mark.parametrize("number", [2, 3, 8, 60])
def test_pairs_are_never_cut(tmp_path, number):
    store = pair_store(tmp_path, number)
    train, validation = split_store(store, 5, seed=0)
    assert sorted([*train.ranges.tolist(), *validation.ranges.tolist()]) == store.ranges.tolist()
    assert len(validation.ranges) == max(round(number * 0.05), 1)
    assert set(validation.prompts.tolist()) == {9}


def test_one_pair_cannot_be_two_sides(tmp_path):
    with pytest.raises(
        UsageError, match=r"^one pair cannot be training and validation text; give more pairs"
    ):
        split_store(pair_store(tmp_path, 1), 5, seed=0)
