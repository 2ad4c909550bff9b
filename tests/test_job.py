import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from stylegen.job import main, verdict


def write_checkpoint(run_dir: Path, step: int, finished: bool = False, stopped_by: str | None = None) -> None:
    folder = run_dir / f"checkpoint-{step:06d}"
    folder.mkdir(parents=True)
    state = {"step": step, "finished": finished, "stopped_by": stopped_by}
    (folder / "manifest.json").write_text(json.dumps({"state": state}))


def state(step: int = 5, finished: bool = False, stopped_by: str | None = "requeue") -> dict:
    return {"step": step, "finished": finished, "stopped_by": stopped_by}


@pytest.mark.parametrize(
    ("ended", "code", "time_is_up", "idle_before", "again", "why"),
    [
        (state(), 0, True, False, True, "time was up"),
        (state(), 0, True, True, True, "time was up"),
        (state(step=3), 0, True, False, True, "time was up"),  # one life without a step
        (state(step=3), 0, True, True, False, "two lives"),
        (state(), 1, True, False, False, "exit code 1"),
        (state(), 143, True, False, False, "exit code 143"),
        (state(finished=True, stopped_by=None), 0, True, False, False, "finished"),
        (state(finished=True, stopped_by=None), 0, False, False, False, "finished"),
        (state(stopped_by="STOP"), 0, True, False, False, "stopped by STOP"),
        (state(stopped_by="STOP"), 0, False, False, False, "stopped by STOP"),
        # The time was up before the first step of a life that went on from a checkpoint of the rhythm.
        (state(stopped_by=None), 0, True, False, True, "time was up"),
        (state(stopped_by="SIGTERM"), 0, True, False, False, "stopped by SIGTERM"),
        # A user's STOP before the first step of a life leaves the checkpoint of the life before.
        (state(step=3), 0, False, False, False, "by itself"),
        (None, 0, True, False, False, "no checkpoint"),
    ],
)
def test_a_job_goes_on_only_if_its_time_was_up_and_nothing_else_was_wrong(
    ended, code, time_is_up, idle_before, again, why
):
    decided, said = verdict(ended, 3, code, time_is_up, idle_before)
    assert (decided, why in said) == (again, True), said


def test_lives_are_remembered_beside_the_logs(tmp_path, capsys):
    run_dir, lives = tmp_path / "run", tmp_path / "lives.txt"
    write_checkpoint(run_dir, 4, stopped_by="requeue")
    arguments = ["verdict", str(run_dir), str(lives)]
    assert main([*arguments, "0", "0", "yes"]) == 0
    assert main([*arguments, "4", "0", "yes"]) == 0  # no step: may happen once
    write_checkpoint(run_dir, 5, stopped_by="requeue")
    assert main([*arguments, "4", "0", "yes"]) == 0
    assert main([*arguments, "5", "0", "yes"]) == 0
    assert main([*arguments, "5", "0", "yes"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "life 1, step 0 -> 4: requeued: the time was up before the run was finished"
    assert said[1].startswith("life 2, step 4 -> 4: requeued")
    assert said[-1].startswith("life 5, step 5 -> 5: not requeued: two lives in a row without a step")
    assert [line.split("\t")[1:3] for line in lives.read_text().splitlines()] == [
        ["0", "4"], ["4", "4"], ["4", "5"], ["5", "5"], ["5", "5"],
    ]  # fmt: skip
    assert sorted(path.name for path in run_dir.iterdir()) == ["checkpoint-000004", "checkpoint-000005"]


def test_the_newest_checkpoint_counts(tmp_path, capsys):
    assert main(["step", str(tmp_path)]) == 0
    for step in (999_999, 1_000_000):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-2000000.tmp").mkdir()
    (tmp_path / "checkpoint-2000000.tmp" / "manifest.json").write_text("{}")
    assert main(["step", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == ["0", "1000000"]
    (tmp_path / "checkpoint-1000000" / "manifest.json").write_text("{")
    assert main(["step", str(tmp_path)]) == 2
    assert "checkpoint-1000000 damaged" in capsys.readouterr().err


def test_the_directory_is_that_of_the_training(tmp_path, text_file, capsys):
    preset = tmp_path / "preset.yaml"
    preset.write_text(f"train_file: {text_file}\noutput_dir: {tmp_path}/preset\n")
    assert main(["directory", str(preset)]) == 0
    assert main(["directory", str(preset), "--output-dir", f"{tmp_path}/a b", "--seed", "3"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path}/preset", f"{tmp_path}/a b"]
    assert main(["directory", str(preset), "--max_train_steps", "many"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "error: max_train_steps in the command line is 'many', but must be a whole number"
    ]
    assert main(["which"]) == 2


def test_it_is_light(tmp_path):
    code = (
        "import sys; from stylegen.job import main; main(['step', '.']); "
        "print(*{'torch', 'transformers', 'accelerate', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0"]


def test_the_scripts_are_bash():
    for path in sorted((ROOT / "configs" / "slurm").iterdir()):
        subprocess.run(["bash", "-n", str(path)], check=True)
