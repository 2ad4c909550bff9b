"""What a user may name as a model: each kind of folder, and each way to name something else."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_text
from safetensors.torch import load_file, save_file

from stylegen.config import UsageError
from stylegen.export import find_model, load_for_writing
from stylegen.tokenizer import train_tokenizer

NAMES = "give a run directory, a checkpoint, a model folder or a hub id"


def run_directory(tmp_path: Path, **models: Path) -> Path:
    """A run directory with models in the named places; `top` is the run directory itself."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("model_type: gpt2\n")
    (folder / "metrics.jsonl").touch()
    for place, source in models.items():
        shutil.copytree(source, folder if place == "top" else folder / place, dirs_exist_ok=True)
    return folder


def test_a_model_folder_is_taken_as_it_is(model_folder):
    assert find_model(str(model_folder)) == str(model_folder)


def test_a_finished_run_gives_its_model(tmp_path, model_folder):
    folder = run_directory(tmp_path, top=model_folder)
    assert find_model(str(folder)) == str(folder)


def test_a_running_run_gives_its_best_model_so_far(tmp_path, model_folder):
    folder = run_directory(tmp_path, best=model_folder)
    assert find_model(str(folder)) == str(folder / "best")


def test_a_finished_run_that_goes_on_gives_its_newer_best_model(tmp_path, model_folder):
    """Given more epochs, a run keeps its first final model above; best/ is written only when a better one is found."""
    folder = run_directory(tmp_path, top=model_folder, best=model_folder)
    assert find_model(str(folder)) == str(folder / "best")


def test_a_half_written_best_model_is_not_taken(tmp_path, model_folder):
    folder = run_directory(tmp_path, top=model_folder)
    shutil.copytree(model_folder, folder / "best.tmp")
    assert find_model(str(folder)) == str(folder)


def test_every_real_run_directory_and_its_checkpoints_can_be_named(train):
    folder = train("run", "--max_train_steps", "2", "--checkpointing_steps", "1", "--sample_steps", "end")
    assert find_model(str(folder)) == str(folder)
    checkpoint = folder / "checkpoint-000001"
    assert find_model(str(checkpoint)) == str(checkpoint)
    for path in folder.iterdir():  # as if it had been stopped before its first evaluation
        if path.is_file():
            path.unlink()
    assert find_model(str(folder)) == str(folder / "checkpoint-000002")
    model, tokenizer = load_for_writing(str(folder), "float32", torch.device("cpu"))
    assert not model.training
    assert len(tokenizer) == model.config.vocab_size


def test_a_user_may_write_the_home_folder_as_a_tilde(tmp_path, model_folder, monkeypatch):
    shutil.copytree(model_folder, tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model("~/model") == str(tmp_path / "model")


def test_a_relative_path_is_a_folder_before_it_is_a_hub_id(tmp_path, model_folder, monkeypatch):
    shutil.copytree(model_folder, tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    assert find_model("org/model") == "org/model"
    assert load_for_writing("org/model", "float32", torch.device("cpu"))


@pytest.mark.parametrize("name", ["gpt2", "org/model", "HuggingFaceTB/SmolLM2-135M"])
def test_what_is_no_local_path_is_a_hub_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model(name) == name


@pytest.mark.parametrize(
    "name",
    ["{tmp_path}/missing", "./missing", "../missing", "~/missing", "runs/2026/missing", "runs/missing"],
)
def test_a_path_that_does_not_exist_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs").mkdir()  # someone who has a folder runs/ means a run in it
    name = name.format(tmp_path=tmp_path)
    with pytest.raises(UsageError) as error:
        find_model(name)
    assert str(error.value) == f"{name} does not exist; {NAMES}"


def test_a_file_is_refused(model_folder):
    path = model_folder / "model.safetensors"
    with pytest.raises(UsageError) as error:
        find_model(str(path))
    assert (
        str(error.value) == f"{path} is a file; give the folder that holds config.json and model.safetensors"
    )


def test_a_folder_without_a_model_is_refused_saying_what_was_looked_for(tmp_path):
    (tmp_path / "checkpoint-000001").mkdir()  # an empty one is no checkpoint
    with pytest.raises(UsageError) as error:
        find_model(str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path} holds no model; looked for config.json in it and in best/, and for checkpoint-* folders"
    )


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path, model_folder):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    larger = train_tokenizer("char", [[make_text(50) + "漢字"]], 0, None, "none")
    larger.save_pretrained(str(folder))
    rows = len(larger) - 2
    with pytest.raises(UsageError) as error:
        load_for_writing(str(folder), "float32", torch.device("cpu"))
    assert str(error.value) == (
        f"the tokenizer in {folder} has {len(larger)} words, the model {rows}; they do not belong together"
    )


def test_a_tokenizer_smaller_than_the_model_is_taken(tmp_path, model_folder):
    """Many published models have embedding rows that no token uses."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    train_tokenizer("char", [["ab"]], 0, None, "none").save_pretrained(str(folder))
    assert load_for_writing(str(folder), "float32", torch.device("cpu"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_weights_get_the_type_that_was_asked_for(model_folder, dtype):
    model, _ = load_for_writing(str(model_folder), dtype, torch.device("cpu"))
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_an_incomplete_model_folder_is_a_usage_error(tmp_path, model_folder, missing):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / missing).unlink()
    kind = "model" if missing == "model.safetensors" else "tokenizer"
    with pytest.raises(UsageError, match=rf"{kind} in .*{folder.name}"):
        load_for_writing(str(folder), "float32", torch.device("cpu"))


@pytest.mark.parametrize("damage", ["truncated", "garbage", "a tensor missing", "a tensor of another shape"])
def test_damaged_weights_are_a_usage_error(tmp_path, model_folder, damage):
    """A tensor that is not there must not be made up: transformers fills it with noise and goes on."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    path = folder / "model.safetensors"
    tensors, name = load_file(path), "transformer.h.0.attn.c_proj.weight"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "garbage":
        path.write_bytes(b"\xff" * 1000)
    elif damage == "a tensor missing":
        save_file({key: value for key, value in tensors.items() if key != name}, path, {"format": "pt"})
    else:
        save_file({**tensors, name: torch.zeros(3, 3)}, path, {"format": "pt"})
    with pytest.raises(UsageError, match=f"no model in {folder}"):
        load_for_writing(str(folder), "float32", torch.device("cpu"))
