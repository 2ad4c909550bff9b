"""The commands that README shows: each is run here, or named as one that needs what a test machine has not."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_text

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.strip().splitlines()
]
SMALL = ("--max_train_steps", "2", "--vocab_size", "300", "--block_size", "32", "--overwrite_output_dir",
         "--config_overrides", "n_layer=1,n_head=2,n_embd=32")  # fmt: skip

# The commands as README shows them; each is run below, those of presets with a model that is small and local.
TRAIN = "python run_clm.py configs/quickstart.yaml --train_file mine.txt --output_dir out/mine"
TUNE = "python run_clm.py configs/finetune_gpt2.yaml --train_file mine.txt --output_dir out/tuned"
ADAPT = "python run_clm.py configs/finetune_lora.yaml --train_file mine.txt --output_dir out/adapter"
COMPARE = 'python generate.py out/mine out/adapter --prompt "ROMEO" "To be" --compare out/compare.html'
SAMPLE = "python generate.py out/mine --num_samples 50 --output out/mine.jsonl"
MEASURE = "python -m stylegen.style --train mine.txt --texts out/mine.jsonl"
LAUNCH = (
    "accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes 2 "
    "run_clm.py configs/scratch_gpt2_small.yaml --train_file texts/ --output_dir out/gpt2"
)
ONE_GPU = TUNE.replace("python", "accelerate launch --config_file configs/accelerate/single_gpu.yaml")
# Run in test_slurm.py with other arguments, on a real SLURM.
SUBMIT = "sbatch configs/slurm/train.sbatch configs/scratch_gpt2_small.yaml --train_file texts/ --output_dir out/gpt2"
PLAN = "python -m stylegen.plan configs/scratch_gpt2_small.yaml --gpus 16 --gpu h100"  # in test_plan.py
WRITE = 'python generate.py out/quickstart --prompt "ROMEO" --seed 1'
MAKE = ("make quickstart", "make test")  # the first in the slow test below, the second is what runs this file


def run(place: Path, *arguments: str, **environment: str):
    words = [sys.executable if word == "python" else word for word in arguments]
    words = [
        str(ROOT / word) if word in ("run_clm.py", "generate.py") or word.startswith("configs/") else word
        for word in words
    ]
    result = subprocess.run(
        words, cwd=place, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text and, as out/quickstart, a run of the quickstart preset cut short."""
    place = tmp_path_factory.mktemp("readme")
    (place / "mine.txt").write_text(make_text(400))
    (place / "texts").mkdir()
    (place / "texts" / "one.txt").write_text(make_text(400))
    run(
        place,
        "python",
        "run_clm.py",
        "configs/quickstart.yaml",
        "--train_file",
        "mine.txt",
        *SMALL,
        "--cache_dir",
        "cache",
    )
    return place


def test_every_command_is_accounted_for():
    assert set(COMMANDS) - {ONE_GPU} == {
        TRAIN,
        TUNE,
        ADAPT,
        COMPARE,
        SAMPLE,
        MEASURE,
        LAUNCH,
        SUBMIT,
        PLAN,
        WRITE,
        *MAKE,
    }


def test_training_on_a_file(place):
    assert "report" in run(place, *TRAIN.split(), *SMALL, "--cache_dir", "cache")
    assert (place / "out/mine/model.safetensors").exists()


def test_writing(place):
    assert run(
        place, "python", "generate.py", "out/quickstart", "--prompt", "ROMEO", "--seed", "1"
    ).startswith("ROMEO")


def test_an_adapter_is_compared_and_texts_are_measured(place):
    small = ("--model_name_or_path", "out/quickstart", "--block_size", "16", "--max_train_steps", "2")
    run(place, *ADAPT.split(), *small, "--cache_dir", "cache")
    assert (place / "out/adapter/adapter_model.safetensors").exists()
    # What README trains first is here the short run of the quickstart.
    compare, sample, measure = (
        shlex.split(command.replace("out/mine ", "out/quickstart ")) for command in (COMPARE, SAMPLE, MEASURE)
    )
    run(place, *compare, "--max_new_tokens", "20")
    assert "To be" in (place / "out/compare.html").read_text()
    run(place, *sample, "--max_new_tokens", "40")
    assert "mine.jsonl" in run(place, *measure)


def test_fine_tuning_preset(place):
    small = (
        "--model_name_or_path",
        "out/quickstart",
        "--block_size",
        "16",
        "--max_train_steps",
        "2",
        "--cache_dir",
        "cache",
    )
    run(place, *TUNE.split(), *small)
    assert "lr_scheduler_type: constant" in (place / "out/tuned/config.yaml").read_text()


def test_training_from_scratch_under_the_launcher(place):
    words = [
        str(Path(sys.executable).parent / word) if word == "accelerate" else word for word in LAUNCH.split()
    ]
    small = (
        "--total_batch_size",
        "16",
        "--per_device_train_batch_size",
        "8",
        "--validation_split_percentage",
        "10",
    )
    run(place, *words, *SMALL, *small, "--cache_dir", "cache", ACCELERATE_USE_CPU="true")
    assert (place / "out/gpt2/model.safetensors").exists()
    assert json.loads((place / "out/gpt2/environment.json").read_text())["world_size"] == 2


def test_the_run_directory_is_as_shown(place):
    tree = README.partition("out/quickstart/\n")[2].partition("```")[0]
    shown = [re.split(r"\s{2,}", line.strip())[0] for line in tree.strip().splitlines()]
    names = [name for entry in shown for name in entry.split() if name != "..."]
    for name in names:
        pattern = re.sub(r"-\d{6}", "-*", name)
        assert list((place / "out/quickstart").glob(pattern.rstrip("/"))), name


@pytest.mark.slow
def test_make_quickstart_from_nothing(tmp_path):
    """A clone of what is committed, nothing installed: one command to a model that writes."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "clone")], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    result = subprocess.run(
        ["make", "quickstart"],
        cwd=tmp_path / "clone",
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    folder = tmp_path / "clone/out/quickstart"
    assert str(folder.relative_to(tmp_path / "clone") / "figures/loss.png") in result.stdout
    losses = [float(loss) for loss in re.findall(r"validation loss ([\d.]+)", result.stderr)]
    assert len(losses) > 5 and losses[:-2] == sorted(losses[:-2], reverse=True)
    sample = next(folder.glob("samples/step-*.txt")).read_text()
    assert re.search(r"^[A-Z][A-Z ]+$", sample, re.M), "no speaker's name on a line of its own"
