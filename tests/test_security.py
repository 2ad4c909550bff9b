"""What foreign files, names and the environment must not achieve; SECURITY.md says it in prose.

Rows 14 to 17 each have a test of that name; the unit tests of `trust` and `config.privacy` stand beside them.
"""

import dataclasses
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import ROOT, TINY, make_text, metrics, training_losses
from packaging.requirements import Requirement
from wandb_files import config_of, offline_runs

from stylegen import generate
from stylegen.checkpoint import manifest
from stylegen.config import (
    ExportArguments,
    GenerateArguments,
    StyleArguments,
    TrainArguments,
    UsageError,
    parse_arguments,
    stay_local,
)
from stylegen.config.privacy import ENVIRONMENT, HUB_NAMES, NO_PATHS, TEXTS, for_trackers, redacted
from stylegen.model import load_config, load_model, save_model, scratch_config
from stylegen.tokenizer import load_tokenizer
from stylegen.tracking.wandb_run import WANDB_SETTINGS
from stylegen.trust import check_source

STEPS = (
    "--max_train_steps",
    "2",
    "--checkpointing_steps",
    "1",
    "--logging_steps",
    "1",
    "--sample_steps",
    "end",
)
HF_TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
WANDB_KEY = "0123456789abcdef" * 2 + "01234567"
LOADING = {"dtype": "float32"}


