"""States that `accelerator.save_state` wrote under DDP, FSDP2 and ZeRO, read by one process without a process group.

Those of one process, and files laid out by hand, are made in the tests; the others by this file under the launcher.
"""

import math
import os
import pickle
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import ACCELERATE, ROOT, make_text
from safetensors.torch import save_file
from test_export import CPU, IDS, SIZES, assert_same, logits
from test_security import FORMS, plant
from transformers import AutoModelForCausalLM

from stylegen.config import UsageError
from stylegen.config.commands import SourceArguments
from stylegen.export import export, find_model, load_for_writing
from stylegen.export.zero import MODEL, OPTIMIZER
from stylegen.loss import LanguageModelLoss
from stylegen.model import build_model, save_model, scratch_config
from stylegen.tokenizer import train_tokenizer


def make_model(folder: Path, model_type: str = "gpt2") -> Path:
    tokenizer = train_tokenizer("char", [[make_text(50)]], 0, None, "none")
    config = scratch_config(model_type, None, SIZES[model_type], block_size=32)
    save_model(build_model(config, tokenizer, dtype="float32", attn_implementation=None), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture
def model(gpt2, tmp_path) -> torch.nn.Module:
    """A model whose description, without weights, lies where the states of a test will lie: in `tmp_path`."""
    shutil.copytree(gpt2, tmp_path, ignore=shutil.ignore_patterns("model.safetensors"), dirs_exist_ok=True)
    return AutoModelForCausalLM.from_pretrained(gpt2)


def load(path: Path, **options) -> torch.nn.Module:
    return load_for_writing(str(path), SourceArguments(**options), CPU)[0]


def refused(path: Path, **options) -> str:
    with pytest.raises(UsageError) as error:
        load(path, **options)
    return str(error.value)


# --- DDP, and weights without their config.json


@pytest.fixture
def save_state(tmp_path):
    """`save_state(model)` has Accelerate write the state of a training of it; returns the folder."""

    def save(model: torch.nn.Module, safe: bool = True) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True)
        accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
        accelerator.save_state(str(tmp_path / "state"), safe_serialization=safe)
        return tmp_path / "state"

    return save


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("wrap", [False, True], ids=["plain", "in a module"])
def test_a_state_is_read_by_the_description_above_it(save_state, model, safe, wrap):
    folder = save_state(LanguageModelLoss(model) if wrap else model, safe)
    assert (folder / "random_states_0.pkl").is_file()
    for name in (folder, folder / ("model.safetensors" if safe else "pytorch_model.bin")):
        loaded = load(name)
        assert_same(loaded, model)
        assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_a_description_in_the_state_does_not_make_it_a_plain_model(save_state, model, gpt2, tmp_path):
    """Transformers would find none of the names, and fill the model with noise."""
    folder = save_state(LanguageModelLoss(model))
    for path in gpt2.glob("*.json"):
        shutil.copy(path, folder)
    assert_same(load(folder), model)


@pytest.mark.parametrize("lacking", ["config", "tokenizer"])
def test_a_state_that_nothing_describes_says_which_flag_does(save_state, model, gpt2, tmp_path, lacking):
    folder = save_state(model)
    for path in tmp_path.glob(f"{lacking}*.json"):
        path.unlink()
    error = refused(folder)
    what = "config.json" if lacking == "config" else "tokenizer"
    assert error.startswith(f"no {what} in {folder} or ") and error.endswith(f"of one with --{lacking}_name")
    assert_same(load(folder, **{f"{lacking}_name": str(gpt2)}), model)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.model.{name}",
        lambda name: name.replace(".h.0.", ".h.0._orig_mod."),
        lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
    ],
    ids=["DDP", "several", "compiled layers", "activation checkpointing"],
)
def test_names_of_a_wrapped_model_are_understood(tmp_path, model, rename):
    weights = {rename(name): tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(weights, tmp_path / "pytorch_model_fsdp.bin")
    assert_same(load(tmp_path), model)


def spoil(weights: dict[str, torch.Tensor], how: str) -> None:
    name = "transformer.h.1.ln_1.weight"
    if how == "missing":
        del weights[name]
    elif how == "shape":
        weights[name] = torch.ones(3)
    else:
        weights["transformer.h.2.ln_1.weight"] = torch.ones(32)


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("missing", "it lacks the tensor transformer.h.1.ln_1.weight"),
        ("shape", "its transformer.h.1.ln_1.weight is [3], but by its configuration [32]; "),
        (
            "more",
            "its transformer.h.2.ln_1.weight is [32], but by its configuration none of this architecture; ",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_architecture_are_named(tmp_path, model, how, error):
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spoil(weights, how)
    save_file(weights, tmp_path / "pytorch_model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model_fsdp.bin")
    assert f"no model in {tmp_path}: {error}" in refused(tmp_path)


def test_an_output_layer_that_was_no_longer_tied_stays_so(tmp_path, model):
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights["lm_head.weight"] += torch.rand_like(weights["lm_head.weight"])
    torch.save(weights, tmp_path / "pytorch_model_fsdp.bin")
    loaded = load(tmp_path)
    assert torch.equal(loaded.lm_head.weight, weights["lm_head.weight"])
    assert torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight)
    export(str(tmp_path), SourceArguments(), tmp_path / "out")
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), loaded)


