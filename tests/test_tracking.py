"""What a run tells: metrics.jsonl as it happens, and real wandb and tensorboard files read back."""

import json
import logging

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker
from conftest import metrics

from stylegen.tracking import AXIS, Sample, Tracker, read_metrics
from stylegen.tracking.services import Service


def training_row(step: int, loss: float = 2.5) -> dict:
    return {
        "train/loss": loss,
        "train/learning_rate": 1e-3,
        "train/grad_norm": 1.0,
        "train/epoch": step / 10,
        "train/global_step": step,
        "train/tokens_seen": 100 * step,
        "perf/tokens_per_second": 12_345.6,
    }


def evaluation_row(step: int, loss: float = 2.0) -> dict:
    return {
        "eval/loss": loss,
        "eval/accuracy": 0.25,
        "eval/perplexity": 7.389,
        "eval/bits_per_byte": 2.9,
        "eval/tokens": 500,
        "train/epoch": step / 10,
        "train/global_step": step,
        "train/tokens_seen": 100 * step,
    }


SAMPLE = Sample(2, "step 2, prompts ['a']", ("a text",))


class FakeTracker:
    """Stands for a tracker, of Accelerate or wandb: keeps what it is given, and fails where it is told to."""

    def __init__(self, name: str, fails_in: str | None = None):
        self.name, self.fails_in, self.calls = name, fails_in, []

    def _called(self, method: str, *details) -> None:
        self.calls.append((method, *details))
        if method == self.fails_in:
            raise ConnectionError("the server is gone")

    def start(self):
        self._called("start")

    def store_init_configuration(self, values):
        self._called("store_init_configuration", values)

    def log(self, values, step=None):
        self._called("log", values, step)

    def finish(self):
        self._called("finish")

    def logged(self) -> list:
        return [(values, step) for method, values, step in (call for call in self.calls if call[0] == "log")]


@pytest.fixture
def tracker(tmp_path):
    made = Tracker(tmp_path, is_main=True, num_steps=10, first_step=0)
    yield made
    made.finish()


@pytest.fixture
def messages(caplog, monkeypatch):
    """The log, also after a command has taken the logger over."""
    logger = logging.getLogger("stylegen")
    monkeypatch.setattr(logger, "propagate", False)
    caplog.set_level(logging.INFO, "stylegen")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


# --- metrics.jsonl


def test_a_row_is_in_the_file_as_soon_as_it_is_logged(tracker, tmp_path):
    rows = []
    for step in (1, 2, 3):
        rows.append(training_row(step))
        tracker.log(rows[-1])
        assert metrics(tmp_path) == rows


def test_other_ranks_write_and_track_nothing(tmp_path):
    other = Tracker(tmp_path, is_main=False, num_steps=10, first_step=0)
    other.start_trackers(["tensorboard"], project="p", run_name="r", group=None, arguments={}, facts={})
    other.log(training_row(1))
    other.log_sample(SAMPLE)
    other.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_on_appends_after_a_half_written_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(training_row(1)) + "\n" + json.dumps(training_row(2))[:40])
    again = Tracker(tmp_path, is_main=True, num_steps=10, first_step=1)
    again.log(training_row(2, loss=2.25))
    again.finish()
    assert read_metrics(path) == [training_row(1), training_row(2, loss=2.25)]


@pytest.mark.parametrize("cut", [1, 30, 100, -1])
def test_a_half_written_last_line_is_left_out(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(training_row(1)) + "\n" + json.dumps(training_row(2))[:cut])
    assert read_metrics(path) == [training_row(1)]


def test_a_whole_last_line_counts_even_without_its_line_break(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(training_row(1)) + "\n" + json.dumps(training_row(2)))
    assert read_metrics(path) == [training_row(1), training_row(2)]


