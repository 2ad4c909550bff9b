"""Checkpoints: complete or not there at all, never trusted when damaged, and bit-equal when loaded."""

import hashlib
import json
import logging
import os
import pickle
import random
import re
import shutil
import threading
import types
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import make_text
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stylegen.checkpoint import (
    Saver,
    check_room,
    find_damage,
    leave_behind,
    list_checkpoints,
    load,
    load_training_state,
    manifest,
    newest_checkpoint,
    read_manifest,
    recover_folders,
)
from stylegen.config import UsageError
from stylegen.model import build_model, load_model, parameter_groups, save_model, scratch_config
from stylegen.optim import build_optimizer
from stylegen.runtime import build_accelerator
from stylegen.tokenizer import train_tokenizer

OPTIMIZER = "optimizer-00001-of-00001.safetensors"
FILES = [
    "config.json",
    "generation_config.json",
    "manifest.json",
    "model.safetensors",
    OPTIMIZER,
    "random-00000.pt",
    "tokenizer.json",
    "tokenizer_config.json",
]
STATE = {"step": 4, "tokens_seen": 1234, "loss_sum": 0.1 + 0.2, "best_loss": None, "finished": False}
VALUES = {"state": STATE, "fingerprints": {"text": "0"}, "arguments": {}}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("char", [[make_text(50)]], 0, None, "none")


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    return build_accelerator("no")


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(2)
    config = scratch_config("gpt2", None, {"n_layer": 1, "n_head": 1, "n_embd": 8}, block_size=16)
    return build_model(config, tokenizer, dtype="float32", attn_implementation=None)


@pytest.fixture
def save(tmp_path, model, tokenizer, accelerator):
    """`save(step)` writes a checkpoint of a tiny model into the run directory `tmp_path / "run"`."""

    def write(
        step: int, keep: int | None = None, write_model=None, optimizer=None, in_background: bool = True
    ) -> Path:
        saver = Saver(tmp_path / "run", accelerator, keep, in_background=in_background)
        saver.begin(
            step, VALUES, model, optimizer or an_optimizer(model),
            write_model or (lambda folder, weights: save_model(model, tokenizer, folder, weights)),
        )  # fmt: skip
        if error := saver.finish():
            raise OSError(error)
        return tmp_path / "run" / f"checkpoint-{step:06d}"

    return write


@pytest.fixture
def warnings(caplog, monkeypatch):
    """The warnings, also after a command has taken the logger over."""
    logger = logging.getLogger("stylegen")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    caplog.handler.setLevel(logging.WARNING)
    yield caplog
    logger.removeHandler(caplog.handler)


