"""A run on wandb, by the real client: read back from its own files, or from a stand-in for the service."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState
from conftest import ACCELERATE, ROOT, TINY, evaluations, make_text, metrics
from wandb_files import (
    alerts_of,
    artifacts_of,
    axes_of,
    config_of,
    history,
    offline_runs,
    read_records,
    summary_of,
    tables_of,
)
from wandb_server import KEY, WandbServer

from stylegen.config import TrainArguments, UsageError, check_arguments, parse_arguments, trial_of_sweep
from stylegen.metrics import best_evaluation
from stylegen.tracking import AXIS, Sample
from stylegen.tracking.samples import read_samples
from stylegen.tracking.wandb_run import MOST_SAMPLES, WandbRun, run_id
from stylegen.train import main


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run directory of 4 steps that went on to 6, the folder of wandb's files, and what each life printed."""
    folder, printed = tmp_path_factory.mktemp("tracked"), []
    (folder / "text.txt").write_text(make_text(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("WANDB_DIR", str(folder))
        patch.setenv("SLURM_JOB_ID", "4711")
        patch.setenv("SLURM_JOB_ACCOUNT", "not-listed")
        for name in ("WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_NAME", "WANDB_SWEEP_ID"):
            patch.delenv(name, raising=False)
        for steps in (4, 6):
            AcceleratorState._reset_state(reset_partial_state=True)
            rhythm = f"--max_train_steps {steps} --eval_steps 2 --logging_steps 2 --sample_steps 3"
            with contextlib.redirect_stdout(io.StringIO()) as output:
                assert (
                    main([
                        "--train_file", str(folder / "text.txt"), *TINY, "--mixed_precision", "no", *rhythm.split(),
                        "--checkpointing_steps", "3", "--output_dir", str(folder / "a run"), "--report_to", "wandb",
                        "--project", "verse", "--group", "tests", "--wandb_log_model", "checkpoint",
                        "--sample_prompts", "ROMEO", "a/b",
                    ])
                    == 0
                )  # fmt: skip
            printed.append(output.getvalue())
    return folder / "a run", folder / "wandb", printed


@pytest.fixture(scope="module")
def lives(tracked):
    return offline_runs(tracked[1])


@pytest.fixture
def away(tmp_path, monkeypatch):
    """Where wandb writes in this test; it keeps the environment of its first run."""
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for name in ("WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_NAME", "WANDB_SWEEP_ID", "WANDB_JOB_TYPE"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path / "wandb"
    wandb.teardown()


# --- one run, read back


def test_a_run_that_goes_on_stays_one_run(tracked, lives):
    name = (tracked[0] / "wandb_run_id").read_text().strip()
    heads = [next(record.run for record in records if record.HasField("run")) for records in lives]
    assert [head.run_id for head in heads] == [name, name]
    assert {(head.project, head.display_name, head.run_group, head.job_type) for head in heads} == {
        ("verse", "a run", "tests", "train")
    }
    assert [record.exit.exit_code for records in lives for record in records if record.HasField("exit")] == [
        0,
        0,
    ]


def test_it_has_every_row_of_metrics_jsonl_once(tracked, lives):
    rows = [
        {key: value for key, value in row.items() if not key.startswith("_")}
        for records in lives
        for row in history(records)
        if "samples" not in row and "figures/loss" not in row
    ]
    assert rows == metrics(tracked[0])
    assert [row[AXIS] for row in rows if "eval/loss" in row] == [0, 2, 4, 6]
    assert {"eval/loss", "eval/accuracy", "eval/perplexity", "eval/bits_per_byte"} <= set(rows[0])


def test_everything_is_drawn_over_the_optimizer_steps(lives):
    for records in lives:
        assert axes_of(records) == {AXIS: "", "train/tokens_seen": AXIS, "*": AXIS}


def test_the_samples_are_one_table_that_grows(tracked, lives):
    run_dir, folder, _ = tracked
    samples = read_samples(run_dir)
    assert [sample.step for sample in samples] == [3, 4, 6]
    rows = [
        [sample.step, prompt, text]
        for sample in samples
        for prompt, text in zip(("ROMEO", "a/b"), sample.texts, strict=True)
    ]
    folders = sorted(folder.glob("offline-run-*"))
    tables = [
        table for place, records in zip(folders, lives, strict=True) for table in tables_of(place, records)
    ]
    assert tables == [(3, rows[:2]), (4, rows[:4]), (6, rows)]


def test_the_configuration_is_all_there_is_to_know(tracked, lives):
    for records, steps in zip(lives, (4, 6), strict=True):
        config = config_of(records)
        assert config["max_train_steps"] == steps
        assert (config["learning_rate"], config["optim"], config["seed"]) == (1e-3, "adamw", 42)
        assert (config["block_size"], config["total_batch_size"]) == (32, 8)
        assert set(yaml.safe_load((tracked[0] / "config.yaml").read_text())) <= set(config)
        assert config["train_file"] == ["text.txt"]  # no folder of this machine
        assert config["sample_prompts"] == ["ROMEO", "a/b"]
        environment = json.loads((tracked[0] / "environment.json").read_text())
        assert {name: config[name] for name in environment} == environment
        assert config["parameters"] == config["trained_parameters"] == 36_384
        assert config["world_size"] == 1 and config["packages"]["wandb"] and "git_commit" in config
        assert config["SLURM_JOB_ID"] == "4711" and "not-listed" not in json.dumps(config)
        manifest = json.loads((tracked[0] / "checkpoint-000006" / "manifest.json").read_text())
        assert config["data_fingerprint"] == manifest["fingerprints"]["text"]


def test_the_summary_is_that_of_the_best_evaluation(tracked, lives):
    best = best_evaluation(evaluations(tracked[0]))
    summary = summary_of(lives[-1])
    for name in ("loss", "accuracy", "perplexity", "bits_per_byte"):
        assert summary[f"best/{name}"] == best[f"eval/{name}"]
    assert (summary["best/step"], summary["best/epoch"]) == (best[AXIS], best["train/epoch"])


def test_the_best_evaluation_may_be_of_a_life_before(tmp_path, away):
    rows = [
        {"eval/loss": loss, "train/epoch": 1.0, "train/tokens_seen": step, AXIS: step}
        for step, loss in ((0, 1.0), (10, 3.0), (20, float("nan")))
    ]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    service = WandbRun(tmp_path / "run", 20, project="p", run_name="r", group=None, config={})
    for step, loss in ((30, 4.0), (40, float("nan"))):
        service.log({**rows[1], "eval/loss": loss, AXIS: step})
    service.finish("finished")
    (records,) = offline_runs(away)
    assert (summary_of(records)["best/loss"], summary_of(records)["best/step"]) == (3.0, 10)


def test_figures_and_an_alert_end_a_life(tracked, lives):
    for records, step in zip(lives, (4, 6), strict=True):
        (row,) = [row for row in history(records) if "figures/loss" in row]
        assert row[AXIS] == step and row["figures/loss"]["_type"] == "image-file"
        assert {"figures/accuracy", "figures/loss_steps", "figures/learning_rate"} <= set(row)
        ((title, level, text),) = alerts_of(records)
        assert (title, level) == ("a run has finished", "INFO")
        assert text.startswith(f"{step} steps; best validation loss ")


def test_models_of_checkpoints_and_the_best_one_are_kept(tracked, lives):
    name = f"model-{(tracked[0] / 'wandb_run_id').read_text()}"
    kept = [list(artifacts_of(records)) for records in lives]
    assert {artifact for life in kept for artifact, _, _ in life} == {name}
    aliases = [[set(aliases) for _, aliases, _ in life] for life in kept]
    best = best_evaluation(evaluations(tracked[0]))[AXIS]
    assert best == 6  # a loss that falls: each checkpoint at an evaluation was the best so far
    assert aliases == [
        [{"latest", "step-3"}, {"latest", "step-4", "best"}, {"latest", "best"}],
        [{"latest", "step-6", "best"}, {"latest", "best"}],
    ]
    for life in kept:
        for _, _, files in life:
            assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
            assert not [file for file in files if file.startswith(("optimizer", "random", "manifest"))]


def test_the_system_is_measured(lives):
    assert any(record.HasField("stats") for records in lives for record in records)


def test_the_end_says_how_to_send_what_is_offline(tracked):
    run_dir, folder, printed = tracked
    for count, output in enumerate(printed, 1):
        (line,) = [line for line in output.splitlines() if line.startswith("wandb ")]
        words = shlex.split(line)[1:]
        assert words[:2] == ["wandb", "sync"]
        assert words[2:] == [
            str(path) for path in sorted(folder.glob(f"offline-run-*-{run_id(run_dir)}"))[:count]
        ]


# --- names and places


def test_a_given_run_id_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    assert run_id(tmp_path) == "given"
    monkeypatch.delenv("WANDB_RUN_ID")
    assert run_id(tmp_path) == "given"
    assert (tmp_path / "wandb_run_id").read_text() == "given"


def test_what_the_environment_says_goes_before(tmp_path, away, monkeypatch):
    environment = {
        "PROJECT": "theirs",
        "ENTITY": "team",
        "RUN_ID": "theirid",
        "NAME": "named",
        "JOB_TYPE": "try",
    }
    for name, value in environment.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    WandbRun(tmp_path, 0, project="ours", run_name="our name", group=None, config={}).finish("finished")
    (records,) = offline_runs(away)
    head = next(record.run for record in records if record.HasField("run"))
    assert (head.project, head.entity, head.run_id, head.display_name, head.job_type) == tuple(
        environment.values()
    )


def test_a_long_run_keeps_samples_of_all_its_steps(tmp_path, away):
    service = WandbRun(tmp_path, 0, project="p", run_name="r", group=None, config={})
    steps = range(5, 5 * 3 * MOST_SAMPLES + 1, 5)
    for step in steps:
        service.log_sample(Sample(step, f"step {step}, prompts ['']", (f"text {step}",)))
    shown = [sample.step for sample in service._samples]
    assert shown[0] == 5 and shown[-1] == steps[-1] and MOST_SAMPLES / 2 <= len(shown) <= MOST_SAMPLES
    assert shown == sorted(set(shown)) and max(b - a for a, b in itertools.pairwise(shown)) <= 5 * 16
    service.finish("finished")


def test_models_are_kept_on_wandb_only(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    arguments = TrainArguments(
        train_file=[str(tmp_path / "a.txt")], output_dir=str(tmp_path / "o"), wandb_log_model="end"
    )
    with pytest.raises(
        UsageError, match=r"^wandb_log_model keeps the model on wandb; give --report_to wandb too"
    ):
        check_arguments(arguments)


def test_each_trial_of_a_sweep_has_a_folder_of_its_own(monkeypatch):
    arguments = TrainArguments(train_file=["a.txt"], output_dir="out/sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    assert trial_of_sweep(arguments).output_dir == "out/sweep"
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    trial = trial_of_sweep(arguments)
    assert trial.output_dir == os.path.join("out/sweep", "abc")
    assert trial_of_sweep(trial) == trial  # its config.yaml, run again


def test_a_run_that_failed_is_shown_as_failed(command, text_file, tmp_path):
    """Nobody tells it: it looks at the exit code of the process, once the error is printed."""
    result = command(
        "run_clm.py", "--train_file", str(text_file), *TINY, "--mixed_precision", "no", "--max_train_steps", "20",
        "--learning_rate", "1e30", "--max_grad_norm", "0", "--max_skipped_steps", "1", "--report_to", "wandb",
        "--eval_on_start", "false", "--output_dir", "out", environment={"WANDB_DIR": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 1 and "error: 2 steps in a row" in result.stderr
    (records,) = offline_runs(tmp_path / "wandb")
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1]
    first, second = alerts_of(records)
    assert first[:2] == ("Not a finite number", "WARN") and second[:2] == ("out has failed", "ERROR")
    assert second[2] == "after step 3, with FloatingPointError; its log says why"
    told = json.dumps([first, second])  # neither the training text nor a folder, which the error has both
    assert "document" in result.stderr and "document" not in told and str(tmp_path) not in told


# --- a server, and none


RHYTHM = ("--max_train_steps", "4", "--eval_steps", "2", "--logging_steps", "1", "--sample_steps", "2")


def values_of(rows: list[dict]) -> list[dict]:
    """The logged rows, without wandb's own values, and without tables and images."""
    return [
        {key: value for key, value in row.items() if not key.startswith("_")}
        for row in rows
        if "samples" not in row and "figures/loss" not in row
    ]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "wandb").glob("*.yaml")), ids=lambda path: path.stem
)
def test_a_sweep_names_what_there_is(path):
    """Its flags and parameters are ours, and its files are there."""
    sweep, known = (
        yaml.safe_load(path.read_text()),
        {field.name for field in dataclasses.fields(TrainArguments)},
    )
    assert set(sweep["parameters"]) <= known and sweep["program"] == "run_clm.py"
    command = sweep["command"]
    ours = command[command.index("${program}") + 1 :]
    parse_arguments(
        TrainArguments, [word for word in ours if word != "${args}"], positional="preset", usage=""
    )
    for name, values in sweep["parameters"].items():
        for value in values["values"]:
            parse_arguments(TrainArguments, [f"--{name}={value}"], positional="preset", usage="")
    assert all((ROOT / word).is_file() for word in command if word.startswith("configs/"))


@pytest.mark.slow
def test_an_offline_run_of_two_lives_is_sent_as_one(command, text_file, tmp_path):
    """By the line that the end of the run prints."""
    flags = (
        "--train_file",
        str(text_file),
        *TINY,
        "--mixed_precision",
        "no",
        "--output_dir",
        "out",
        *RHYTHM[2:],
    )
    for steps in ("4", "6"):
        done = command(
            "run_clm.py", *flags, "--max_train_steps", steps, "--report_to", "wandb", "--project", "verse",
            environment={"WANDB_DIR": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("wandb ")]
    words = shlex.split(line)[1:]
    with WandbServer() as server:
        sent = subprocess.run(
            [str(Path(sys.executable).parent / words[0]), *words[1:]],
            cwd=tmp_path, env={**os.environ, **server.environment}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert sent.returncode == 0, sent.stdout + sent.stderr
        run = server.run("verse", (tmp_path / "out" / "wandb_run_id").read_text())
    assert values_of(run.history) == metrics(tmp_path / "out")
    assert run.summary["best/loss"] == best_evaluation(evaluations(tmp_path / "out"))["eval/loss"]
    assert server.unknown == []


@pytest.mark.slow
def test_without_a_server_or_a_login_a_run_goes_offline_and_says_so(command, text_file, tmp_path):
    flags = (
        "--train_file",
        str(text_file),
        *TINY,
        "--mixed_precision",
        "no",
        *RHYTHM,
        "--report_to",
        "wandb",
    )
    home = tmp_path / "home"  # where no login is
    home.mkdir()
    reasons = {
        "no login": ({"WANDB_MODE": "online"}, "No API key configured"),
        "no server": (
            {"WANDB_MODE": "online", "WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"},
            "Failed to",
        ),
    }
    for name, (variables, words) in reasons.items():
        environment = {**variables, "HOME": str(home), "WANDB_DIR": str(tmp_path), "WANDB_INIT_TIMEOUT": "10"}
        done = command("run_clm.py", *flags, "--output_dir", name, environment=environment)
        assert done.returncode == 0, done.stderr
        (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
        assert warning.startswith("warning: wandb cannot be online (")
        assert words in warning
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("wandb ")]
        (folder,) = shlex.split(line)[3:]
        run_id_there = (tmp_path / name / "wandb_run_id").read_text()
        assert folder.endswith(run_id_there) and Path(folder).name.startswith("offline-run-")
        assert values_of(history(read_records(Path(folder)))) == metrics(tmp_path / name)


# (file of configs/wandb/, what is tried, configuration of the launcher)
SWEEPS = (
    ("learning_rate", {"learning_rate": [0.001, 0.01], "lr_scheduler_type": ["constant"]}, "cpu"),
    ("learning_rate", {"learning_rate": [0.001, 0.01], "lr_scheduler_type": ["constant"]}, "ddp"),
    ("normalizers", {"normalizer": ["none", "nfd"], "seed": [1]}, "cpu"),
    ("temperature", {"sample_temperature": [0.5, 1.0]}, "cpu"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters", "config"), SWEEPS)
def test_a_sweep_makes_one_run_a_trial(command, tmp_path, text_file, name, parameters, config):
    """By `wandb sweep` and `wandb agent`, of a file of configs/wandb/ made small; also with two processes."""
    sweep = yaml.safe_load((ROOT / f"configs/wandb/sweep_{name}.yaml").read_text())
    assert parameters.keys() == sweep["parameters"].keys()
    sweep["parameters"] = {key: {"values": values} for key, values in parameters.items()}
    small = [*TINY, *RHYTHM, "--mixed_precision", "no", "--per_device_train_batch_size", "4"]
    if name == "temperature":  # of a model that is there; of the plays, since a distance needs some text
        done = command(
            "run_clm.py", *small, "--dataset_name", "shakespeare", "--output_dir", "out/quickstart"
        )
        assert done.returncode == 0, done.stderr
        small = ["--block_size", "32"]
    else:
        small += ["--train_file", str(text_file)]
    words = []
    for word in sweep["command"]:
        if word == "accelerate":
            words.append(ACCELERATE)
        elif word == "launch" and config == "ddp":
            words += ["launch", "--num_processes", "2"]
        elif word == "configs/accelerate/cpu.yaml":
            words.append(str(ROOT / f"configs/accelerate/{config}.yaml"))
        elif word == "${program}":
            words.append(str(ROOT / "run_clm.py"))
        elif word == "${args}":
            words += [*small, word]
        elif word != "configs/quickstart.yaml":
            words.append(word)
    sweep["command"] = words
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    wandb = str(Path(sys.executable).parent / "wandb")
    with WandbServer() as server:
        environment = {
            **os.environ, **server.environment, "WANDB_DIR": str(tmp_path), "ACCELERATE_USE_CPU": "true",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }  # fmt: skip
        for words in (["sweep", "sweep.yaml"], ["agent", "tester/stylegen/sweep0"]):
            done = subprocess.run(
                [wandb, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
            )
            assert done.returncode == 0, done.stdout + done.stderr
    tried = next(iter(parameters))
    assert {run.values[tried] for run in server.runs.values()} == set(parameters[tried])
    assert len(server.runs) == 2 and {run.sweep for run in server.runs.values()} == {"sweep0"}
    (out,) = [word.partition("=")[2] for word in sweep["command"] if word.startswith("--output_dir=")]
    for run in server.runs.values():
        assert run.values["world_size"] == (2 if config == "ddp" else 1)
        assert sweep["metric"]["name"] in run.summary  # what the sweep looks at
        assert values_of(run.history) == metrics(tmp_path / out / run.id)
    assert server.unknown == []
