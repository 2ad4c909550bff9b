"""Documents -> stream -> blocks -> batches: nothing lost, nothing twice, the same on any number of processes."""

import numpy as np
import pytest
import torch
from conftest import make_text
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import stylegen.blocks
from stylegen.blocks import (
    IGNORED,
    Blocks,
    TextCounts,
    TokenStream,
    build_cache,
    describe,
    micro_batches,
    predicted_bytes,
    split_documents,
    step_indices,
)
from stylegen.config import UsageError
from stylegen.tokenizer import train_tokenizer

PAD = 99
examples = settings(max_examples=200, deadline=None, database=None)


# Blocks


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 7, 8, 100])
@pytest.mark.parametrize("length", [2, 3, 4, 5, 8, 9, 10, 17])
def test_every_token_but_the_first_is_predicted_exactly_once(length, block_size):
    stream = np.random.default_rng(0).integers(0, 50, length).astype(np.uint16)
    blocks = Blocks(stream, block_size, PAD)
    batch = blocks.batch(np.arange(len(blocks)))
    kept = batch["labels"] != IGNORED
    assert batch["labels"][kept].tolist() == stream[1:].tolist()
    assert batch["input_ids"][kept].tolist() == stream[:-1].tolist()
    assert batch["input_ids"].shape == batch["labels"].shape == (len(blocks), block_size)
    assert kept.any(dim=1).all()  # no block of nothing but padding


def test_the_label_is_the_next_token_and_neighbours_share_one():
    batch = Blocks(np.array([10, 11, 12, 13, 14, 15, 16]), 3, PAD).batch(np.array([0, 1]))
    assert batch["input_ids"].tolist() == [[10, 11, 12], [13, 14, 15]]
    assert batch["labels"].tolist() == [[11, 12, 13], [14, 15, 16]]
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64


def test_the_last_block_is_padded_and_ignored():
    blocks = Blocks(np.array([10, 11, 12, 13, 14]), 3, PAD)
    batch = blocks.batch(np.array([1]))
    assert len(blocks) == 2
    assert batch["input_ids"].tolist() == [[13, PAD, PAD]]
    assert batch["labels"].tolist() == [[14, IGNORED, IGNORED]]
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORED


def test_a_batch_has_its_blocks_in_the_order_asked_for():
    blocks = Blocks(np.arange(9), 2, PAD)
    assert blocks.batch(np.array([3, 0, 3]))["input_ids"].tolist() == [[6, 7], [0, 1], [6, 7]]


def test_no_index_gives_one_block_that_is_ignored():
    """A rank without a share in a short last group still runs a forward pass, which must count nothing."""
    batch = Blocks(np.arange(9), 4, PAD).batch(np.array([], dtype=np.int64))
    assert batch["input_ids"].tolist() == [[PAD] * 4]
    assert batch["labels"].tolist() == [[IGNORED] * 4]


@pytest.mark.parametrize(
    ("indices", "expected"), [([0], 3), ([2], 1), ([0, 2], 4), ([0, 1, 2], 7), ([2, 2], 2), ([], 0)]
)
def test_num_labels_counts_what_is_not_ignored(indices, expected):
    blocks = Blocks(np.arange(8), 3, PAD)  # 7 labels: 3 + 3 + 1
    indices = np.array(indices, dtype=np.int64)
    assert blocks.num_labels(indices) == expected
    assert int((blocks.batch(indices)["labels"] != IGNORED).sum()) == expected


@pytest.mark.parametrize(("limit", "expected"), [(None, 3), (1, 1), (2, 2), (3, 3), (100, 3)])
def test_a_limit_keeps_the_first_blocks(limit, expected):
    blocks = Blocks(np.arange(8), 3, PAD, limit)
    assert len(blocks) == expected
    assert blocks.batch(np.array([0]))["input_ids"].tolist() == [[0, 1, 2]]


# Which blocks a step takes