def an_optimizer(model, name: str = "adamw"):
    return build_optimizer(name, parameter_groups(model, 0.1), 1e-2, (0.9, 0.99), 1e-8)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def make_newer(checkpoint: Path) -> None:
    """Change a manifest into that of a later version."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | {"format": 4}, indent=1))


# --- what is written


def test_a_checkpoint_is_exactly_these_files_each_with_its_hash_in_the_manifest(save):
    path = save(4)
    assert path.name == "checkpoint-000004"
    assert names(path.parent) == ["checkpoint-000004"]
    assert names(path) == FILES
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["format"] == 3
    assert manifest | VALUES == manifest
    assert sorted([*manifest["files"], "manifest.json"]) == FILES
    for name, recorded in manifest["files"].items():
        content = (path / name).read_bytes()
        assert recorded == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert read_manifest(path) == manifest
    assert find_damage(path) is None


def test_a_checkpoint_is_a_plain_transformers_folder(save, model, tokenizer):
    path = save(4)
    loaded = AutoModelForCausalLM.from_pretrained(path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert AutoTokenizer.from_pretrained(path)("the king")["input_ids"] == tokenizer("the king")["input_ids"]


def test_a_training_writes_the_checkpoints_that_were_asked_for(train):
    folder = train("run", "--max_train_steps", "5", "--checkpointing_steps", "2", "--sample_steps", "end")
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-000004", "checkpoint-000005"]
    assert [names(path) for path in list_checkpoints(folder)] == [FILES, FILES]
    assert [read_manifest(path)["state"]["finished"] for path in list_checkpoints(folder)] == [False, True]


def test_everything_is_on_disk_before_the_name_appears(save, monkeypatch):
    events: list[str] = []
    rename = os.rename
    monkeypatch.setattr(manifest, "sync", lambda path, **options: events.append(path.name))
    monkeypatch.setattr(os, "rename", lambda old, new: (events.append("rename"), rename(old, new)))
    save(4)
    assert events[-4:] == ["manifest.json", "checkpoint-000004.tmp", "rename", "run"]
    assert sorted(set(events[:-3])) == FILES


# --- complete or not there


def fail(*_, **__):
    raise OSError(28, "No space left on device")


FAILING = [
    "stylegen.checkpoint.save.save_file",
    "os.rename",
    "stylegen.checkpoint.manifest.settle_file",
    "write_model",
]


@pytest.mark.parametrize("where", FAILING)
def test_a_save_that_fails_leaves_no_checkpoint_and_the_older_one_whole(save, tmp_path, monkeypatch, where):
    older = save(2)
    with monkeypatch.context() as patch:
        if where != "write_model":
            patch.setattr(where, fail)
        with pytest.raises(OSError, match="No space left"):
            save(4, keep=1, write_model=fail if where == "write_model" else None)
    assert not (tmp_path / "run" / "checkpoint-000004").exists()
    assert list_checkpoints(tmp_path / "run") == [older]
    assert newest_checkpoint(tmp_path / "run") == older
    save(4, keep=1)  # what the failed one left does not stand in the way
    assert names(tmp_path / "run") == ["checkpoint-000004"]
    assert find_damage(tmp_path / "run" / "checkpoint-000004") is None


def test_the_same_step_again_replaces_its_checkpoint(save, tmp_path):
    path = save(4)
    flip_bit(path / "model.safetensors", 200)
    assert save(4) == path
    assert names(tmp_path / "run") == ["checkpoint-000004"]
    assert find_damage(path) is None


# --- which are kept


@pytest.mark.parametrize(("keep", "left"), [(None, [1, 2, 3, 4]), (1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_the_newest_are_kept(save, tmp_path, keep, left):
    for step in (1, 2, 3, 4):
        save(step, keep=keep)
    assert names(tmp_path / "run") == [f"checkpoint-{step:06d}" for step in left]


def test_steps_are_ordered_as_numbers(save, tmp_path):
    """A seventh digit sorts before a sixth one as text."""
    for step in (999_999, 1_000_000):
        save(step)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == [
        "checkpoint-999999",
        "checkpoint-1000000",
    ]
    save(1_000_001, keep=2)
    assert names(tmp_path / "run") == ["checkpoint-1000000", "checkpoint-1000001"]


def test_rotation_never_deletes_the_checkpoint_just_written(save, tmp_path):
    """A run that fell back from a damaged checkpoint writes smaller steps again; those are the good ones."""
    for step in (2, 4):
        save(step)
    flip_bit(tmp_path / "run" / "checkpoint-000004" / "model.safetensors", 200)
    assert newest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-000002"
    path = save(3, keep=1)
    assert find_damage(path) is None
    assert newest_checkpoint(tmp_path / "run") == path


def test_anything_else_that_lies_there_is_ignored_and_left(save, tmp_path):
    run_dir = tmp_path / "run"
    path = save(4)
    for stray in (
        "checkpoint-foo",
        "checkpoint-foo.tmp",
        "checkpoint-",
        "checkpoint-5-old",
        "old-checkpoint-000005",
    ):
        shutil.copytree(path, run_dir / stray)
    (run_dir / "checkpoint-000098").mkdir()  # a name without a manifest
    (run_dir / "checkpoint-000099").write_text("a file of this name")
    before = names(run_dir)
    assert list_checkpoints(run_dir) == [path]
    assert newest_checkpoint(run_dir) == path
    newer = save(5, keep=1)
    assert list_checkpoints(run_dir) == [newer]
    assert names(run_dir) == sorted({*before, newer.name} - {path.name})


# --- damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_middle(path: Path) -> None:
    flip_bit(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    "damage", [truncate, empty, flip_middle, Path.unlink], ids=lambda made: made.__name__
)
@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_a_checkpoint_with_a_damaged_file_is_passed_over_and_the_file_named(
    save, tmp_path, warnings, name, damage
):
    older, newer = save(2), save(4)
    damage(newer / name)
    problem = "is missing" if damage is Path.unlink else "is not as it was written (size or sha256 differ)"
    assert find_damage(newer) == f"{name} {problem}"
    assert newest_checkpoint(tmp_path / "run") == older
    assert warnings.messages == [f"warning: {newer} is passed over: {name} {problem}"]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", "null", '"text"', '{"format": 3}', '{"format": "3", "files": {}}', "\x00"],
)
def test_a_checkpoint_with_an_unreadable_manifest_is_passed_over_and_named(save, tmp_path, warnings, content):
    older, newer = save(2), save(4)
    (newer / "manifest.json").write_text(content)
    assert newest_checkpoint(tmp_path / "run") == older
    (message,) = warnings.messages
    assert message.startswith(f"warning: {newer} is passed over: ") and "manifest.json" in message


def test_one_flipped_bit_anywhere_in_the_manifest_is_noticed(save, tmp_path, warnings):
    """The state in it is as much a part of the training as the weights: a step, a loss, a key that changed its name."""
    older, newer = save(2), save(4)
    manifest = newer / "manifest.json"
    original, unnoticed = manifest.read_bytes(), []
    for offset in range(0, len(original), 11):
        flip_bit(manifest, offset, bit=offset % 7)
        try:
            if newest_checkpoint(tmp_path / "run") != older:
                unnoticed.append(original[max(offset - 10, 0) : offset + 10])
        except Exception as error:
            unnoticed.append(error)
        manifest.write_bytes(original)
    assert unnoticed == []


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(save, tmp_path, warnings):
    for step in (2, 4):
        truncate(save(step) / "model.safetensors")
    with pytest.raises(UsageError) as error:
        newest_checkpoint(tmp_path / "run")
    assert str(error.value) == (
        f"every checkpoint in {tmp_path / 'run'} is damaged; restore one, or give --overwrite_output_dir "
        f"to start afresh"
    )
    assert len(warnings.messages) == 2


def test_a_folder_without_checkpoints_has_no_newest_one(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    message = f"{tmp_path} is not a checkpoint of a run: it has no readable manifest.json"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        read_manifest(tmp_path)
    assert find_damage(tmp_path) == message


def test_a_newer_format_is_refused(save):
    path = save(4)
    make_newer(path)
    message = (
        f"{path} has format 4, this version reads format 3; update stylegen, or start afresh with "
        f"--overwrite_output_dir"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        read_manifest(path)
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        find_damage(path)


def test_a_newer_format_is_not_called_damage_and_not_to_be_overwritten(save, tmp_path):
    make_newer(save(4))
    with pytest.raises(UsageError, match="has format 4, this version reads format 3; update stylegen"):
        newest_checkpoint(tmp_path / "run")


def test_a_damaged_checkpoint_is_not_resumed_from_even_when_named(train, capsys):
    flags = ("--max_train_steps", "2", "--sample_steps", "end")
    folder = train("run", *flags)
    flip_middle(folder / "checkpoint-000002" / OPTIMIZER)
    capsys.readouterr()
    train("run", "--resume_from_checkpoint", str(folder / "checkpoint-000002"), *flags, code=2)
    assert f"cannot be used: {OPTIMIZER} is not as it was written" in capsys.readouterr().err


# --- hostile files


def plant(path: Path, program: bytes, into: str) -> None:
    """Put a pickle in place of a file, bare or inside the archive that torch wrote."""
    if into == "bare pickle":
        path.write_bytes(program)
        return
    if path.suffix == ".safetensors":
        torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        content = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, program if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("into", ["bare pickle", "torch archive"])
@pytest.mark.parametrize("name", [OPTIMIZER, "random-00000.pt"])
def test_a_planted_pickle_is_refused_and_does_not_run(save, tmp_path, accelerator, model, name, into):
    target = tmp_path / "planted"
    program = f"cos\nmkdir\n(V{target}\ntR.".encode()
    pickle.loads(program)
    target.rmdir()  # it runs where it is let: the plant is alive
    path = save(4)
    plant(path / name, program, into)  # and whoever plants a file can write its hash into the manifest
    with pytest.raises(UsageError, match=f"{name} is not what a run writes; go on from another checkpoint"):
        load_training_state(path, accelerator, model, an_optimizer(model), seed=0)
    assert not target.exists()


# --- what is restored


def draws() -> list:
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(3).tolist(),
        np.random.normal(),
        torch.rand(3).tolist(),
    ]


def train_some(model, optimizer, steps: int) -> None:
    """A few steps with dropout, which draws from torch's generator."""
    model.train()
    for _ in range(steps):
        ids = torch.randint(len(model.transformer.wte.weight), (2, 16))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def tensors(state) -> list[torch.Tensor]:
    """Every tensor and number in a state dict, in order."""
    if isinstance(state, dict | list | tuple):
        values = [state[key] for key in sorted(state)] if isinstance(state, dict) else state
        return [tensor for value in values for tensor in tensors(value)]
    return [] if isinstance(state, str | None) else [torch.as_tensor(state)]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_training_goes_on_bit_equal_from_what_is_loaded(save, accelerator, model, name):
    optimizer = accelerator.prepare(an_optimizer(model, name))
    train_some(model, optimizer, 3)
    draws()  # leaves a second Gaussian in the generators of Python and numpy
    path = save(3, optimizer=optimizer)
    train_some(model, optimizer, 3)
    expected = draws()

    loaded = load_model(str(path), revision=None, dtype="float32", attn_implementation=None)
    again = accelerator.prepare(an_optimizer(loaded, name))
    load_training_state(path, accelerator, loaded, again, seed=0)
    train_some(loaded, again, 3)
    assert draws() == expected
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    states, again_states = tensors(optimizer.state_dict()), tensors(again.state_dict())
    assert len(states) > 20
    assert all(torch.equal(one, other) for one, other in zip(states, again_states, strict=True))