def test_buffers_of_older_versions_are_passed_over(tmp_path, model):
    old = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32),
        "transformer.h.0.attn.masked_bias": torch.ones(1),
    }
    torch.save(model.state_dict() | old, tmp_path / "pytorch_model_fsdp.bin")
    assert_same(load(tmp_path), model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_get_the_type_that_was_asked_for_but_not_the_frequencies_of_positions(tmp_path, dtype):
    make_model(tmp_path / "llama", "llama")
    (tmp_path / "state").mkdir()
    shutil.copy(tmp_path / "llama" / "model.safetensors", tmp_path / "state")
    loaded = load(
        tmp_path / "state",
        dtype=dtype,
        config_name=str(tmp_path / "llama"),
        tokenizer_name=str(tmp_path / "llama"),
    )
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=getattr(torch, dtype))
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(logits(loaded), logits(plain))


# --- FSDP2


def write_sharded(model: torch.nn.Module, folder: Path) -> Path:
    """What Accelerate writes under FSDP with SHARDED_STATE_DICT, of one process."""
    path = folder / "pytorch_model_fsdp_0"
    writer = dcp.FileSystemWriter(path)
    dcp.save({"model": model.state_dict()}, storage_writer=writer, no_dist=True)
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_sharded_state_is_read_without_a_process_group(tmp_path, model):
    folder = write_sharded(model, tmp_path / "state")
    for name in (folder, folder.parent):
        assert_same(load(name), model)
    assert not torch.distributed.is_initialized()


