"""Streams -> blocks -> batches: nothing lost, nothing twice, the same on any number of processes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stylegen.blocks import (
    IGNORED,
    PackedBlocks,
    StreamBlocks,
    TextCounts,
    TokenStream,
    micro_batches,
    step_indices,
)
from stylegen.blocks.packing import best_fit
from stylegen.config import UsageError

PAD = 99
END = 0  # what stands between documents
examples = settings(max_examples=200, deadline=None, database=None)


def stream_of(*documents, prompts=None):
    """A token stream of documents given as lists of ids."""
    framed = [END, *(id_ for document in documents for id_ in (*document, END))]
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)])
    counts = TextCounts(len(documents), 0, 0, len(framed) - 2)
    return TokenStream(np.array(framed), starts, None if prompts is None else np.array(prompts), counts)


def Blocks(tokens, block_size, pad_id, limit=None):
    """Plain blocks of one document."""
    return StreamBlocks(stream_of(list(tokens)), block_size, pad_id, limit)


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


# Random windows


def windows(*documents, block_size=3, number=50, seed=0):
    return StreamBlocks(stream_of(*documents), block_size, PAD, random_windows=number, seed=seed)


def test_random_windows_stand_beside_the_plain_blocks():
    blocks = windows(range(1, 11), number=5)
    plain = Blocks(range(1, 11), 3, PAD)
    assert len(blocks) == len(plain) + 5
    assert blocks.num_labels(np.arange(len(blocks))) == 9 + 5 * 3
    every = blocks.batch(np.arange(len(blocks)), epoch=2)
    assert int((every["labels"] != IGNORED).sum()) == 9 + 5 * 3
    for name, tensor in plain.batch(np.arange(len(plain))).items():
        assert every[name][: len(plain)].tolist() == tensor.tolist()


def test_a_window_is_a_function_of_seed_epoch_and_index():
    def starts(seed, epoch):
        blocks = windows(range(1, 500), number=20, seed=seed)
        indices = np.arange(blocks.num_plain, len(blocks))
        assert blocks.batch(indices[::-1].copy(), epoch)["input_ids"].tolist()[::-1] == (
            blocks.batch(indices, epoch)["input_ids"].tolist()
        )
        return tuple(blocks.batch(indices, epoch)["input_ids"][:, 0].tolist())

    assert starts(1, 2) == starts(1, 2)
    assert len({starts(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_no_window_crosses_documents_and_every_place_within_one_is_drawn():
    documents = [[10, 11, 12, 13, 14], [20, 21], [30, 31, 32, 33], [40, 41, 42]]
    blocks = windows(*documents, number=400)
    batch = blocks.batch(np.arange(blocks.num_plain, len(blocks)))
    drawn = {
        (*row, label[-1])
        for row, label in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
    }
    assert drawn == {(10, 11, 12, 13), (11, 12, 13, 14), (30, 31, 32, 33)}


def test_places_are_drawn_equally_often():
    blocks = windows(range(1, 6), range(11, 19), number=7000)  # 2 places and 5
    first = blocks.batch(np.arange(blocks.num_plain, len(blocks)))["input_ids"][:, 0].tolist()
    counts = [first.count(start) for start in (1, 2, 11, 12, 13, 14, 15)]
    assert sum(counts) == 7000
    assert all(abs(count - 1000) < 150 for count in counts)  # five standard deviations


def test_documents_too_short_for_a_window_are_refused():
    with pytest.raises(UsageError, match=r"^random_windows needs a document longer than block_size 3, but the longest "
                                         "training document has 3 tokens; use a smaller --block_size$"):  # fmt: skip
        windows([1, 2, 3], [4])


# Packing


def packed(*documents, block_size=8, prompts=None, **options):
    return PackedBlocks(stream_of(*documents, prompts=prompts), block_size, PAD, **options)


def test_two_documents_share_a_block_with_their_ends_as_labels():
    blocks = packed([1, 2, 3], [4, 5])
    (ids,), (labels,), (positions,) = (tensor.tolist() for tensor in blocks.batch(np.array([0])).values())
    assert len(blocks) == 1
    assert ids == [END, 1, 2, 3, END, 4, 5, PAD]
    assert labels == [1, 2, 3, END, 4, 5, END, IGNORED]
    assert positions == [0, 1, 2, 3, 0, 1, 2, 0]


def test_what_a_block_has_no_room_for_goes_on_in_the_next():
    blocks = packed(range(1, 11), block_size=4)
    batch = blocks.batch(np.arange(len(blocks)))
    assert batch["input_ids"].tolist() == [[END, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, PAD]]
    assert batch["labels"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, END, IGNORED]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 0]]


def test_padding_gives_each_document_a_block_and_cuts_it_there():
    blocks = packed([1, 2], range(3, 12), block_size=4, truncate=True)
    batch = blocks.batch(np.arange(len(blocks)))
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].tolist() == [[END, 1, 2, PAD], [END, 3, 4, 5]]
    assert batch["labels"].tolist() == [[1, 2, END, IGNORED], [3, 4, 5, 6]]
    assert blocks.num_labels(np.arange(2)) == 7


def test_prompts_are_left_out_of_the_loss():
    pairs = {"prompts": [2, 1], "completion_only": True}
    blocks = packed([1, 2, 3], [4, 5], **pairs)
    assert blocks.batch(np.array([0]))["labels"].tolist() == [
        [IGNORED, IGNORED, 3, END, IGNORED, 5, END, IGNORED]
    ]
    assert blocks.num_labels(np.array([0])) == 4
    both = packed([1, 2, 3], [4, 5], prompts=[2, 1])  # known, but not asked for
    assert both.num_labels(np.array([0])) == 7


def test_a_prompt_longer_than_a_block_leaves_no_block_without_a_label():
    documents, pairs = (
        ([1, 2, 3, 4, 5], [6, 7]),
        {"prompts": [4, 1], "completion_only": True, "block_size": 3},
    )
    cut = packed(*documents, truncate=True, **pairs)
    assert cut.batch(np.arange(len(cut)))["labels"].tolist() == [[IGNORED, 7, END]]
    whole = packed(*documents, **pairs)
    kept = whole.batch(np.arange(len(whole)))["labels"]
    assert sorted(kept[kept != IGNORED].tolist()) == [END, END, 5, 7]
    assert all(whole.num_labels(np.array([index])) for index in range(len(whole)))


documents_of_ids = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=40), min_size=1, max_size=12)


@given(documents=documents_of_ids, block_size=st.integers(1, 12))
@examples
def test_packing_predicts_every_token_and_every_end_exactly_once(documents, block_size):
    blocks = packed(*documents, block_size=block_size)
    indices = np.arange(len(blocks))
    labels = blocks.batch(indices)["labels"]
    expected = sorted(id_ for document in documents for id_ in (*document, END))
    assert sorted(labels[labels != IGNORED].tolist()) == expected
    assert blocks.num_labels(indices) == len(expected)
    assert [blocks.num_labels(np.array([index])) for index in indices] == (labels != IGNORED).sum(
        dim=1
    ).tolist()


@given(documents=documents_of_ids, block_size=st.integers(1, 12), truncate=st.booleans(), data=st.data())
@examples
def test_labels_are_counted_with_prompts_and_truncation_too(documents, block_size, truncate, data):
    prompts = [data.draw(st.integers(0, len(document))) for document in documents]
    blocks = packed(
        *documents, block_size=block_size, truncate=truncate, prompts=prompts, completion_only=True
    )
    indices = np.arange(len(blocks))
    labels = blocks.batch(indices)["labels"]
    assert blocks.num_labels(indices) == int((labels != IGNORED).sum())
    lengths = [len(document) + 1 for document in documents]
    kept = [max(min(length, block_size) - prompt, 0) if truncate else length - prompt
            for length, prompt in zip(lengths, prompts, strict=True)]  # fmt: skip
    assert blocks.num_labels(indices) == sum(kept)


def test_a_limit_takes_the_first_documents_not_the_longest():
    blocks = packed([1], [2], range(10, 14), range(20, 24), block_size=5, limit=1)
    assert blocks.batch(np.arange(1))["input_ids"].tolist() == [[END, 1, END, 2, PAD]]


@pytest.mark.parametrize(("limit", "expected"), [(None, 3), (2, 2), (9, 3)])
def test_a_limit_keeps_the_first_packed_blocks(limit, expected):
    assert len(packed(range(1, 11), block_size=4, limit=limit)) == expected


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60))
@examples
def test_best_fit_fills_no_bin_beyond_its_capacity_and_opens_none_too_early(lengths):
    lengths = np.array(lengths)
    bins = best_fit(lengths, 20)
    filled = np.bincount(bins, weights=lengths)
    assert filled.max() <= 20
    assert sorted(set(bins.tolist())) == list(range(bins.max() + 1))
    # Best fit never leaves two bins whose contents would go into one.
    assert len(filled) < 2 or np.sort(filled)[:2].sum() > 20


def test_best_fit_takes_the_fullest_bin_with_room():
    # 7, then 6, then 4 into the 6 (room 4), 3 into the 7 (room 3), 2 anew.
    assert best_fit(np.array([7, 6, 4, 3, 2]), 10).tolist() == [0, 1, 1, 0, 2]