def test_the_loss_scale_of_fp16_is_restored(save, accelerator, model):
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1234.0)
    path = save(4)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    load_training_state(path, accelerator, model, an_optimizer(model), seed=0)
    assert accelerator.scaler.get_scale() == 1234.0


def test_a_rank_that_the_saved_run_did_not_have_draws_by_seed_step_and_number(
    save, accelerator, model, monkeypatch
):
    path = save(4)
    (path / "random-00000.pt").unlink()
    drawn = []
    ours = read_manifest(path)
    monkeypatch.setattr(load, "read_manifest", lambda path: ours | {"world_size": 0})
    for seed in (0, 0, 1):
        load_training_state(path, accelerator, model, an_optimizer(model), seed)
        drawn.append(draws())
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_checkpoint_of_an_older_format_is_named(save, tmp_path):
    path = save(4)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": 2}, indent=1))
    with pytest.raises(UsageError, match="has format 2, this version reads format 3; go on with the version"):
        newest_checkpoint(tmp_path / "run")


def test_random_generators_of_a_rank_that_are_not_there_are_missed(save, accelerator, model):
    """Without a shared disk, a rank that starts on another machine than before does not find them."""
    path = save(4)
    (path / "random-00000.pt").unlink()
    with pytest.raises(UsageError, match=r"random-00000.pt is missing, .* start rank 0 on the machine"):
        load_training_state(path, accelerator, model, an_optimizer(model), seed=0)