def test_where_a_run_went_back_what_came_later_in_the_past_it_left_does_not_count(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written = [
        evaluation_row(0), training_row(2, 3.0), evaluation_row(2, 2.9), training_row(4, 2.8), evaluation_row(4, 2.7),
        training_row(2, 2.0), evaluation_row(2, 1.9), training_row(3, 1.8),
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    assert read_metrics(path) == [
        evaluation_row(0), training_row(2, 2.0), evaluation_row(2, 1.9), training_row(3, 1.8),
    ]  # fmt: skip


class FullDisk:
    """A file on a disk with `room` bytes."""

    name = "metrics.jsonl"

    def __init__(self, room: int):
        self.room, self.content = room, b""

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        written = data[: self.room]
        self.room, self.content = self.room - len(written), self.content + written
        return len(written)

    def close(self) -> None:
        pass


def test_rows_wait_while_the_disk_is_full_and_none_is_cut_or_doubled(tracker, caplog):
    tracker.file = disk = FullDisk(room=10)
    tracker.log(training_row(1))
    tracker.log(training_row(2))
    disk.room = 10_000
    tracker.log(training_row(3))
    assert [json.loads(line) for line in disk.content.splitlines()] == [training_row(n) for n in (1, 2, 3)]
    disk.room = 0
    tracker.log(training_row(4))
    tracker.finish()
    warnings = [message for message in caplog.messages if message.startswith("warning: ")]
    kept = "cannot be written ([Errno 28] No space left on device); its rows are kept until it can"
    lost = "could not be written: its last 1 rows are lost"
    assert warnings == [f"warning: metrics.jsonl {words}" for words in (kept, kept, lost)]


# --- what the user sees


def test_each_row_is_one_line_for_the_user(tracker, messages):
    tracker.start_time -= 10.0
    tracker.log(training_row(4))
    tracker.log(evaluation_row(4))
    training, evaluation = messages.messages
    assert training.startswith("step 4/10: loss 2.5000, lr 1.00e-03, 12,346 tokens/s, ")
    assert training.endswith("00:15 left")  # 4 steps took 10 seconds, 6 are left
    assert evaluation == "step 4: validation loss 2.0000, accuracy 25.00%, perplexity 7.39"


def test_the_time_left_counts_only_the_steps_of_this_start(tmp_path, messages):
    resumed = Tracker(tmp_path, is_main=True, num_steps=10, first_step=6)
    resumed.start_time -= 20.0
    resumed.log(training_row(8))
    resumed.finish()
    assert messages.messages[0].endswith("00:20 left")


def test_finish_may_be_called_twice(tmp_path):
    made = Tracker(tmp_path, is_main=True, num_steps=10, first_step=0)
    fake = FakeTracker("trackio")
    made.services.append(Service("trackio", fake))
    made.finish()
    made.finish()
    assert [call[0] for call in fake.calls] == ["finish"]


# --- trackers, and trackers that fail


def test_a_tracker_gets_the_step_of_each_row(tracker):
    fake = FakeTracker("tensorboard")
    tracker.services.append(Service("tensorboard", fake))
    tracker.log(training_row(4))
    assert fake.logged() == [(training_row(4), 4)]


@pytest.mark.parametrize("name", ["trackio", "tensorboard"])
@pytest.mark.parametrize("when", ["a row", "samples"])
def test_a_tracker_that_fails_is_dropped_with_one_warning_and_the_run_goes_on(
    tracker, tmp_path, messages, name, when
):
    failing, other = FakeTracker(name, fails_in="log"), FakeTracker("clearml")
    tracker.services += [Service(name, failing), Service("clearml", other)]
    if when == "samples":
        tracker.log_sample(SAMPLE)
    for step in (2, 4, 6):
        tracker.log(training_row(step))
    tracker.log_sample(SAMPLE)
    tracker.finish()
    warnings = [record.getMessage() for record in messages.records if record.levelno >= logging.WARNING]
    assert warnings == [
        f"warning: {name} failed and is left out from here on: ConnectionError: the server is gone"
    ]
    assert len(failing.logged()) == 1
    assert [values[AXIS] for values, _ in other.logged() if AXIS in values] == [2, 4, 6]
    assert [row[AXIS] for row in metrics(tmp_path)] == [2, 4, 6]


def test_a_tracker_that_fails_at_the_end_does_not_keep_the_others_from_ending(tmp_path, messages):
    made = Tracker(tmp_path, is_main=True, num_steps=10, first_step=0)
    failing, other = FakeTracker("trackio", fails_in="finish"), FakeTracker("tensorboard")
    made.services += [Service("trackio", failing), Service("tensorboard", other)]
    made.finish()
    assert other.calls == [("finish",)]
    assert len(messages.messages) == 1


@pytest.mark.parametrize("fails_in", ["start", "store_init_configuration"])
def test_a_tracker_that_fails_at_the_start_is_left_out(tracker, monkeypatch, messages, fails_in):
    """The warning says that it is left out from there on, so nothing more may go to it."""
    fake = FakeTracker("trackio", fails_in)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "trackio", lambda project, **options: fake)
    tracker.start_trackers(
        ["trackio"], project="p", run_name="r", group=None, arguments={"seed": 1}, facts={}
    )
    tracker.log(training_row(1))
    assert fake.logged() == []
    assert messages.messages[0] == (
        "warning: trackio failed and is left out from here on: ConnectionError: the server is gone"
    )
    assert len([record for record in messages.records if record.levelno >= logging.WARNING]) == 1


def test_a_training_ends_well_although_its_tracker_fails(train, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(TensorBoardTracker, "log", fail)
    folder = train(
        "run", "--max_train_steps", "2", "--logging_steps", "1", "--sample_steps", "end", "--report_to", "tensorboard"
    )  # fmt: skip
    assert [row[AXIS] for row in metrics(folder)] == [0, 1, 2, 2]