@pytest.mark.filterwarnings("ignore")
def test_a_sharded_state_that_is_not_whole_says_what_is_missing(tmp_path, model):
    folder = write_sharded(model, tmp_path / "state")
    (shard,) = folder.glob("*.distcp")
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    assert refused(folder).startswith(f"{folder.parent} is damaged")
    shard.unlink()
    assert f"{shard}" in refused(folder)
    (folder / ".metadata").unlink()
    assert refused(folder) == (
        f"{folder} has no .metadata: it was not written to its end, use another checkpoint"
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", ["../secret.distcp", "/etc/passwd"])
def test_a_shard_out_of_the_folder_is_refused(tmp_path, model, place):
    folder = write_sharded(model, tmp_path / "state")
    (shard,) = folder.glob("*.distcp")
    shutil.copy(shard, folder.parent / "secret.distcp")
    content = pickle.loads((folder / ".metadata").read_bytes())
    for info in content.storage_data.values():
        info.relative_path = place
    (folder / ".metadata").write_bytes(pickle.dumps(content))
    assert "out of its folder" in refused(folder)


# --- ZeRO


def write_zero(
    model: torch.nn.Module, folder: Path, stage: int, world_size: int = 3, frozen: str = ""
) -> Path:
    """The files of DeepSpeed as far as weights go: two groups of parameters, padded as it pads them."""
    states = folder / "pytorch_model"
    states.mkdir(parents=True)
    parameters = {name: p.detach() for name, p in model.named_parameters() if name != frozen}
    names = sorted(parameters)
    groups = [names[::2], names[1::2]]
    shapes = [OrderedDict((name, parameters[name].shape) for name in group) for group in groups]
    still = {name: p.detach() for name, p in model.named_parameters() if name == frozen}
    ranks = [[] for _ in range(world_size)]
    for group in groups:
        if stage == 3:
            for rank, pieces in enumerate(ranks):
                pieces.append(torch.cat([cut(parameters[name], world_size)[rank] for name in group]))
        else:
            flat = torch.cat([torch.cat([parameters[name].flatten(), torch.zeros(3)]) for name in group])
            for pieces, piece in zip(ranks, cut(flat, world_size), strict=True):
                pieces.append(piece)
    for rank, pieces in enumerate(ranks):
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        optimizer = {key: pieces, "zero_stage": stage}
        if stage < 3:
            optimizer["param_alignment_paddings"] = [[3] * len(group) for group in groups]
        torch.save({"optimizer_state_dict": optimizer}, states / f"zero_pp_rank_{rank}_{OPTIMIZER}")
        fragments = {name: cut(p, world_size)[rank] if stage == 3 else p for name, p in still.items()}
        content = {
            "module": {}, "buffer_names": [], "param_shapes": shapes, "dp_world_size": world_size,
            "frozen_param_shapes": {name: p.shape for name, p in still.items()} or None,
            "frozen_param_fragments": fragments or None,
        }  # fmt: skip
        if stage == 3 or rank == 0:
            torch.save(content, states / (f"zero_pp_rank_{rank}_{MODEL}" if stage == 3 else MODEL))
    (folder / "latest").write_text("pytorch_model")
    return states


def cut(tensor: torch.Tensor, pieces: int) -> list[torch.Tensor]:
    """Equal flat pieces, the last one padded."""
    size = math.ceil(tensor.numel() / pieces)
    padded = torch.nn.functional.pad(tensor.flatten(), (0, size * pieces - tensor.numel()))
    return [piece.clone() for piece in padded.split(size)]


@pytest.mark.parametrize("frozen", ["", "transformer.h.0.mlp.c_fc.weight"], ids=["all trained", "one frozen"])
@pytest.mark.parametrize("stage", [2, 3])
def test_the_parts_of_zero_are_joined_without_deepspeed(tmp_path, model, stage, frozen, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    states = write_zero(model, tmp_path / "state", stage, frozen=frozen)
    for name in (states, states.parent, next(states.glob("*.pt"))):
        assert_same(load(name), model)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_state_of_zero_that_is_not_whole_says_what_is_missing(tmp_path, model, stage):
    states = write_zero(model, tmp_path / "state", stage)
    for path in [f"zero_pp_rank_1_{OPTIMIZER}"] + ([f"zero_pp_rank_2_{MODEL}"] if stage == 3 else []):
        (states / path).rename(tmp_path / "kept")
        assert refused(states) == f"{states / path} is missing; the checkpoint is not whole, use another one"
        (tmp_path / "kept").rename(states / path)
    (states.parent / "latest").unlink()
    for name in (states, states.parent):
        assert refused(name) == (
            f"{states.parent} has no file latest: DeepSpeed did not finish it, use another checkpoint"
        )


def test_what_latest_names_cannot_lead_out_of_the_state(tmp_path, model):
    states = write_zero(model, tmp_path / "state", 2)
    shutil.copytree(states, tmp_path / "elsewhere")
    (states.parent / "latest").write_text("../elsewhere")
    assert f"{states.parent / 'elsewhere'}" in refused(states.parent)


# --- hostile files


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "sharded", "zero2", "zero3"])
def test_a_pickle_planted_as_any_file_of_a_state_never_runs(tmp_path, model, kind, form):
    state, marker = tmp_path / "state", tmp_path / "marker"
    state.mkdir()
    if kind == "sharded":
        write_sharded(model, state)
    elif kind.startswith("zero"):
        write_zero(model, state, int(kind[-1]))
    else:
        name = "pytorch_model.bin" if kind == "ddp" else "pytorch_model_fsdp.bin"
        torch.save(model.state_dict(), state / name)
    used = [path for path in state.rglob("*") if path.is_file() and path.name != "latest"]
    for name in ("random_states_0.pkl", "optimizer.bin", "scheduler.bin", "custom_checkpoint_0.pkl"):
        plant(state / name, marker, form)
    assert_same(load(state), model)
    for path in used:
        content = path.read_bytes()
        plant(path, marker, form)
        assert str(state) in refused(state)
        path.write_bytes(content)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