@pytest.fixture
def model(model_folder, tmp_path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def edit_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def written(*arguments: str) -> int:
    """The exit code of generate.py; a traceback is an exception here."""
    return generate.main([*arguments, "--max_new_tokens", "2"])


# --- row 14: pickles


class Planted:
    """Unpickled, it creates a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def plant(path: Path, marker: Path, form: str) -> None:
    """Put a pickle in the place of a file: bare, as torch.save writes it today, or as it did before 1.6."""
    content = io.BytesIO(pickle.dumps(Planted(marker), protocol=2))  # torch knows no newer one
    if form != "pickle":
        torch.save(Planted(marker), content, _use_new_zipfile_serialization=form == "zip")
    path.write_bytes(content.getvalue())


FORMS = ("pickle", "zip", "legacy")


@pytest.mark.parametrize("form", FORMS)
def test_the_planted_pickle_would_work(tmp_path, form):
    plant(tmp_path / "file", tmp_path / "marker", form)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "file", weights_only=True)
    assert not (tmp_path / "marker").exists()
    if form == "pickle":
        pickle.loads((tmp_path / "file").read_bytes())
    else:
        torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "marker").exists()


def vouch_for(checkpoint: Path) -> None:
    """Make the manifest say that the files are as they were written."""
    path = checkpoint / "manifest.json"
    content = json.loads(path.read_text())
    content["files"] = {name: manifest.describe_file(checkpoint / name) for name in content["files"]}
    content["sha256"] = manifest._digest(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("vouched", [False, True], ids=["damaged", "vouched for"])
def test_row_14_a_pickle_planted_as_a_file_of_a_checkpoint_never_runs(train, tmp_path, form, vouched, capsys):
    """Every file by turns, once as damage that the checksum shows, once in a checkpoint that was made to harm."""
    clean = train("clean", *STEPS)
    marker, names = tmp_path / "marker", [path.name for path in (clean / "checkpoint-000001").iterdir()]
    assert len(names) >= 7
    for name in names if vouched or form == "pickle" else ():
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(clean, folder)
        shutil.rmtree(folder / "checkpoint-000002")
        checkpoint = folder / "checkpoint-000001"
        plant(checkpoint / name, marker, form)
        if vouched and name != "manifest.json":
            vouch_for(checkpoint)
        capsys.readouterr()
        code = 0 if vouched and name == "tokenizer.json" else 2  # training has its own in the token cache
        train("run", *STEPS, code=code)
        assert code == 0 or capsys.readouterr().err.strip().splitlines()[-1].startswith("error: "), name
        used = not vouched or not name.startswith(("optimizer", "random"))
        assert written(str(checkpoint)) == (2 if used else 0), name
        assert not marker.exists(), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.safetensors", "adapter_model.bin", "shard-00001-model-00001-of-00001.safetensors"],
)  # fmt: skip
def test_row_14_a_pickle_planted_as_the_weights_of_a_model_never_runs(
    train, model, tmp_path, name, form, capsys
):
    """The last one would make Transformers load by DCP, whose reader of its own files unpickles `.metadata`."""
    (model / "model.safetensors").unlink()
    for path in (model / name, model / ".metadata", model / "training_args.bin", model / "optimizer.pt"):
        plant(path, tmp_path / "marker", form)
    train("run", "--model_name_or_path", str(model), *STEPS, code=2, tiny=False)
    assert re.search(rf"^error: no model in {model}: ", capsys.readouterr().err, re.M)
    assert not (tmp_path / "run").exists()
    assert written(str(model)) == 2
    assert not (tmp_path / "marker").exists()


def test_row_14_a_pickle_planted_as_a_shard_never_runs(model, tmp_path):
    (model / "model.safetensors").unlink()
    plant(model / "part.bin", tmp_path / "marker", "zip")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "part.bin"}}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert written(str(model)) == 2
    assert not (tmp_path / "marker").exists()


def test_row_14_a_pickle_planted_in_the_token_cache_never_runs(train, tmp_path):
    train("first", *STEPS)
    planted = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert {path.suffix for path in planted} >= {".bin", ".npy", ".json"}
    for path in planted:
        plant(path, tmp_path / "marker", "pickle")
    folder = train("second", *STEPS)  # it is prepared again
    assert training_losses(folder) == training_losses(tmp_path / "first")
    assert not (tmp_path / "marker").exists()


# --- row 15: folders that lead elsewhere


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "entry",
    [
        {"auto_map": {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}},
        {"auto_map": {"AutoTokenizer": [None, "somebody/evil--tokenizer.Tokenizer"]}},
        {"text_config": {"layers": [{"auto_map": {}}]}},
        {"_attn_implementation_internal": "somebody/kernel"},
        {"attn_implementation": "somebody/kernel:function"},
        {"_experts_implementation": {"": "somebody/kernel"}},
        {"transformers_weights": "../other/model.safetensors"},
        {"fast_tokenizer_files": ["../tokenizer.4.0.json"]},
    ],
    ids=lambda entry: next(iter(entry)),
)
def test_row_15_keys_that_lead_to_code_or_out_of_the_folder_are_refused(train, model, name, entry, capsys):
    (model / "evil.py").write_text("raise SystemExit('it ran')")
    edit_json(model / name, **entry)
    train("run", "--model_name_or_path", str(model), *STEPS, code=2, tiny=False)
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {model / name} ") and "\n" not in error
    assert written(str(model)) == 2
    with pytest.raises(UsageError, match=name):
        load_tokenizer(str(model))
    with pytest.raises(UsageError, match=name):
        scratch_config(None, str(model), {}, None)


@pytest.mark.parametrize(
    "shard", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "..\\x"]
)
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_row_15_a_shard_that_is_no_plain_file_name_is_refused(model, shard, index):
    shutil.copy(model / "model.safetensors", model.parent / "secret.safetensors")
    (model / "model.safetensors").unlink()
    (model / index).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "x.bin", "b": shard}}))
    with pytest.raises(UsageError, match=f"{index} names files outside its folder with weight_map"):
        load_model(str(model), **LOADING)
    assert written(str(model)) == 2


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_row_15_a_link_out_of_the_folder_is_refused(train, model, tmp_path, name, capsys):
    outside = tmp_path / "outside"
    outside.write_text("a secret")
    if (model / name).exists():
        os.replace(model / name, outside)
    (model / name).symlink_to("../outside")
    train("run", "--model_name_or_path", str(model), *STEPS, code=2, tiny=False)
    assert f"error: {model / name} is a link out of its folder, to {outside}; " in capsys.readouterr().err
    assert written(str(model)) == 2


def test_links_within_a_folder_and_to_a_folder_are_fine(model, tmp_path):
    os.replace(model / "model.safetensors", model / "weights.safetensors")
    (model / "model.safetensors").symlink_to("weights.safetensors")
    (model / "notes.txt").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(model)
    check_source(tmp_path / "link")
    (model / "config.json").unlink()
    (model / "config.json").symlink_to("config.json")
    with pytest.raises(UsageError, match=r"^no model configuration in "):
        load_config(str(model))


def hub_cache(folder: Path, model: Path, shared: bool = False) -> Path:
    """The model as the hub's cache keeps it, as somebody/tiny; returns its snapshot."""
    repository = folder / "models--somebody--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    blobs = folder / "blobs" / "ab" if shared else repository / "blobs"
    for path in (snapshot, blobs, repository / "blobs", repository / "refs"):
        path.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text("0" * 40)
    for number, path in enumerate(sorted(model.iterdir())):
        blob = shutil.copy(path, blobs / f"{number:040x}")
        if shared:
            link = repository / "blobs" / f"{number:040x}"
            link.symlink_to(f"../../blobs/ab/{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{Path(blob).name}")
    return snapshot


@pytest.mark.parametrize("shared", [False, True], ids=["its own blobs", "blobs of the whole cache"])
def test_row_15_links_of_the_hub_cache_are_allowed(model, tmp_path, shared):
    snapshot = hub_cache(tmp_path / "hub", model, shared)
    assert load_model(str(snapshot), **LOADING).config.model_type == "gpt2"
    (tmp_path / "elsewhere").symlink_to(tmp_path / "hub")  # a cache on another disk
    through = tmp_path / "elsewhere" / snapshot.relative_to(tmp_path / "hub")
    assert load_tokenizer(str(through)).eos_token


@pytest.mark.parametrize("what", ["a file", "the blobs"])
def test_row_15_a_folder_that_only_looks_like_the_hub_cache_is_refused(model, tmp_path, what):
    snapshot = hub_cache(tmp_path / "hub", model)
    if what == "a file":
        (snapshot / "chat_template.jinja").symlink_to("../../refs/main")
    else:
        os.rename(snapshot.parent.parent / "blobs", tmp_path / "outside")
        (snapshot.parent.parent / "blobs").symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match="is a link out of its folder"):
        load_model(str(snapshot), **LOADING)