def test_the_clock_does_not_matter(save, tmp_path):
    for step in (2, 4, 6):
        os.utime(save(step), (2e9 - step, 2e9 - step))  # the later, the older
    assert newest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-000006"
    save(8, keep=2)
    assert names(tmp_path / "run") == ["checkpoint-000006", "checkpoint-000008"]


def test_a_file_that_cannot_be_read_is_damage(save, tmp_path, warnings, monkeypatch):
    older, newer = save(2), save(4)
    describe = manifest.describe_file

    def describe_file(path):
        if path == newer / "model.safetensors":
            raise OSError(5, "Input/output error")
        return describe(path)

    monkeypatch.setattr(manifest, "describe_file", describe_file)
    assert newest_checkpoint(tmp_path / "run") == older
    assert warnings.messages[0].endswith("model.safetensors cannot be read (Input/output error)")


def test_a_save_that_could_not_begin_is_never_committed(save, tmp_path, monkeypatch, accelerator, model):
    """An error while the state is copied ends the training, and what it does then must not make a checkpoint of it."""
    older = save(2, keep=1)
    saver = Saver(tmp_path / "run", accelerator, keep=1, in_background=True)
    with monkeypatch.context() as patch:
        patch.setattr("stylegen.checkpoint.save.collected_weights", fail)
        with pytest.raises(OSError, match="No space left"):
            saver.begin(4, VALUES, model, an_optimizer(model), lambda folder, weights: None)
    assert saver.finish() is None
    assert list_checkpoints(tmp_path / "run") == [older]


