"""What a run tells: metrics.jsonl as it happens, and real wandb and tensorboard files read back."""

import json
import logging
import struct
import time
import zlib
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker
from conftest import TINY, evaluations, make_text, metrics

from stylegen.tracking import AXIS, Tracker, read_metrics
from stylegen.train import main


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


class FakeTracker:
    """Stands for one of Accelerate's trackers: keeps what it is given, and fails where it is told to."""

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

    def log_table(self, name, columns, data):
        self._called("log", {name: data}, None)

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


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run directory of 4 steps that went on to 6, with wandb and tensorboard; and the folder of wandb's files."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "text.txt").write_text(make_text(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("WANDB_DIR", str(folder))
        patch.delenv("WANDB_PROJECT", raising=False)
        patch.delenv("WANDB_RUN_ID", raising=False)
        for steps in (4, 6):
            AcceleratorState._reset_state(reset_partial_state=True)
            rhythm = f"--max_train_steps {steps} --eval_steps 2 --logging_steps 2 --sample_steps 3"
            assert (
                main([
                    "--train_file", str(folder / "text.txt"), *TINY, "--mixed_precision", "no", *rhythm.split(),
                    "--output_dir", str(folder / "a run"), "--report_to", "wandb", "tensorboard",
                    "--project", "verse", "--group", "tests",
                ])
                == 0
            )  # fmt: skip
    return folder / "a run", folder / "wandb"


# --- metrics.jsonl


def test_a_row_is_in_the_file_as_soon_as_it_is_logged(tracker, tmp_path):
    rows = []
    for step in (1, 2, 3):
        rows.append(training_row(step))
        tracker.log(rows[-1])
        assert metrics(tmp_path) == rows


def test_other_ranks_write_and_track_nothing(tmp_path):
    other = Tracker(tmp_path, is_main=False, num_steps=10, first_step=0)
    other.start_trackers(["tensorboard"], project="p", run_name="r", group=None, config={})
    other.log(training_row(1))
    other.log_samples(1, ["text"])
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
    made.trackers.append(fake)
    made.finish()
    made.finish()
    assert [call[0] for call in fake.calls] == ["finish"]


# --- trackers, and trackers that fail


def test_wandb_gets_the_step_as_a_value_and_the_others_as_the_step(tracker):
    fakes = [FakeTracker("wandb"), FakeTracker("tensorboard")]
    tracker.trackers += fakes
    tracker.log(training_row(4))
    assert [fake.logged() for fake in fakes] == [[(training_row(4), None)], [(training_row(4), 4)]]


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
@pytest.mark.parametrize("when", ["a row", "samples"])
def test_a_tracker_that_fails_is_dropped_with_one_warning_and_the_run_goes_on(
    tracker, tmp_path, messages, name, when
):
    failing, other = FakeTracker(name, fails_in="log"), FakeTracker("trackio")
    tracker.trackers += [failing, other]
    if when == "samples":
        tracker.log_samples(2, ["text"])
    for step in (2, 4, 6):
        tracker.log(training_row(step))
    tracker.log_samples(6, ["text"])
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
    failing, other = FakeTracker("wandb", fails_in="finish"), FakeTracker("tensorboard")
    made.trackers += [failing, other]
    made.finish()
    assert other.calls == [("finish",)]
    assert len(messages.messages) == 1


@pytest.mark.parametrize("fails_in", ["start", "store_init_configuration"])
def test_a_tracker_that_fails_at_the_start_is_left_out(tracker, monkeypatch, messages, fails_in):
    """The warning says that it is left out from there on, so nothing more may go to it."""
    fake = FakeTracker("trackio", fails_in)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "trackio", lambda project, **options: fake)
    tracker.start_trackers(["trackio"], project="p", run_name="r", group=None, config={"seed": 1})
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


# --- wandb, read back from its own files


def read_wandb(folder: Path) -> list:
    """The records of an offline run: a LevelDB log of protobuf messages in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    content, place, records, parts = path.read_bytes(), 7, [], b""  # a header of 7 bytes
    while place + 7 <= len(content):
        room = 32768 - place % 32768
        checksum, length, kind = struct.unpack("<IHB", content[place : place + 7]) if room >= 7 else (0, 0, 0)
        if kind == 0:  # the end of a block is padded with zeros
            place += room
            continue
        data = content[place + 7 : place + 7 + length]
        if len(data) < length:  # not yet written to its end
            break
        assert zlib.crc32(data, zlib.crc32(bytes([kind]))) == checksum
        place += 7 + length
        parts += data
        if kind in (1, 4):  # the whole record, or its last part
            records.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return records


def finished_run(folder: Path) -> list:
    """The records of a run that has ended; wandb's own process may still be writing when `finish` returns."""
    for _ in range(200):
        records = read_wandb(folder)
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    raise TimeoutError(f"no end of the run in {folder}: {len(records)} records")


