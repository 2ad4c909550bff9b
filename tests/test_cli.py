"""The real commands in real processes: what they print, what they leave behind, how they fail."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, TINY, evaluations, make_text, metrics, training_losses

EXACT_FILES = {
    "README.md", "config.json", "config.yaml", "environment.json", "generation_config.json", "metrics.jsonl",
    "model.safetensors", "report.html", "report.md", "tokenizer.json", "tokenizer_config.json",
    "figures/accuracy.png", "figures/learning_rate.png", "figures/loss.png", "figures/loss_steps.png",
    "samples/step-000004.txt",
}  # fmt: skip
CHECKPOINT_FILES = {
    "config.json", "generation_config.json", "manifest.json", "model.safetensors",
    "optimizer-00001-of-00001.safetensors", "random-00000.pt", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run_clm_style(tmp_path_factory):
    """A full command line in the style of run_clm.py, run once: (finished process, run directory)."""
    place = tmp_path_factory.mktemp("run_clm")
    (place / "train.txt").write_text(make_text(300))
    (place / "valid.txt").write_text(make_text(40, seed=1))
    flags = (
        "--model_type gpt2 --train_file train.txt --validation_file valid.txt --do_train --do_eval --max_steps 4 "
        "--warmup_steps 1 --save_steps 2 --evaluation_strategy steps --eval_steps 2 --save_total_limit 2 --bf16 "
        "--overwrite_output_dir --per_device_train_batch_size 4 --per_device_eval_batch_size 4 --learning_rate 1e-3 "
        "--logging_steps 1 --seed 1 --overwrite_cache --preprocessing_num_workers 2 --output_dir out"
    ).split()
    environment = {**os.environ, "XDG_CACHE_HOME": str(place / "cache")}
    command = [sys.executable, str(ROOT / "run_clm.py"), *flags, *TINY]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True), place / "out"


def test_a_command_line_of_run_clm_still_works(run_clm_style):
    process, folder = run_clm_style
    assert process.returncode == 0, process.stderr
    assert "warning: max_steps in the command line is now --max_train_steps" in process.stderr
    assert [row["train/global_step"] for row in evaluations(folder)] == [0, 2, 4]
    assert "mixed_precision: bf16" in (folder / "config.yaml").read_text()


def test_a_run_leaves_exactly_these_files(run_clm_style):
    _, folder = run_clm_style
    checkpoints = {f"checkpoint-{step:06d}/{name}" for step in (2, 4) for name in CHECKPOINT_FILES}
    assert files_below(folder) == EXACT_FILES | checkpoints


def test_summary_sample_and_figures_are_on_stdout_and_the_log_on_stderr(run_clm_style):
    process, folder = run_clm_style
    best = min(row["eval/loss"] for row in evaluations(folder)[1:])
    assert f"{best:.4f}" in process.stdout
    assert (folder / "samples/step-000004.txt").read_text() in process.stdout
    assert "out/figures/loss.png" in process.stdout
    assert "step 4/4: loss" in process.stderr and "step 4/4" not in process.stdout
    assert "kept 100.00 % of the" in process.stderr


def test_rows_carry_their_axes(run_clm_style):
    _, folder = run_clm_style
    rows = metrics(folder)
    assert all({"train/global_step", "train/epoch", "train/tokens_seen"} <= row.keys() for row in rows)
    assert [row["train/tokens_seen"] for row in rows if "train/loss" in row] == [128, 256, 384, 512]


def test_the_model_loads_in_plain_transformers(run_clm_style):
    _, folder = run_clm_style
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == model.config.vocab_size
    assert model.config.n_positions == 32


def test_generate_repeats_a_seed_to_the_byte(run_clm_style, command):
    _, folder = run_clm_style
    arguments = (str(folder), "--prompt", "ROMEO:", "--max_new_tokens", "60")
    first, again, other = (command("generate.py", *arguments, "--seed", seed) for seed in ("1", "1", "2"))
    assert first.returncode == 0 and first.stderr == ""
    assert first.stdout == again.stdout != other.stdout
    assert first.stdout.startswith("ROMEO:")


def test_generate_writes_files_and_reads_prompt_files(run_clm_style, command, tmp_path):
    _, folder = run_clm_style
    (tmp_path / "prompts.txt").write_text("ROMEO:\nthe king\n")
    arguments = (
        str(folder),
        "--prompt_file",
        "prompts.txt",
        "--num_return_sequences",
        "2",
        "--max_new_tokens",
        "10",
    )
    assert command("generate.py", *arguments, "--output", "texts.jsonl").stdout == ""
    assert command("generate.py", *arguments, "--output", "texts.txt", "--batch_size", "1").returncode == 0
    import json

    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["ROMEO:", "ROMEO:", "the king", "the king"]
    texts = [row["prompt"] + row["text"] + "\n" for row in rows]
    assert (tmp_path / "texts.txt").read_text() == "====\n".join(texts)


def test_streaming_shows_the_same_text(run_clm_style, command):
    _, folder = run_clm_style
    arguments = (str(folder), "--prompt", "ROMEO:", "the", "--max_new_tokens", "50", "--seed", "3")
    plain, streamed = command("generate.py", *arguments), command("generate.py", *arguments, "--stream")
    assert streamed.stdout == plain.stdout
    assert "\n====\nthe" in plain.stdout


def test_checkpoints_and_missing_models(run_clm_style, command, tmp_path):
    _, folder = run_clm_style
    assert command("generate.py", str(folder / "checkpoint-000002"), "--max_new_tokens", "5").returncode == 0
    (tmp_path / "empty").mkdir()
    result = command("generate.py", "./empty")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: empty holds no model; looked for: run directory, ")


def test_report_command_writes_the_pages_again(run_clm_style, tmp_path):
    _, folder = run_clm_style
    (folder / "report.md").unlink()
    result = subprocess.run(
        [sys.executable, "-m", "stylegen.report", folder], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0 and (folder / "report.md").exists()
    result = subprocess.run(
        [sys.executable, "-m", "stylegen.report", tmp_path], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 2 and "is not a run directory" in result.stderr


def test_a_command_line_of_run_clm_no_trainer_still_works(command, text_file, tmp_path):
    flags = (
        f"--train_file {text_file} --validation_split_percentage 10 --with_tracking --report_to wandb "
        "--num_warmup_steps 2 --max_train_steps 3 --checkpointing_steps epoch --lr_scheduler_type cosine "
        "--weight_decay 0.1 --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --seed 3 --output_dir out"
    ).split()
    result = command("run_clm.py", *flags, *TINY)
    assert result.returncode == 0, result.stderr
    assert "with_tracking in the command line is now --report_to" in result.stderr
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert "total_batch_size: 8" in (tmp_path / "out/config.yaml").read_text()


def test_a_preset_with_changes_on_top(command, text_file, tmp_path):
    result = command(
        "run_clm.py", str(ROOT / "configs/quickstart.yaml"), "--train_file", str(text_file), "--max_train_steps", "2",
        "--vocab_size", "300", "--config_overrides", "n_layer=1,n_head=2,n_embd=32", "--output_dir", "out",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    again = command("run_clm.py", "out/config.yaml", "--output_dir", "again")
    assert again.returncode == 0, again.stderr
    assert training_losses(tmp_path / "again") == training_losses(tmp_path / "out")


def test_ctrl_c_saves_and_the_same_command_goes_on(command, text_file, tmp_path):
    flags = ["--train_file", str(text_file), *TINY, "--max_train_steps", "100000", "--logging_steps", "1"]
    flags += [
        "--output_dir",
        "out",
        "--checkpointing_steps",
        "end",
        "--eval_steps",
        "100000",
        "--mixed_precision",
        "no",
    ]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_clm.py"), *flags],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr and any("step 3/" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    output, log = process.communicate(timeout=300)  # it also draws its figures, on a machine that may be busy
    assert process.returncode == 0
    assert "stopped by SIGINT; the same command goes on from here" in output
    assert "Traceback" not in log
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    stopped_at = int(checkpoint.name.partition("-")[2])
    flags[flags.index("100000")] = str(stopped_at + 2)
    result = command("run_clm.py", *flags)
    assert result.returncode == 0, result.stderr
    assert f"going on from out/{checkpoint.name}, step {stopped_at}" in result.stderr
    steps = [row["train/global_step"] for row in metrics(tmp_path / "out") if "train/loss" in row]
    assert steps == list(range(1, stopped_at + 3))


def test_a_run_that_diverges_stops_with_its_step_and_keeps_the_last_checkpoint(command, text_file, tmp_path):
    result = command(
        "run_clm.py", "--train_file", str(text_file), *TINY, "--max_train_steps", "50", "--learning_rate", "1e30",
        "--lr_scheduler_type", "constant", "--max_grad_norm", "0", "--checkpointing_steps", "1", "--output_dir", "out",
        "--mixed_precision", "no", "--eval_steps", "100", "--num_warmup_steps", "3",
    )  # fmt: skip
    assert result.returncode == 1
    assert re.search(  # the second step spoils the weights, and the six after it do not push out what is unharmed
        r"^error: 6 steps in a row, up to step 8, .* out/checkpoint-000001 is unharmed; start again with a lower",
        result.stderr,
        re.M,
    )
    assert "Traceback" not in result.stderr
    assert list((tmp_path / "out").glob("checkpoint-*/manifest.json"))


def test_messages_without_a_traceback_and_with_one_when_asked(command):
    result = command("run_clm.py", "--train_fil", "x")
    assert (result.returncode, result.stdout) == (2, "")
    assert (
        result.stderr
        == "error: unknown flag --train_fil; did you mean --train_file?; --help lists the flags\n"
    )
    assert "Traceback" in command("run_clm.py", "--train_fil", "x", "--debug").stderr


BAD_TEXTS = {
    "empty.txt": b"",
    "token.txt": b"a",
    "nul.txt": b"some text\0 and more\n" * 50,
    "latin.txt": "caf\u00e9 au lait\n".encode("latin-1") * 50,
    "short.txt": make_text(5).encode(),
    "table.csv": b"title,story\nA,once upon a time\n",
}
BAD_INPUTS = [
    ("--train_file empty.txt", "empty.txt is empty; give a file with text in it"),
    ("--train_file missing.txt", "missing.txt does not exist; give a file, a folder or a glob in quotes"),
    ("--train_file token.txt --validation_file short.txt", "the train text is 1 token long, but predicting"),
    ("--train_file nul.txt", "nul.txt has a NUL byte at offset 9"),
    ("--train_file latin.txt", "latin.txt is not UTF-8: byte 0xe9 at offset 3; convert it"),
    ("--train_file table.csv --text_column text", "table.csv has no column 'text'; its columns are title, story"),
    ("--train_file short.txt --batch_size 3", "unknown flag --batch_size"),
    ("--train_file short.txt --seed abc", "seed in the command line is 'abc', but must be a whole number"),
    ("--train_file short.txt --output_dir short.txt/out", "output_dir short.txt/out cannot be a folder"),
    ("--train_file short.txt --output_dir used", "output_dir used holds config.json, but not from a run of stylegen"),
    ("--train_file short.txt", "no room for one validation block: 5 % of the text is"),
    ("--train_file short.txt --model_name_or_path ./used", "no model configuration in ./used"),
    ("--train_file short.txt --model_type gtp2", "model_type gtp2 is not known to transformers"),
    ("--train_file short.txt --config_overrides n_layers=2", "config_overrides names n_layers"),
    ("--train_file short.txt --tokenizer_name ./nowhere", "no tokenizer in ./nowhere"),
    ("--train_file short.txt --lr_scheduler_type cosine --lr_scheduler_kwargs cycles=2", "lr_scheduler_kwargs"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "message"), BAD_INPUTS, ids=[message[:40] for _, message in BAD_INPUTS])
def test_bad_input_is_one_line_that_names_it_and_writes_nothing(
    flags, message, tmp_path, monkeypatch, capsys
):
    """In this process, since most of these need the heavy imports; the exit code is the process's."""
    from accelerate.state import AcceleratorState

    from stylegen.train import main

    for name, content in BAD_TEXTS.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "used").mkdir()
    (tmp_path / "used/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    AcceleratorState._reset_state(reset_partial_state=True)
    output_dir = () if "--output_dir" in flags else ("--output_dir", "out")
    small = (
        ()
        if "--config_overrides" in flags or "--model" in flags
        else ("--config_overrides", "n_layer=1,n_head=1,n_embd=8")
    )
    before = files_below(tmp_path)
    code = main(
        [*flags.split(), *small, *output_dir, *(() if "kwargs" not in flags else ("--block_size", "2"))]
    )
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    error = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and message in error[0]
    assert "Traceback" not in captured.err
    assert {path for path in files_below(tmp_path) - before if not path.startswith("cache/")} == set()


def test_a_used_output_directory_with_other_arguments_is_refused_key_by_key(train, capsys):
    train("used", "--max_train_steps", "2")
    capsys.readouterr()
    train("used", "--max_train_steps", "4", "--seed", "1", "--learning_rate", "1e-4", code=2)
    error = capsys.readouterr().err
    assert (
        "learning_rate: 0.001 -> 0.0001" in error
        and "seed: 42 -> 1" in error
        and "max_train_steps" not in error
    )


def test_a_changed_text_is_refused_with_both_fingerprints(train, text_file, capsys):
    train("run", "--max_train_steps", "2")
    text_file.write_text(make_text(301))
    train("run", "--max_train_steps", "4", code=2)
    assert re.search(
        r"the text is not that of \S+ \(fingerprints: text \w{12}, now \w{12}\); restore it, choose another",
        capsys.readouterr().err,
    )


def test_a_finished_model_without_checkpoints_is_never_written_over(train, capsys):
    import shutil

    folder = train("run", "--max_train_steps", "2")
    shutil.rmtree(folder / "checkpoint-000002")
    train("run", "--max_train_steps", "2", code=2)
    assert "holds a finished model, but no checkpoint to go on from" in capsys.readouterr().err
    train("run", "--max_train_steps", "1", "--overwrite_output_dir")
    assert metrics(folder)[-1]["train/global_step"] == 1


def test_files_of_others_in_the_output_directory_stay(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    folder = train("run", "--max_train_steps", "1")
    train("run", "--max_train_steps", "1", "--overwrite_output_dir")
    assert (folder / "notes.txt").read_text() == "mine"


def test_one_long_line_trains(command, tmp_path):
    (tmp_path / "line.txt").write_text(make_text(2000).replace("\n", " "))
    result = command(
        "run_clm.py", "--train_file", "line.txt", "--max_train_steps", "2", "--block_size", "32", "--vocab_size", "300",
        "--config_overrides", "n_layer=1,n_head=2,n_embd=32", "--output_dir", "out",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", ["stylegen.train", "stylegen.generate"])
def test_the_installed_package_has_the_commands_too(module, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0
    assert result.stdout.startswith("usage: ")


def test_a_reader_that_leaves_early_is_no_error(run_clm_style):
    _, folder = run_clm_style
    line = f"{sys.executable} {ROOT / 'generate.py'} {folder} --num_return_sequences 40 --max_new_tokens 40 | head -n 1"
    result = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True)
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr


def test_early_stopping_keeps_the_best_model(train):
    """A learning rate that overshoots: the loss turns up, the run stops, the best weights are the final ones."""
    folder = train(
        "run", "--max_train_steps", "60", "--eval_steps", "4", "--early_stopping_patience", "2",
        "--learning_rate", "0.3", "--lr_scheduler_type", "constant",
    )  # fmt: skip
    losses = {row["train/global_step"]: row["eval/loss"] for row in evaluations(folder)}
    best = min((step for step in losses if step), key=losses.__getitem__)
    assert max(losses) == best + 8 < 60
    again = train("again", "--model_name_or_path", str(folder), "--max_train_steps", "0", tiny=False)
    assert evaluations(again)[0]["eval/loss"] == pytest.approx(losses[best], rel=1e-6)


def test_time_is_not_spent_twice_on_the_same_text(train):
    """The second run of the same text opens the token cache instead of tokenizing."""
    train("first", "--max_train_steps", "1")
    started = time.time()
    folder = train("second", "--max_train_steps", "1")
    (entry,) = (folder.parent / "cache/stylegen").iterdir()
    assert (entry / "meta.json").stat().st_mtime < started