def test_a_failing_training_commits_what_is_under_way_and_deletes_nothing(save, tmp_path, accelerator, model):
    older = save(2, keep=1)
    saver = Saver(tmp_path / "run", accelerator, keep=1, in_background=True)
    saver.begin(4, VALUES, model, an_optimizer(model), lambda folder, weights: None)
    assert saver.finish(rotating=False) is None
    assert list_checkpoints(tmp_path / "run") == [older, tmp_path / "run" / "checkpoint-000004"]


def test_checkpoints_of_a_past_that_was_left_go_with_the_next_save(save, tmp_path):
    for step in (10, 20, 30):
        save(step)
    save(25, keep=5)
    assert names(tmp_path / "run") == ["checkpoint-000010", "checkpoint-000020", "checkpoint-000025"]
    leave_behind(tmp_path / "run", tmp_path / "run" / "checkpoint-000010")
    assert list_checkpoints(tmp_path / "run") == [tmp_path / "run" / "checkpoint-000010"]
    save(15, keep=5)
    assert names(tmp_path / "run") == ["checkpoint-000010", "checkpoint-000015"]


def test_a_file_in_a_folder_of_the_model_is_part_of_the_checkpoint(save, model, tokenizer):
    """As transformers writes the templates of a tokenizer that has several."""

    def write(folder: Path, weights) -> None:
        save_model(model, tokenizer, folder, weights)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates/poem.jinja").write_text("{{ text }}")

    path = save(4, write_model=write)
    assert "additional_chat_templates/poem.jinja" in read_manifest(path)["files"]
    assert find_damage(path) is None
    (path / "additional_chat_templates/poem.jinja").write_text("")
    assert "poem.jinja is not as it was written" in (find_damage(path) or "")


def test_the_folder_of_before_is_back_if_its_successor_gets_no_name(save, tmp_path, monkeypatch):
    path = save(4)
    rename = os.rename

    def fail_once(old, new):
        if str(old).endswith(".tmp"):
            fail()
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail_once)
        with pytest.raises(OSError, match="No space left"):
            save(4)
    assert find_damage(path) is None