def test_a_link_out_of_a_state_is_refused(tmp_path, model):
    folder = write_sharded(model, tmp_path / "state")
    states = write_zero(model, tmp_path / "zero", 3)
    for path in (folder / ".metadata", next(folder.glob("*.distcp")), next(states.glob("*optim*"))):
        path.rename(tmp_path / "outside")
        path.symlink_to(tmp_path / "outside")
        assert refused(path.parent) == (
            f"{path} is a link out of its folder, to {tmp_path / 'outside'}; put the file itself there"
        )
        path.unlink()
        (tmp_path / "outside").rename(path)


# --- two real processes


def launch_states(config: str, source: Path, out: Path, precision: str = "no") -> torch.Tensor:
    """Have two processes train `source` for a step and write its states into `out`; returns the logits they had."""
    command = [
        ACCELERATE,
        "launch",
        "--config_file",
        f"configs/accelerate/{config}.yaml",
        "--num_processes",
        "2",
    ]
    result = subprocess.run(
        [*command, __file__, str(source), str(out), precision], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(out / "logits.pt", weights_only=True)


def check_states(source: Path, out: Path, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    options = {"config_name": str(source), "tokenizer_name": str(source)}
    states = sorted(path for path in out.iterdir() if path.is_dir())
    assert states
    for state in states:
        loaded = load(state, **options)
        torch.testing.assert_close(logits(loaded), expected, rtol=tolerance, atol=tolerance)
        assert not torch.allclose(logits(loaded), logits(load(source)), atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", SIZES)
def test_states_of_fsdp_are_read(tmp_path, model_type):
    source = make_model(tmp_path / "source", model_type)
    expected = launch_states("fsdp", source, tmp_path / "out")
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["full", "logits.pt", "sharded"]
    check_states(source, tmp_path / "out", expected)


@pytest.mark.slow
def test_a_state_of_ddp_is_read(tmp_path, gpt2):
    expected = launch_states("ddp", gpt2, tmp_path / "out")
    check_states(gpt2, tmp_path / "out", expected)


@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_states_of_zero_are_read(tmp_path, gpt2, stage):
    expected = launch_states(f"zero{stage}", gpt2, tmp_path / "out")
    check_states(gpt2, tmp_path / "out", expected)
    found = find_model(str(tmp_path / "out" / "state"), SourceArguments())
    assert str(found) == f"state of DeepSpeed: {tmp_path / 'out' / 'state' / 'pytorch_model'}"


@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", [1, 3])
def test_the_fp32_weights_of_zero_in_bf16_are_read(tmp_path, gpt2, stage):
    expected = launch_states(f"zero{stage}", gpt2, tmp_path / "out", "bf16")
    check_states(gpt2, tmp_path / "out", expected, tolerance=0.05)
    weights = load(tmp_path / "out" / "state", config_name=str(gpt2), tokenizer_name=str(gpt2)).lm_head.weight
    assert not torch.equal(weights, weights.bfloat16().float())  # they were never rounded


def _write_states(source: str, out: str, precision: str) -> None:
    from stylegen.runtime import build_accelerator

    accelerator, folder = build_accelerator(precision), Path(out)
    kind = str(accelerator.distributed_type.value)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if kind == "DEEPSPEED":
        accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
    model, optimizer = accelerator.prepare(model, optimizer)
    ids = IDS + accelerator.process_index
    accelerator.backward(model(input_ids=ids, labels=ids).loss)
    optimizer.step()
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=IDS).logits.float()
    if accelerator.is_main_process:
        folder.mkdir(exist_ok=True)
        torch.save(expected.clone(), folder / "logits.pt")
    if kind == "FSDP":
        for name in ("sharded", "full"):
            accelerator.state.fsdp_plugin.set_state_dict_type(f"{name.upper()}_STATE_DICT")
            accelerator.save_state(str(folder / name))
    else:
        accelerator.save_state(str(folder / "state"))
    accelerator.wait_for_everyone()
    os._exit(0)


if __name__ == "__main__":
    _write_states(*sys.argv[1:])