def offline_runs(folder: Path) -> list[list]:
    """The records of each start, in order."""
    runs = [finished_run(path) for path in folder.glob("offline-run-*")]
    return sorted(
        runs, key=lambda records: next(r.run.start_time.ToNanoseconds() for r in records if r.HasField("run"))
    )


def history(records: list) -> list[dict]:
    rows = [record.history.item for record in records if record.HasField("history")]
    return [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in row} for row in rows]


@pytest.fixture(scope="module")
def wandb_runs(tracked):
    return offline_runs(tracked[1])


def test_a_run_that_goes_on_stays_one_wandb_run(tracked, wandb_runs):
    run_id = (tracked[0] / "wandb_run_id").read_text().strip()
    heads = [next(record.run for record in records if record.HasField("run")) for records in wandb_runs]
    assert [head.run_id for head in heads] == [run_id, run_id]
    assert {(head.project, head.display_name, head.run_group) for head in heads} == {
        ("verse", "a run", "tests")
    }
    assert [
        record.exit.exit_code for records in wandb_runs for record in records if record.HasField("exit")
    ] == [0, 0]


def test_wandb_has_every_row_of_metrics_jsonl(tracked, wandb_runs):
    own = [
        {key: value for key, value in row.items() if not key.startswith("_")}
        for records in wandb_runs
        for row in history(records)
        if "samples" not in row
    ]
    assert own == metrics(tracked[0])
    assert [row[AXIS] for row in own if "eval/loss" in row] == [0, 2, 4, 6]


def test_wandb_draws_everything_over_the_optimizer_steps(wandb_runs):
    for records in wandb_runs:
        axes = {
            record.metric.name or record.metric.glob_name: record.metric.step_metric
            for record in records
            if record.HasField("metric")
        }
        assert axes["*"] == AXIS


def test_wandb_has_the_samples_at_the_step_they_were_written(tracked, wandb_runs):
    written = [int(path.stem.removeprefix("step-")) for path in sorted((tracked[0] / "samples").iterdir())]
    assert written == [3, 4, 6]
    shown = [row[AXIS] for records in wandb_runs for row in history(records) if "samples" in row]
    assert shown == written


def test_wandb_has_the_arguments_and_the_fingerprint_of_the_data(tracked, wandb_runs):
    for records, steps in zip(wandb_runs, (4, 6), strict=True):
        config = {
            item.key or item.nested_key[0]: json.loads(item.value_json)
            for record in records
            for source in ("run", "config")
            if record.HasField(source)
            for item in (record.run.config if source == "run" else record.config).update
        }
        assert config["max_train_steps"] == steps
        assert (config["learning_rate"], config["optim"], config["seed"]) == (1e-3, "adamw", 42)
        assert (config["block_size"], config["total_batch_size"]) == (32, 8)
        manifest = json.loads((tracked[0] / "checkpoint-000006" / "manifest.json").read_text())
        assert config["data_fingerprint"] == manifest["fingerprints"]["text"]


def test_a_given_wandb_run_id_is_kept(tmp_path, tracker, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    assert tracker._wandb_run_id() == "given"
    monkeypatch.delenv("WANDB_RUN_ID")
    assert tracker._wandb_run_id() == "given"
    assert (tmp_path / "wandb_run_id").read_text() == "given"


# --- tensorboard


def test_tensorboard_has_every_number_of_metrics_jsonl(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked[0] / "tensorboard" / "a run"))
    events.Reload()
    rows = metrics(tracked[0])
    names = {key for row in rows for key in row}
    assert names <= set(events.Tags()["scalars"])
    for name in names:
        expected = [(row[AXIS], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected
    assert len(evaluations(tracked[0])) == len(events.Scalars("eval/loss")) == 4


def test_tensorboard_has_the_samples_as_text(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked[0] / "tensorboard" / "a run"))
    events.Reload()
    shown = events.Tensors("samples/0/text_summary")
    assert [event.step for event in shown] == [3, 4, 6]
    last = (tracked[0] / "samples" / "step-000006.txt").read_text(encoding="utf-8").split("\n", 1)[1]
    assert shown[-1].tensor_proto.string_val[0].decode() == last.removesuffix("\n")


def test_wandb_has_a_run_that_failed_as_failed(command, text_file, tmp_path):
    """Nobody tells it: it looks at the exit code of the process, once the error is printed."""
    result = command(
        "run_clm.py", "--train_file", str(text_file), *TINY, "--mixed_precision", "no", "--max_train_steps", "20",
        "--learning_rate", "1e30", "--max_grad_norm", "0", "--max_skipped_steps", "0", "--report_to", "wandb",
        "--eval_on_start", "false", "--output_dir", "out", environment={"WANDB_DIR": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 1 and "error: 1 step in a row" in result.stderr
    (records,) = offline_runs(tmp_path / "wandb")
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1]