@pytest.mark.parametrize(("num_blocks", "total_batch_size"), [(1, 1), (10, 3), (12, 4), (5, 8), (97, 16)])
@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_takes_each_block_exactly_once(num_blocks, total_batch_size, epoch):
    num_steps = -(-num_blocks // total_batch_size)
    steps = [step_indices(3, epoch, step, num_blocks, total_batch_size) for step in range(num_steps)]
    assert sorted(np.concatenate(steps)) == list(range(num_blocks))
    assert all(len(step) == total_batch_size for step in steps[:-1])
    assert len(step_indices(3, epoch, num_steps, num_blocks, total_batch_size)) == 0


def test_the_order_is_that_of_seed_and_epoch():
    def order(seed, epoch):
        return step_indices(seed, epoch, 0, 50, 50).tolist()

    assert order(1, 2) == order(1, 2)
    orders = {tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9  # (1, 2) and (2, 1) among them


def test_a_step_needs_none_of_those_before():
    """Of a total batch of 4, the steps 2k and 2k + 1 are step k of a total batch of 8."""
    for step in range(3):
        halves = [step_indices(5, 1, 2 * step + half, 24, 4) for half in (0, 1)]
        np.testing.assert_array_equal(np.concatenate(halves), step_indices(5, 1, step, 24, 8))


@pytest.mark.parametrize(
    ("batch_size", "world_size"), [(1, 1), (8, 1), (4, 2), (2, 4), (1, 8), (3, 2), (5, 3), (16, 4)]
)
@pytest.mark.parametrize("num_indices", [1, 7, 8, 13])
def test_the_shares_of_the_ranks_are_the_step_in_order(batch_size, world_size, num_indices):
    indices = step_indices(7, 0, 0, 100, num_indices)
    shares = [micro_batches(indices, batch_size, world_size, rank) for rank in range(world_size)]
    passes = list(zip(*shares, strict=True))  # strict: all ranks make the same number of passes
    in_order = [part for one_pass in passes for part in one_pass]
    np.testing.assert_array_equal(np.concatenate(in_order), indices)
    assert all(len(part) <= batch_size for part in in_order)
    # Only the last pass may be short: a short one before would change which blocks are computed together.
    assert all(len(part) == batch_size for one_pass in passes[:-1] for part in one_pass)


def test_a_short_last_group_leaves_ranks_with_less_or_nothing():
    shares = [micro_batches(np.arange(9), 2, 3, rank) for rank in range(3)]
    assert [[part.tolist() for part in share] for share in shares] == [
        [[0, 1], [6, 7]],
        [[2, 3], [8]],
        [[4, 5], []],
    ]


@pytest.mark.parametrize("total_batch_size", [4, 8])
def test_an_epoch_is_the_same_on_any_number_of_processes(total_batch_size):
    def epoch(world_size):
        taken = []
        for step in range(-(-30 // total_batch_size)):
            indices = step_indices(0, 2, step, 30, total_batch_size)
            shares = [micro_batches(indices, 2, world_size, rank) for rank in range(world_size)]
            taken.append(sorted(np.concatenate([part for share in shares for part in share])))
        return taken

    assert epoch(1) == epoch(2) == epoch(4)


# The split


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
    train, validation = split_documents(documents, percentage, seed)
    whole = sorted(train + validation) == sorted(documents)
    assert whole or joined(train) + joined(validation) == joined(documents)


# The cache


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("char", ["abc dé\n"], None, "none")


def ids(tokenizer, text):
    return tokenizer.backend_tokenizer.encode(text).ids


def test_separators_stand_only_between_documents(tokenizer, tmp_path):
    cache = build_cache(["ab", "c", "da"], ["cab"], tokenizer, "x", tmp_path)
    end = tokenizer.eos_token_id
    expected = [*ids(tokenizer, "ab"), end, *ids(tokenizer, "c"), end, *ids(tokenizer, "da")]
    assert cache.train.tokens.tolist() == expected
    assert cache.validation.tokens.tolist() == ids(tokenizer, "cab")


def test_the_counts_are_those_of_the_text(tokenizer, tmp_path):
    cache = build_cache(["abé\n", "🎉"], ["abc"], tokenizer, "x", tmp_path)
    # 4 characters and an unseen one spelled as 4 bytes, with a separator between
    assert cache.train.counts == TextCounts(documents=2, characters=5, num_bytes=9, tokens=9)
    assert cache.validation.counts == TextCounts(documents=1, characters=3, num_bytes=3, tokens=3)


def test_the_same_text_is_tokenized_once(tokenizer, tmp_path):
    calls = []

    def build():
        return build_cache(["ab", "c"], ["cab"], lambda: calls.append(1) or tokenizer, "x", tmp_path)

    first, second = build(), build()
    assert len(calls) == 1
    assert first.fingerprint == second.fingerprint
    assert first.train.counts == second.train.counts
    np.testing.assert_array_equal(first.train.tokens, second.train.tokens)
    assert second.tokenizer.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert second.tokenizer.eos_token_id == tokenizer.eos_token_id


def test_a_tokenizer_may_be_given_ready(tokenizer, tmp_path):
    by_call = build_cache(["ab", "c"], ["cab"], lambda: tokenizer, "x", tmp_path / "a")
    ready = build_cache(["ab", "c"], ["cab"], tokenizer, "x", tmp_path / "b")
    assert by_call.fingerprint == ready.fingerprint
    np.testing.assert_array_equal(by_call.train.tokens, ready.train.tokens)


@pytest.mark.parametrize(
    ("train", "validation", "identity"),
    [
        (["ab", "d"], ["cab"], "x"),
        (["ab", "c"], ["cad"], "x"),
        (["ab", "c"], ["cab"], "y"),
        (["a", "bc"], ["cab"], "x"),  # the same characters, other documents
        (["abc"], ["cab"], "x"),
        (["c", "ab"], ["cab"], "x"),
        (["ab"], ["c", "cab"], "x"),  # the border between the sides is elsewhere
    ],
)
def test_another_text_or_tokenizer_is_another_entry(tokenizer, tmp_path, train, validation, identity):
    first = build_cache(["ab", "c"], ["cab"], tokenizer, "x", tmp_path)
    other = build_cache(train, validation, tokenizer, identity, tmp_path)
    assert other.fingerprint != first.fingerprint
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("num_words", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_ids_take_two_bytes_while_the_vocabulary_allows(tmp_path, num_words, dtype):
    characters = "".join(chr(0x10000 + number) for number in range(num_words - 257))
    tokenizer = train_tokenizer("char", [characters], None, "none")
    assert len(tokenizer) == num_words
    text = "\U00010000" + "a"  # its bytes are the last words of the vocabulary
    cache = build_cache([text], [text], tokenizer, "x", tmp_path)
    assert cache.train.tokens.dtype == dtype
    assert cache.train.tokens.tolist() == [1, num_words - 256 + ord("a")]


def test_ids_that_leave_a_gap_are_kept(tmp_path):
    """Few words, but one of them with an id beyond two bytes."""
    backend = Tokenizer(models.BPE(vocab={"<|endoftext|>": 0, "a": 1, "b": 70_000}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    cache = build_cache(["abba"], ["ab"], tokenizer, "x", tmp_path)
    assert cache.train.tokens.tolist() == [1, 70_000, 70_000, 1]


def test_nothing_but_the_entry_is_left_behind(tokenizer, tmp_path):
    cache = build_cache(["ab"], ["cab"], tokenizer, "x", tmp_path / "new" / "folder")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [cache.fingerprint]


def test_nothing_is_left_behind_when_tokenizing_fails(tokenizer, tmp_path, monkeypatch):
    def fail(tokenizer, document):
        raise KeyboardInterrupt

    monkeypatch.setattr(stylegen.blocks, "encode", fail)
    with pytest.raises(KeyboardInterrupt):
        build_cache(["ab"], ["cab"], tokenizer, "x", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_overwriting_tokenizes_again_with_the_same_outcome(tokenizer, tmp_path):
    calls = []

    def build(overwrite):
        return build_cache(["ab"], ["cab"], lambda: calls.append(1) or tokenizer, "x", tmp_path, overwrite)

    first = build(overwrite=True)  # there is nothing to overwrite yet
    second = build(overwrite=True)
    assert len(calls) == 2
    assert first.fingerprint == second.fingerprint
    np.testing.assert_array_equal(first.train.tokens, second.train.tokens)
    assert len(list(tmp_path.iterdir())) == 1


def test_an_entry_that_another_process_finished_first_is_used(tokenizer, tmp_path):
    def while_another_is_faster():
        build_cache(["ab"], ["cab"], tokenizer, "x", tmp_path)
        return tokenizer

    cache = build_cache(["ab"], ["cab"], while_another_is_faster, "x", tmp_path)
    assert cache.train.tokens.tolist() == ids(tokenizer, "ab")
    assert [path.name for path in tmp_path.iterdir()] == [cache.fingerprint]


@pytest.mark.parametrize("lost", ["meta.json", "train.bin", "tokenizer/tokenizer.json"])
def test_an_entry_that_has_lost_a_file_is_made_again(tokenizer, tmp_path, lost):
    """Clusters clean their scratch folders file by file, and deleting an entry can be interrupted."""
    first = build_cache(["ab"], ["cab"], tokenizer, "x", tmp_path)
    (tmp_path / first.fingerprint / lost).unlink()
    again = build_cache(["ab"], ["cab"], tokenizer, "x", tmp_path)
    assert again.train.tokens.tolist() == ids(tokenizer, "ab")


def test_an_entry_cut_short_is_not_trained_on(tokenizer, tmp_path):
    """No token is dropped in silence: a full disk can leave less than the entry says it holds."""
    first = build_cache(["abcd"], ["cab"], tokenizer, "x", tmp_path)
    path = tmp_path / first.fingerprint / "train.bin"
    path.write_bytes(path.read_bytes()[:4])
    again = build_cache(["abcd"], ["cab"], tokenizer, "x", tmp_path)
    assert again.train.tokens.tolist() == ids(tokenizer, "abcd")


EMPTY_TRAIN = "^the training text is empty; give more text, or a smaller --validation_split_percentage$"
EMPTY_VALIDATION = (
    r"^the validation text is empty \(the training text has [\d,]+ characters\); give more text"
)


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ([], ["ab"], EMPTY_TRAIN),
        ([""], ["ab"], EMPTY_TRAIN),
        ([" \n\t", ""], ["ab"], EMPTY_TRAIN),
        (["ab"], [], EMPTY_VALIDATION),
        (["ab"], ["", "\n"], EMPTY_VALIDATION),
    ],
)
def test_an_empty_side_is_refused_before_anything_is_written(tokenizer, tmp_path, train, validation, message):
    with pytest.raises(UsageError, match=message):
        build_cache(train, validation, tokenizer, "x", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("train", "validation", "side"), [(["a"], ["ab"], "train"), (["ab"], ["a"], "validation")]
)
@pytest.mark.parametrize("repeats", [1, 2])
def test_a_text_of_one_token_is_refused_each_time(tokenizer, tmp_path, train, validation, side, repeats):
    message = f"^the {side} text is 1 token long, but predicting one needs two; give more text$"
    for _ in range(repeats):
        with pytest.raises(UsageError, match=message):
            build_cache(train, validation, tokenizer, "x", tmp_path)


# Bytes and words about it


@pytest.mark.parametrize(
    ("documents", "num_labels", "expected"),
    [
        (["abc d"], 4, 4),  # all but the first
        (["abc d"], 2, 2),
        (["éab"], 2, 2),  # the first has two bytes
        (["aéb"], 1, 2),
        (["aéb"], 2, 3),
        (["ab", "c"], 3, 2),  # a separator is no text
        (["ab", "c"], 2, 1),
        (["a", "éb"], 1, 1),  # nothing but a separator: one byte, so that it can be divided by
        # A character that was never seen is spelled as its bytes, one token each.
        (["🎉a"], 4, 4),
        (["a🎉b"], 2, 2),
        (["a🎉b"], 4, 4),
        (["🎉🎉🎉"], 5, 5),
    ],
)
def test_predicted_bytes_are_those_of_the_text_behind_the_labels(
    tokenizer, tmp_path, documents, num_labels, expected
):
    stream = build_cache(documents, ["ab"], tokenizer, "x", tmp_path).train
    assert predicted_bytes(stream, num_labels, tokenizer) == expected


def test_the_description_says_what_is_kept():
    stream = TokenStream(
        np.arange(3001, dtype=np.uint16),
        TextCounts(documents=2, characters=9000, num_bytes=9100, tokens=3001),
    )
    assert describe("train", stream, Blocks(stream.tokens, 64, PAD)) == (
        "train: 2 documents, 9,000 characters, 3,001 tokens, 47 blocks of 64, the last with 56; "
        "kept 100.00 % of the tokens"
    )
    assert describe("train", stream, Blocks(stream.tokens, 64, PAD, limit=10)) == (
        "train: 2 documents, 9,000 characters, 3,001 tokens, 10 blocks of 64; kept 21.33 % of the tokens"
    )