def test_a_model_of_the_hub_runs_no_code_and_hands_on_no_reference_to_it(
    model, tmp_path, monkeypatch, capsys
):
    """Transformers knows its architecture, so it loads without the code; and what we write can be loaded by us."""
    for name, auto_map in (
        ("config.json", {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Tokenizer", None]}),
    ):
        edit_json(model / name, auto_map=auto_map)
    (model / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    hub_cache(tmp_path / "hub", model)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded, tokenizer = load_model("somebody/tiny", **LOADING), load_tokenizer("somebody/tiny")
    save_model(loaded, tokenizer, tmp_path / "ours")
    assert load_model(str(tmp_path / "ours"), **LOADING) and load_tokenizer(str(tmp_path / "ours"))
    assert not hasattr(load_config("somebody/tiny"), "auto_map")
    assert not (tmp_path / "marker").exists()


def test_a_pickle_on_the_hub_never_runs(model, tmp_path, monkeypatch):
    (model / "model.safetensors").unlink()
    plant(model / "pytorch_model.bin", tmp_path / "marker", "zip")
    hub_cache(tmp_path / "hub", model)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(
        UsageError, match="no model in somebody/tiny: its weights are a pickle of more than tensors"
    ):
        load_model("somebody/tiny", **LOADING)
    assert not (tmp_path / "marker").exists()


def test_an_adapter_is_refused_as_it_names_another_model(model):
    (model / "config.json").unlink()
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/model"}')
    with pytest.raises(UsageError, match="holds an adapter; merge it into its base model"):
        load_config(str(model))


@pytest.mark.parametrize("content", [b"\x80\x04N.", b"{", b"[" * 100_000, b""])
def test_a_file_that_is_no_json_is_named(model, content):
    (model / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"tokenizer_config\.json is not valid JSON"):
        load_tokenizer(str(model))


@pytest.mark.parametrize("name", ["../x.gguf", "/x.gguf", "a/x.gguf", ".."])
def test_a_gguf_file_is_a_plain_name(model, name):
    with pytest.raises(UsageError, match="must be the name of a file in"):
        load_config(str(model), gguf_file=name)


def test_a_gguf_file_of_the_working_directory_does_not_stand_in(model, tmp_path, monkeypatch):
    """Transformers would take the weights from here, and the rest from the folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.gguf").touch()
    with pytest.raises(UsageError, match=r"^gguf_file x.gguf is not in .*, but here"):
        check_source(model, "x.gguf")
    (model / "x.gguf").touch()
    with pytest.raises(UsageError, match=r"^gguf_file x.gguf is in .* and here"):
        check_source(model, "x.gguf")
    monkeypatch.chdir(model)
    check_source(model, "x.gguf")
    check_source("somebody/model", "folder/y.gguf")


def test_overrides_reach_no_private_part_of_a_configuration(model_folder):
    for name in (None, str(model_folder)):
        with pytest.raises(UsageError, match="config_overrides names _attn_implementation_internal"):
            scratch_config(None if name else "gpt2", name, {"_attn_implementation_internal": "a/b"}, None)


def test_a_kernel_of_the_hub_is_refused(train, capsys):
    train("run", "--attn_implementation", "kernels-community/flash-attn2", code=2)
    assert "attn_implementation kernels-community/flash-attn2 is code on the hub" in capsys.readouterr().err


# --- row 16: secrets


@pytest.fixture
def wandb_folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """Where wandb writes in this test; it keeps the environment of its first run."""
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    yield tmp_path / "wandb"
    wandb.teardown()


def repository_with_a_token(folder: Path) -> str:
    """Make `folder` a git repository whose remote holds a password; returns that."""
    password = "ghp_" + "p" * 36
    for words in ("init -q", f"remote add origin https://user:{password}@example.com/x.git"):
        subprocess.run(["git", "-C", str(folder), *words.split()], check=True)
    return password


def test_row_16_no_byte_of_a_token_is_written(train, tmp_path, wandb_folder, monkeypatch, capfd):
    environment = {
        "HF_TOKEN": HF_TOKEN,
        "WANDB_API_KEY": WANDB_KEY,
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
        "MY_PASSWORD": "correct-horse-battery",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_SAVE_CODE", "true")
    monkeypatch.setattr(sys, "argv", ["run_clm.py", "--note", "argv-of-the-process"])
    monkeypatch.chdir(tmp_path)
    secrets = [*environment.values(), "argv-of-the-process", repository_with_a_token(tmp_path)]
    folder = train("run", *STEPS, "--report_to", "wandb", "tensorboard")
    (records,) = offline_runs(wandb_folder)
    files = [path for top in (folder, wandb_folder) for path in top.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"debug.log", "debug-internal.log", "requirements.txt", "config.yaml"} <= names
    assert not names & {"wandb-metadata.json", "output.log", "diff.patch"} and not {"code"} & {
        path.parent.name for path in files
    }
    printed = "".join(capfd.readouterr())
    assert "saved" in printed
    for secret in secrets:
        assert secret not in printed
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
    # What is recorded by itself and does no harm is still there.
    head = next(record.run for record in records if record.HasField("run"))
    assert head.host and head.telemetry.python_version
    assert not any(record.HasField("environment") or record.HasField("output_raw") for record in records)


def test_row_16_wandb_receives_the_arguments_and_no_folder(train, tmp_path, wandb_folder, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    folder = train("run", *STEPS, "--report_to", "wandb", "--sample_prompts", "a prompt")
    (records,) = offline_runs(wandb_folder)
    config = config_of(records)
    arguments = {field.name for field in dataclasses.fields(TrainArguments)}
    environment = json.loads((folder / "environment.json").read_text())
    others = set(config) - {"_wandb", "data_fingerprint"} - arguments - set(environment)
    assert others == {name for name in ENVIRONMENT if name in os.environ}
    assert config["config_overrides"] == {"n_layer": 2, "n_head": 2, "n_embd": 32}
    assert (config["seed"], config["optim"], config["block_size"]) == (42, "adamw", 32)
    assert (config["output_dir"], config["train_file"]) == ("run", ["text.txt"])
    assert str(tmp_path) not in json.dumps(config)


SECRETS = {
    HF_TOKEN: "set HF_TOKEN in the environment",
    WANDB_KEY: "set WANDB_API_KEY in the environment",
    "wandb_v1_" + "a1B2" * 10: "set WANDB_API_KEY in the environment",
    "ghp_" + "x9" * 18: "leave it out",
    "github_pat_" + "1a_" * 20: "leave it out",
    "sk-" + "Ab12" * 12: "leave it out",
    "sk-ant-" + "Ab1-" * 12: "leave it out",
    "AKIAIOSFODNN7EXAMPLE": "leave it out",
    "https://user:passw0rd@example.com/text.txt": "leave that out",
}


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: secret[:8])
def test_row_16_a_secret_on_the_command_line_or_in_a_preset_is_refused_and_not_shown(tmp_path, secret):
    preset = tmp_path / "preset.yaml"
    cases = [
        (["--run_name", secret], "--run_name on the command line"),
        ([f"--run-name={secret}"], "--run-name on the command line"),
        (["--train_file", "a.txt", secret], "--train_file on the command line"),
        (["--unheard_of", secret], "--unheard_of on the command line"),
        (["--token", secret], "--token on the command line"),
        ([secret], "a word on the command line"),
    ]
    if "/" not in secret:
        cases.append((["--block_size", secret], "--block_size on the command line"))
    for argv, where in cases:
        with pytest.raises(UsageError) as caught:
            parse_arguments(TrainArguments, argv, positional="preset", usage="")
        assert str(caught.value).startswith(where) and SECRETS[secret] in str(caught.value)
        assert secret not in str(caught.value)
    for line in (
        f"run_name: {secret}",
        f"train_file: [a.txt, '{secret}']",
        f"config_overrides: {{a: '{secret}'}}",
    ):
        preset.write_text(line)
        with pytest.raises(UsageError, match=rf"in preset .*{SECRETS[secret]}") as caught:
            parse_arguments(TrainArguments, [str(preset)], positional="preset", usage="")
        assert secret not in str(caught.value)
    with pytest.raises(UsageError, match="has the shape of") as caught:
        parse_arguments(GenerateArguments, [secret], positional="checkpoint", usage="")
    assert secret not in str(caught.value)
    if secret != WANDB_KEY:  # which could be any commit
        assert secret not in redacted(f"failed with {secret}: no")


@pytest.mark.parametrize(
    "argv",
    [
        ["--model_revision", "0123456789abcdef0123456789abcdef01234567"],
        ["--model_name_or_path", f"hub/models--a--b/snapshots/{WANDB_KEY}"],
        ["--sample_prompts", WANDB_KEY, "See http://user:name@host/ for"],
        ["--train_file", "data/sk-wikipedia-2023-articles-and-more.txt", "https://example.com:80/a@b.txt"],
        ["--run_name", "hf_finetune_of_a_small_model_for_poems", "--group", "task-force-hf-and-others"],
        ["--document_separator", "AKIA", "--project", "0123456789abcdef"],
    ],
    ids=lambda argv: argv[0],
)
def test_what_only_resembles_a_secret_passes(argv):
    parse_arguments(TrainArguments, argv, positional="preset", usage="")


def test_an_unmistakable_token_is_refused_in_a_prompt_too():
    with pytest.raises(UsageError, match="--sample_prompts on the command line has the shape of"):
        parse_arguments(
            TrainArguments, ["--sample_prompts", f"my token is {HF_TOKEN}"], positional="preset", usage=""
        )


def test_there_is_no_flag_for_a_secret():
    for cls in (TrainArguments, GenerateArguments):
        for field in dataclasses.fields(cls):
            assert not set(field.name.split("_")) & {"token", "key", "secret", "password", "credentials"}


def test_trackers_receive_names_of_the_hub_and_of_a_path_the_last_part(tmp_path):
    values = {
        "model_name_or_path": "owner/model",
        "tokenizer_name": str(tmp_path),
        "start_model": "../private/model/",
        "dataset_name": None,
        "config_overrides": {"n_layer": 2, "note": "a/b", "flag": True},
        "train_file": [
            "a.txt",
            "private/b.txt",
            "/private/c d/*.txt",
            "C:\\private\\e.txt",
            "https://host/private/f",
        ],
        "sample_prompts": ["To be / or not"],
        "seed": 1,
    }
    assert for_trackers(values) == {
        "model_name_or_path": "owner/model",
        "tokenizer_name": tmp_path.name,
        "start_model": "model",
        "dataset_name": None,
        "config_overrides": {"n_layer": 2, "note": "b", "flag": True},
        "train_file": ["a.txt", "b.txt", "*.txt", "e.txt", "f"],
        "sample_prompts": ["To be / or not"],
        "seed": 1,
    }


def test_no_argument_carries_a_folder_away():
    """Also of those that are added one day: what is no text of the model's is cut to its last part."""
    secret = "/home/somebody/private/place"
    for field in dataclasses.fields(TrainArguments):
        for value in (secret, [secret], {"key": secret}):
            if field.name not in (*TEXTS, *NO_PATHS):
                assert "private" not in json.dumps(for_trackers({field.name: value})[field.name]), field.name


def test_wandb_knows_our_settings():
    import wandb

    assert set(WANDB_SETTINGS) <= set(wandb.Settings.model_fields)
    assert 0 < WANDB_SETTINGS["finish_timeout"] <= 3600


# --- row 17: a tracker that fails


class FailingRun:
    """What wandb.init returns, where it does; raises in one of its methods."""

    def __init__(self, fails_in: str, error: BaseException):
        self.fails_in, self.error = fails_in, error
        self.config = self.summary = self

    def _act(self, name: str):
        if name == self.fails_in:
            raise self.error

    def update(self, *_, **__):
        self._act("config")

    def define_metric(self, *_, **__):
        self._act("define_metric")

    def log(self, *_, **__):
        self._act("log")

    def alert(self, *_, **__):
        self._act("alert")

    def finish(self, *_, **__):
        self._act("finish")


@pytest.fixture
def undisturbed(train):
    """(weights, losses) of a run without trackers."""
    folder = train("undisturbed", *STEPS)
    return (folder / "model.safetensors").read_bytes(), losses(folder)


def losses(folder: Path) -> list:
    rows = metrics(folder)
    return [{key: row[key] for key in row if key.startswith(("train/", "eval/"))} for row in rows]


@pytest.mark.parametrize(
    ("fails_in", "error"),
    [
        *(
            (place, "of the service")
            for place in ("init", "config", "define_metric", "log", "alert", "finish")
        ),
        ("log", "of its own"),
        ("init", "an exit"),
        ("finish", "an exit"),
    ],
)
def test_row_17_a_wandb_that_raises_changes_nothing_but_for_one_warning(
    train, undisturbed, monkeypatch, capsys, fails_in, error
):
    import wandb

    raised = {
        "of the service": wandb.errors.CommError(f"no answer\nto {HF_TOKEN}"),
        "of its own": TypeError("an error of wandb's own"),
        "an exit": SystemExit(1),
    }[error]

    def init(**options):
        if fails_in == "init":
            raise raised
        run = FailingRun(fails_in, raised)
        monkeypatch.setattr(wandb, "config", run)
        return run

    monkeypatch.setattr(wandb, "init", init)
    capsys.readouterr()
    folder = train("run", *STEPS, "--report_to", "wandb")
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line.lower()]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: wandb failed and is left out from here on: ")
    assert ((folder / "model.safetensors").read_bytes(), losses(folder)) == undisturbed
    assert HF_TOKEN not in warnings[0]


# --- downloads


@pytest.mark.parametrize(
    ("arguments", "offline"),
    [
        ({}, True),
        ({"dataset_name": "shakespeare"}, True),
        ({"model_name_or_path": str(ROOT)}, True),
        ({"model_name_or_path": "gpt2"}, False),
        ({"model_name_or_path": str(ROOT), "tokenizer_name": "gpt2"}, False),
        ({"config_name": "gpt2"}, False),
        ({"dataset_name": "somebody/dataset"}, False),
    ],
)
def test_the_hub_is_out_of_reach_unless_a_name_asks_for_it(monkeypatch, arguments, offline):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    stay_local(TrainArguments(**arguments))
    assert {os.environ[name] for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")} == {str(int(offline))}
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert not set(HUB_NAMES) - {
        f.name for c in (TrainArguments, GenerateArguments, StyleArguments) for f in dataclasses.fields(c)
    }


@pytest.mark.parametrize(
    ("arguments", "offline"),
    [
        (GenerateArguments(checkpoints=[str(ROOT)]), True),
        (GenerateArguments(checkpoints=[str(ROOT), "gpt2"]), False),
        (GenerateArguments(checkpoints=[str(ROOT)], base_model_name_or_path="gpt2"), False),
        (ExportArguments(paths=[str(ROOT), "a folder to be"]), True),
        (ExportArguments(paths=["gpt2", "out"]), False),
        (StyleArguments(start_model=str(ROOT)), True),
    ],
)
def test_the_other_commands_ask_the_hub_for_nothing_but_what_is_named(monkeypatch, arguments, offline):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    stay_local(arguments)
    assert os.environ["HF_HUB_OFFLINE"] == str(int(offline))


SPY = """
import os, socket
def spied(self, address, *rest):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        open(os.environ["SPY"], "a").write(f"connect {address}\\n")
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = spied
def resolved(host, *rest, **options):
    open(os.environ["SPY"], "a").write(f"resolve {host}\\n")
    raise OSError("no network in this test")
socket.getaddrinfo = resolved
"""


@pytest.mark.slow
def test_nothing_is_asked_of_the_network_where_all_names_are_local(command, model, tmp_path):
    spy = tmp_path / "spy"
    (spy / "sitecustomize.py").parent.mkdir()
    (spy / "sitecustomize.py").write_text(SPY)
    environment = {
        "PYTHONPATH": str(spy),
        "SPY": str(tmp_path / "asked"),
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
    }
    (tmp_path / "text.csv").write_text("text\n" + make_text(60).replace("\n", " ").replace(",", "") + "\n")
    flags = ("--train_file", "text.csv", "--validation_split_percentage", "20", "--mixed_precision", "no")
    for name, start in (("scratch", TINY), ("tuned", ("--model_name_or_path", str(model)))):
        result = command("run_clm.py", *flags, *start, *STEPS, "--output_dir", name, environment=environment)
        assert result.returncode == 0, result.stderr
        assert command("generate.py", name, environment=environment).returncode == 0
    assert not (tmp_path / "asked").exists(), (tmp_path / "asked").read_text()
    # The spy sees what there is to see.
    result = command("generate.py", "somebody/model", environment=environment)
    assert result.returncode == 2 and (tmp_path / "asked").exists()


# --- versions


@pytest.mark.parametrize(
    ("package", "vulnerable", "safe"),
    [
        ("torch", "2.5.1", "2.13.0"),  # CVE-2025-32434: weights_only=True could run code
        ("transformers", "5.2.0", "5.24.0"),  # CVE-2026-1839, CVE-2026-4372, CVE-2026-5241
        ("datasets", "3.6.0", "5.2.0"),  # ran the scripts of datasets
    ],
)
def test_versions_below_the_floor_are_refused_at_install(package, vulnerable, safe):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (required,) = [line for line in map(Requirement, project["dependencies"]) if line.name == package]
    assert not required.specifier.contains(vulnerable)
    assert required.specifier.contains(safe)
    assert package in (ROOT / "SECURITY.md").read_text()


def test_nothing_of_ours_trusts_or_unpickles():
    """One place each, so that a new one is looked at here."""
    code = {path: path.read_text() for path in (ROOT / "stylegen").rglob("*.py")}
    for path, text in code.items():
        text = text.replace("from pickle import UnpicklingError\n", "")  # the refusal itself
        if path.name == "trust.py":  # the reader that imports nothing
            assert set(re.findall(r"\bpickle\.\w+", text)) == {"pickle.Unpickler", "pickle.UnpicklingError"}
            text = text.replace("import pickle\n", "")
        loaders = r"^\s*(import|from) (pickle|dill|marshal|shelve)\b|allow_pickle=True"
        assert not re.search(loaders, text, re.M), path
        assert "trust_remote_code=True" not in text and "weights_only=False" not in text, path
        for call in re.findall(r"torch\.load\(.*", text):
            assert "weights_only=True" in call, path
        for call in re.findall(r"(?<!PeftModel)\.from_(?:pretrained|config)\((?:[^()]|\([^()]*\))*\)", text):
            assert "trust_remote_code=False" in call or "**options" in call, (path, call)
