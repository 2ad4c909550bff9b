"""What the steps are given: a function of step and pass, whatever was brought before."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from stylegen.config import TrainArguments
from stylegen.train.feed import Feed


class FakeBlocks:
    """Seven blocks whose tokens are their numbers; counts how often it is read."""

    def __init__(self):
        self.reads = 0

    def __len__(self):
        return 7

    def batch(self, indices, epoch):
        self.reads += 1
        return {"input_ids": torch.from_numpy(np.asarray(indices, dtype=np.int64) + 100 * epoch)}


@pytest.fixture
def feed():
    arguments = TrainArguments(per_device_train_batch_size=2, total_batch_size=4)
    return Feed(arguments, Accelerator(), FakeBlocks(), steps_per_epoch=2)


def ids(feed, step, number):
    return feed.take(step, number, feed.of_step(step))["input_ids"].tolist()


def test_two_epochs_have_every_block_once_each(feed):
    steps = [
        [ids(feed, step, number) for number in range(len(feed.of_step(step).shares))] for step in range(4)
    ]
    assert [[len(part) for part in step] for step in steps] == [[2, 2], [2, 1], [2, 2], [2, 1]]
    flat = [value for step in steps for part in step for value in part]
    assert sorted(flat) == [*range(7), *range(100, 107)]


def test_what_was_prepared_is_what_would_have_been_read(feed):
    plain = [ids(feed, step, number) for step in range(3) for number in range(2)]
    before = feed.blocks.reads
    found = []
    for step in range(3):
        blocks = feed.of_step(step)
        for number in range(2):
            found.append(feed.take(step, number, blocks)["input_ids"].tolist())
            feed.prepare(step, number + 1, blocks)
    assert found == plain
    assert feed.blocks.reads - before == 7  # the first, and six that were prepared: nothing twice


def test_another_step_than_the_prepared_one_is_read_anew(feed):
    """As after a checkpoint is loaded."""
    feed.prepare(0, 1, feed.of_step(0))
    assert ids(feed, 2, 0) == ids(feed, 2, 0) != ids(feed, 0, 1)
    assert feed.waited_seconds > 0