@pytest.mark.parametrize("has_successor", [False, True])
def test_a_kill_between_two_names_loses_neither(save, tmp_path, has_successor):
    path = save(4)
    if has_successor:
        shutil.copytree(path, path.with_name("checkpoint-000004.old"))
    else:
        path.rename(path.with_name("checkpoint-000004.old"))
    recover_folders(tmp_path / "run")
    assert names(tmp_path / "run") == ["checkpoint-000004"] and find_damage(path) is None


def test_what_is_saved_is_the_state_of_its_step_whatever_the_training_does_meanwhile(
    tmp_path, accelerator, model, tokenizer, monkeypatch
):
    optimizer = an_optimizer(model)
    train_some(model, optimizer, 2)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
    goes_on, write = threading.Event(), save_file

    def slow(*values):
        assert goes_on.wait(30)
        write(*values)

    monkeypatch.setattr("stylegen.checkpoint.save.save_file", slow)
    saver = Saver(tmp_path / "run", accelerator, in_background=True)
    write_model = partial(save_model, model, tokenizer)
    saver.begin(2, VALUES, model, optimizer, write_model)
    assert not saver.is_ready()
    train_some(model, optimizer, 3)
    goes_on.set()
    assert saver.finish() is None
    loaded = load_model(str(tmp_path / "run/checkpoint-000002"), dtype="float32")
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in weights.items())
    again = accelerator.prepare(an_optimizer(loaded))
    load_training_state(tmp_path / "run/checkpoint-000002", accelerator, loaded, again, seed=0)
    kept = [state["exp_avg"] for state in again.optimizer.state.values()]
    assert all(torch.equal(one, other) for one, other in zip(kept, moments, strict=True))


# --- before the first step


def nothing(folder: Path) -> None:
    """The small files of a model, where they do not matter."""


@pytest.mark.parametrize(("kept", "fits"), [(2, True), (3, False)])
def test_a_disk_without_room_for_what_will_be_kept_is_refused(tmp_path, accelerator, monkeypatch, kept, fits):
    """Of 10 MB, `kept` checkpoints of 3 MB, and the best model of 1 MB with its successor."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10 << 20))
    check = partial(check_room, tmp_path / "run", accelerator, 3 << 20, 1 << 20, kept, False, nothing)
    if fits:
        check()
    else:
        with pytest.raises(
            UsageError, match=r"take 11.0 MB at a time, 10.0 MB are free; .*--save_total_limit"
        ):
            check()
        (tmp_path / "run/checkpoint-000001").mkdir(parents=True)  # of a run that goes on: it will make room
        (tmp_path / "run/checkpoint-000001/model.safetensors").write_bytes(bytes(3 << 20))
        check()
    assert not (tmp_path / "run/checkpoint-trial.tmp").exists()


def test_a_tokenizer_that_cannot_be_written_is_found_before_the_first_step(tmp_path, accelerator):
    """The library in Rust says so with an exception of its own."""

    def write_small(folder: Path) -> None:
        raise Exception("No space left on device (os error 28)")

    with pytest.raises(UsageError, match=r"run cannot be used: No space left on device \(os error 28\)"):
        check_room(tmp_path / "run", accelerator, 1, 1, 1, False, write_small)


def test_there_is_no_copy_without_the_memory_for_it(tmp_path, accelerator, model, monkeypatch, caplog):
    monkeypatch.setattr("stylegen.checkpoint.save.free_memory_bytes", lambda: 199)
    seen = []
    for size, has_copy in ((100, False), (99, True)):
        saver = Saver(tmp_path / "run", accelerator, in_background=True, size=size)
        saver.begin(4, VALUES, model, an_optimizer(model), lambda folder, weights: seen.append(weights))
        assert saver.finish() is None
        assert (seen[-1] is not None) == has_copy
