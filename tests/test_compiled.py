"""Compiled layers: the same numbers and names, and a restart that need not compile again."""

import shutil

import pytest
from conftest import EXACT, TINY, evaluations, training_losses
from safetensors.torch import load_file

from stylegen.compiled import FOLDER

FLAGS = (
    *EXACT, "--model_type", "llama", "--config_overrides",
    "num_hidden_layers=2,num_attention_heads=2,num_key_value_heads=2,hidden_size=32,intermediate_size=48",
    "--max_train_steps", "4", "--max_train_samples", "21", "--eval_steps", "2", "--checkpointing_steps", "2",
)  # fmt: skip
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@needs_compiler
@pytest.mark.slow
def test_compiled_layers_give_the_same_numbers(train, tmp_path, capsys):
    """An epoch has two whole steps and a short one, so two shapes; an evaluation and samples lie between."""
    plain = train("plain", *FLAGS)
    compiled = train("compiled", *FLAGS, "--torch_compile", "true")
    assert "the first step took" in capsys.readouterr().err
    assert training_losses(compiled) == pytest.approx(training_losses(plain), rel=1e-5)
    for one, other in zip(evaluations(compiled), evaluations(plain), strict=True):
        assert one["eval/loss"] == pytest.approx(other["eval/loss"], rel=1e-5)
    one, other = (load_file(folder / "model.safetensors") for folder in (plain, compiled))
    assert one.keys() == other.keys()
    for name in one:
        assert (other[name] - one[name]).norm() <= 1e-5 * one[name].norm(), name
    assert any((tmp_path / "cache/stylegen" / FOLDER).rglob("*.so"))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "fsdp"])
def test_compiled_layers_under_a_launcher(launch, train, tmp_path, config):
    whole = train("plain", *FLAGS, "--total_batch_size", "8")
    code, _, log = launch(
        config, *FLAGS, "--total_batch_size", "8", "--per_device_train_batch_size", "4", "--torch_compile", "true",
        "--output_dir", str(tmp_path / config),
    )  # fmt: skip
    assert code == 0, log
    assert training_losses(tmp_path / config) == pytest.approx(training_losses(whole), rel=1e-5)


@pytest.mark.deepspeed
def test_zero3_is_refused(launch, tmp_path):
    code, _, log = launch("zero3", *FLAGS, "--torch_compile", "true", "--output_dir", str(tmp_path / "out"))
    assert code != 0
    assert (
        "error: torch_compile is not for ZeRO-3, which fetches the weights of each layer as it is called"
        in log
    )
    assert not (tmp_path / "out").exists()


def test_without_a_compiler_it_says_what_is_missing(command, text_file, tmp_path):
    out = tmp_path / "out"
    result = command(
        "run_clm.py", *TINY, *FLAGS, "--train_file", str(text_file), "--torch_compile", "true",
        "--output_dir", str(out),
        environment={"CXX": str(tmp_path / "no-such-compiler")},
    )  # fmt: skip
    assert result.returncode == 2
    assert "error: torch_compile needs a C++ compiler, and none works here" in result.stderr
    assert not out.exists()
