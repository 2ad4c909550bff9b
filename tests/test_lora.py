"""LoRA: an adapter trained beside a frozen model, against plain PEFT, through stops, and on every topology."""

import json
import shutil

import pytest
import torch
from conftest import evaluations, make_text, metrics, training_losses
from safetensors.torch import load_file, save_file
from test_invariants import stopped_after
from transformers import AutoModelForCausalLM, AutoTokenizer

from stylegen.config import UsageError, check_arguments, parse_arguments
from stylegen.config.fields import TrainArguments

peft = pytest.importorskip("peft")

STEPS = ("--logging_steps", "1", "--eval_steps", "2", "--checkpointing_steps", "3")
BATCH = ("--per_device_train_batch_size", "8", "--max_train_samples", "21", "--block_size", "32")
LORA = ("--lora_r", "4", "--learning_rate", "1e-2")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model to adapt, with random weights and no dropout."""
    from stylegen.model import build_model, save_model, scratch_config
    from stylegen.tokenizer import train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer("char", [[make_text(50)]], 0, None, "none")
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = scratch_config("gpt2", None, {"n_layer": 2, "n_head": 2, "n_embd": 32, **off}, block_size=32)
    folder = tmp_path_factory.mktemp("base") / "tiny"
    save_model(build_model(config, tokenizer, dtype="float32", attn_implementation=None), tokenizer, folder)
    return folder


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def assert_same_adapter(first, second):
    one, two = adapter(first), adapter(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def plain_loss(model, text: str, tokenizer, block_size: int) -> float:
    """Mean loss over the blocks of a text, with nothing of ours."""
    ids = tokenizer(text)["input_ids"]
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, block_size):
        targets = torch.tensor(ids[start + 1 : start + block_size + 1])
        with torch.no_grad():
            logits = model(torch.tensor([ids[start : start + block_size]])).logits[0, : len(targets)]
        total += torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum").item()
        count += len(targets)
    return total / count


@pytest.mark.parametrize("stop", [3, 4])
def test_six_steps_are_some_and_the_rest_after_a_stop(train, base, monkeypatch, stop):
    flags = (
        "--model_name_or_path",
        str(base),
        *STEPS,
        *BATCH,
        *LORA,
        "--lora_dropout",
        "0.1",
        "--max_train_steps",
        "6",
    )
    whole = train("whole", *flags, tiny=False)
    with monkeypatch.context() as patch:
        stopped_after(stop, patch)
        parts = train("parts", *flags, tiny=False)
    train("parts", *flags, tiny=False)
    assert training_losses(whole) == training_losses(parts)
    assert evaluations(whole) == evaluations(parts)
    assert_same_adapter(whole, parts)


def test_it_begins_as_the_pretrained_model_and_plain_peft_reads_what_it_ends_with(
    train, base, text_file, tmp_path
):
    validation = tmp_path / "validation.txt"
    validation.write_text(text_file.read_text()[:2000])
    flags = ("--model_name_or_path", str(base), *STEPS, *BATCH, *LORA, "--validation_file", str(validation))
    folder = train("tuned", *flags, "--max_train_steps", "8", tiny=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first, best = evaluations(folder)[0], min(row["eval/loss"] for row in evaluations(folder))
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    assert first["eval/loss"] == pytest.approx(
        plain_loss(plain, validation.read_text(), tokenizer, 32), rel=1e-6
    )
    tuned = peft.AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    assert best < first["eval/loss"]
    assert plain_loss(tuned, validation.read_text(), tokenizer, 32) == pytest.approx(best, rel=1e-5)
    assert not (folder / "config.json").exists() and not (folder / "model.safetensors").exists()


def test_steps_equal_a_loop_of_plain_peft(train, base, text_file):
    flags = ("--model_name_or_path", str(base), *STEPS, *BATCH, *LORA, "--lr_scheduler_type", "constant")
    ours = train("ours", *flags, "--max_train_steps", "3", tiny=False)
    start = train("start", *flags, "--max_train_steps", "0", tiny=False)
    from stylegen.blocks import step_indices

    config = json.loads((ours / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    model = peft.AutoPeftModelForCausalLM.from_pretrained(start, is_trainable=True).train()
    caches = [
        path for path in (ours.parent / "cache" / "stylegen").iterdir() if (path / "train.bin").exists()
    ]
    cache = max(caches, key=lambda path: path.stat().st_mtime)
    ids = torch.frombuffer(bytearray((cache / "train.bin").read_bytes()), dtype=torch.int16).long()[1:-1]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    losses = []
    for step in range(3):
        blocks = step_indices(42, *divmod(step, 3), 21, 8)
        inputs = torch.stack([ids[int(b) * 32 : int(b) * 32 + 32] for b in blocks])
        targets = torch.stack([ids[int(b) * 32 + 1 : int(b) * 32 + 33] for b in blocks])
        loss = torch.nn.functional.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert [row["train/loss"] for row in metrics(ours) if "train/loss" in row] == pytest.approx(
        losses, rel=1e-5
    )


def test_a_checkpoint_keeps_the_adapter_alone(train, base):
    flags = ("--model_name_or_path", str(base), *STEPS, *BATCH, *LORA, "--max_train_steps", "3")
    folder = train("tuned", *flags, "--lora_target_modules", "c_attn", tiny=False)
    names = {path.name for path in (folder / "checkpoint-000003").iterdir()}
    assert "adapter_model.safetensors" in names and "model.safetensors" not in names
    weights = adapter(folder / "checkpoint-000003")
    assert len(weights) == 4 and all("c_attn.lora_" in name for name in weights)


def test_merged_at_the_end_it_is_a_plain_model_and_the_run_can_go_on(train, base):
    flags = ("--model_name_or_path", str(base), *STEPS, *BATCH, *LORA, "--lr_scheduler_type", "constant")
    apart = train("apart", *flags, "--max_train_steps", "4", tiny=False)
    merged = train("merged", *flags, "--max_train_steps", "4", "--merge_lora", tiny=False)
    assert not (merged / "adapter_config.json").exists()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        one = AutoModelForCausalLM.from_pretrained(merged).eval()(ids).logits
        two = peft.AutoPeftModelForCausalLM.from_pretrained(apart).eval()(ids).logits
        before = AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
    assert torch.allclose(one, two, rtol=1e-5, atol=1e-5) and not torch.allclose(one, before, atol=1e-3)
    train("merged", *flags, "--max_train_steps", "6", tiny=False)  # now without merging
    whole = train("whole", *flags, "--max_train_steps", "6", tiny=False)
    assert_same_adapter(merged, whole)
    assert not (merged / "config.json").exists() and not (merged / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    ["ddp", "fsdp", *(pytest.param(each, marks=pytest.mark.deepspeed) for each in ("zero2", "zero3"))],
)
def test_two_processes_give_the_losses_of_one(train, base, launch, text_file, tmp_path, config):
    tuning = (
        "--model_name_or_path",
        str(base),
        *STEPS,
        "--max_train_samples",
        "21",
        *LORA,
        "--max_train_steps",
        "6",
    )
    one = train("one", *tuning, "--block_size", "32", "--total_batch_size", "8", "--per_device_train_batch_size", "2",
                tiny=False)  # fmt: skip
    code, _, log = launch(
        config, *tuning, "--total_batch_size", "8", "--per_device_train_batch_size", "2",
        "--output_dir", str(tmp_path / "two"), "--style_steps", "never", tiny=False,
    )  # fmt: skip
    assert code == 0, log
    two = tmp_path / "two"
    assert training_losses(two) == pytest.approx(training_losses(one), rel=1e-6)
    rows = zip(evaluations(one), evaluations(two), strict=True)
    assert all(second["eval/loss"] == pytest.approx(first["eval/loss"], rel=1e-6) for first, second in rows)
    first, second = adapter(one), adapter(two)
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--lora_alpha", "8"), "lora_alpha is for LoRA; give its rank with --lora_r"),
        (("--merge_lora",), "merge_lora is for LoRA"),
        (("--lora_r", "4"), "give that with --model_name_or_path"),
        (("--lora_r", "0", "--model_name_or_path", "x"), "lora_r is 0, but must be at least 1"),
        (("--lora_r", "4", "--model_name_or_path", "x", "--lora_dropout", "1"), "lora_dropout is 1.0"),
    ],
)
def test_flags_that_cannot_work_are_refused(flags, words):
    arguments = parse_arguments(
        TrainArguments, ["--train_file", "t.txt", *flags], positional="preset", usage=""
    )
    with pytest.raises(UsageError, match=words):
        check_arguments(arguments)


def test_another_base_model_under_the_same_name_is_refused(train, base, tmp_path, capsys):
    mine = tmp_path / "mine"
    shutil.copytree(base, mine)
    flags = ("--model_name_or_path", str(mine), *BATCH, *LORA, "--lr_scheduler_type", "constant")
    train("run", *flags, "--max_train_steps", "2", tiny=False)
    weights = load_file(mine / "model.safetensors")
    save_file(
        {name: 2 * value for name, value in weights.items()}, mine / "model.safetensors", {"format": "pt"}
    )
    train("run", *flags, "--max_train_steps", "4", tiny=False, code=2)
    assert "the base model is not that of" in capsys.readouterr().err


def test_a_finished_adapter_is_merged_when_that_is_asked_for_later(train, base):
    flags = ("--model_name_or_path", str(base), *BATCH, *LORA, "--max_train_steps", "2")
    folder = train("run", *flags, tiny=False)
    (folder / "model_notes").mkdir()
    (folder / "adapter_notes.txt").write_text("mine")
    train("run", *flags, "--merge_lora", tiny=False)
    assert (folder / "config.json").exists() and not (folder / "adapter_config.json").exists()
    assert not (folder / "adapter_model.safetensors").exists() and not (folder / "best").exists()
    assert (folder / "model_notes").is_dir() and (
        folder / "adapter_notes.txt"
    ).exists()  # files of others stay


def test_the_base_model_is_not_deleted_with_the_directory_of_the_run(tmp_path):
    base = tmp_path / "run"
    base.mkdir()
    flags = (
        "--model_name_or_path",
        str(base),
        "--output_dir",
        str(base),
        "--lora_r",
        "4",
        "--overwrite_output_dir",
    )
    arguments = parse_arguments(
        TrainArguments, ["--train_file", "t.txt", *flags], positional="preset", usage=""
    )
    with pytest.raises(UsageError, match="overwrite_output_dir would delete"):
        check_arguments(arguments)


def test_the_output_layer_is_left_as_it_is(train, base, capsys):
    flags = ("--model_name_or_path", str(base), *BATCH, *LORA, "--lora_target_modules", "lm_head", "c_attn")
    train("tuned", *flags, "--max_train_steps", "1", tiny=False, code=2)
    assert "lora_target_modules names the output layer, lm_head" in capsys.readouterr().err


def test_an_adapter_of_the_output_layer_leaves_a_tied_embedding_alone(base, tmp_path):
    from stylegen.config import SourceArguments
    from stylegen.export import load_for_writing

    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=2, target_modules=["lm_head", "c_attn"], init_lora_weights=False, fan_in_fan_out=False
    )
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model.eval()(ids).logits
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    written, _ = load_for_writing(str(tmp_path / "adapter"), SourceArguments(), torch.device("cpu"))
    with torch.no_grad():
        assert torch.allclose(written(ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_layers_that_are_not_there_are_refused_with_those_that_are(train, base, capsys):
    flags = ("--model_name_or_path", str(base), *BATCH, *LORA, "--lora_target_modules", "q_proj")
    train("tuned", *flags, "--max_train_steps", "1", tiny=False, code=2)
    error = capsys.readouterr().err
    assert "lora_target_modules q_proj" in error and "c_attn" in error and "Traceback" not in error


def test_a_tokenizer_with_more_words_than_the_model_is_refused(train, base, text_file, capsys):
    other = train("other", "--train_tokenizer", "bpe", "--vocab_size", "400", "--max_train_steps", "0")
    flags = ("--model_name_or_path", str(base), *BATCH, *LORA, "--tokenizer_name", str(other))
    train("tuned", *flags, "--max_train_steps", "1", tiny=False, code=2)
    assert "an adapter trains no embeddings" in capsys.readouterr().err
