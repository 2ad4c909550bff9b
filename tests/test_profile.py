"""`--profile_steps`: which steps are recorded, what is written of a run that ends early, what is refused."""

import json
import logging

import pytest
import torch

from stylegen.config import UsageError
from stylegen.config.checks import profile_range
from stylegen.train.directory import FOLDERS, clear_directory
from stylegen.train.profile import FOLDER, StepProfiler, largest_costs


def run_steps(profiler: StepProfiler, first: int, last: int) -> None:
    for number in range(first, last + 1):
        with profiler.step(number):
            torch.randn(200, 200) @ torch.randn(200, 200)


def recorded_steps(path) -> list[str]:
    """The steps named in a trace, in order."""
    events = json.loads(path.read_text())["traceEvents"]
    names = {event["name"] for event in events if event["name"].startswith("optimizer step ")}
    return sorted(names)


def test_the_range_is_two_numbers_from_one_up():
    assert profile_range("10:12") == (10, 12) and profile_range("3:3") == (3, 3)
    for wrong in ("5", "7:3", "0:2", "a:b", "1:2:3", "1:", ":2", "-1:2", "1.5:2", "612"):
        with pytest.raises(UsageError, match=f"profile_steps is {wrong}, but must be A:B"):
            profile_range(wrong)


def test_only_the_steps_of_the_range_are_recorded(tmp_path, caplog):
    profiler = StepProfiler("3:4", tmp_path, rank=1)
    run_steps(profiler, 1, 2)
    assert not (tmp_path / FOLDER).exists()
    with caplog.at_level(logging.INFO):
        run_steps(profiler, 3, 6)
    path = tmp_path / "profile" / "rank-1.json"
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
    assert recorded_steps(path) == ["optimizer step 3", "optimizer step 4"]
    written = path.stat().st_mtime_ns
    profiler.finish()  # at the end of the run: nothing more
    assert path.stat().st_mtime_ns == written
    lines = [record.message for record in caplog.records]
    assert f"steps 3 to 4 are in {path}" in lines[0] and len(lines) == 6


def test_a_run_that_ends_within_the_range_keeps_what_it_has(tmp_path):
    profiler = StepProfiler("2:9", tmp_path, rank=0)
    run_steps(profiler, 1, 3)
    with pytest.raises(ZeroDivisionError), profiler.step(4):
        raise ZeroDivisionError
    profiler.finish()
    assert recorded_steps(tmp_path / "profile/rank-0.json")[:2] == ["optimizer step 2", "optimizer step 3"]


def test_a_run_that_goes_on_within_the_range_records_the_rest(tmp_path):
    profiler = StepProfiler("2:5", tmp_path, rank=0)
    run_steps(profiler, 4, 6)
    assert recorded_steps(tmp_path / "profile/rank-0.json") == ["optimizer step 4", "optimizer step 5"]


def test_without_the_flag_or_beyond_the_range_nothing_is_written(tmp_path):
    for steps, first in ((None, 1), ("2:3", 4)):
        profiler = StepProfiler(steps, tmp_path, rank=0)
        run_steps(profiler, first, first + 1)
        profiler.finish()
    assert not list(tmp_path.iterdir())


def test_a_trace_that_cannot_be_written_does_not_stop_the_run(tmp_path, caplog):
    (tmp_path / FOLDER).write_text("a file, where the folder should be")
    profiler = StepProfiler("1:1", tmp_path, rank=0)
    run_steps(profiler, 1, 2)
    assert "the profile was not written to" in caplog.text


def test_the_largest_costs_are_those_of_the_slowest_operations():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorder:
        torch.randn(800, 800) @ torch.randn(800, 800)
        torch.zeros(4) + 1
    lines = largest_costs(recorder)
    shares = [float(line.split("%")[0]) for line in lines]
    assert len(lines) == 5 and shares == sorted(shares, reverse=True) and sum(shares) <= 100.5
    assert any("aten::mm" in line for line in lines[:3])


def test_a_fresh_run_deletes_the_profile_of_the_one_before(tmp_path):
    assert FOLDER in FOLDERS
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "rank-0.json").write_text("{}")
    clear_directory(tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_a_wrong_range_is_a_usage_error_at_once(command, text_file):
    result = command("run_clm.py", "--train_file", str(text_file), "--profile_steps", "7:3")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "profile_steps is 7:3, but must be A:B" in result.stderr
