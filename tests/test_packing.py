"""Packing in whole runs: documents in a block do not see each other, pairs count as they should, windows change."""

import json

import numpy as np
import pytest
import torch
from conftest import evaluations, make_text, metrics
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from stylegen.blocks import PackedBlocks, TextCounts, TokenStream
from stylegen.config import UsageError
from stylegen.loss import LanguageModelLoss
from stylegen.model import check_isolation

ARCHITECTURES = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 32, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
    "llama": {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 32,
              "intermediate_size": 64},
    "opt": {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "ffn_dim": 64,
            "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 2, "hidden_size": 32},
}  # fmt: skip
ENDS = {"bos_token_id": 0, "eos_token_id": 0}


def model_of(architecture, **options):
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, vocab_size=100, **ARCHITECTURES[architecture], **ENDS)
    return AutoModelForCausalLM.from_config(config, **options)


@pytest.fixture(scope="module")
def blocks():
    draw = np.random.default_rng(0)
    documents = [draw.integers(1, 100, draw.integers(1, 60)).tolist() for _ in range(20)]
    framed = np.array([0, *(id_ for document in documents for id_ in (*document, 0))])
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)])
    return PackedBlocks(
        TokenStream(framed, starts, None, TextCounts(20, 0, 0, len(framed) - 2)), 32, pad_id=0
    )


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@torch.no_grad()
def test_packed_documents_have_the_logits_they_have_alone(architecture, implementation, blocks):
    """In training mode and in one batch, as they are trained on."""
    model = model_of(architecture, attn_implementation=implementation).train()
    check_isolation(model)
    assert model.training
    batch = blocks.batch(np.arange(len(blocks)))
    packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    for index in range(len(blocks)):
        start = 0
        for ids, _ in blocks.segments(index, epoch=0):
            alone = model(input_ids=torch.tensor(ids[None, :-1]), use_cache=False).logits[0]
            torch.testing.assert_close(packed[index, start : start + len(alone)], alone, rtol=0, atol=1e-5)
            start += len(alone)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_loss_of_packed_documents_is_that_of_each_alone(architecture, blocks):
    model = model_of(architecture)
    loss, _ = LanguageModelLoss(model)(**blocks.batch(np.arange(len(blocks))))
    alone = 0.0
    for index in range(len(blocks)):
        for ids, _ in blocks.segments(index, epoch=0):
            ids = torch.tensor(ids)
            logits = model(input_ids=ids[None, :-1]).logits[0]
            alone += nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
    assert loss.item() == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("architecture", ["opt", "bloom"])
def test_an_architecture_that_would_leak_is_refused(architecture):
    with pytest.raises(UsageError, match=f"^packing document would leak: the architecture {architecture} lets "
                                         ".*; use --packing stream, or pad$"):  # fmt: skip
        check_isolation(model_of(architecture))


def test_a_kernel_that_isolates_one_row_only_is_refused():
    """As flash attention is: with several rows it does not look at the positions."""
    model = model_of("llama")
    real = model.forward

    def forward(input_ids, position_ids=None, **options):
        rows = position_ids if position_ids is None or len(position_ids) == 1 else None
        return real(input_ids=input_ids, position_ids=rows, **options)

    model.forward = forward
    with pytest.raises(UsageError, match=r"^packing document would leak"):
        check_isolation(model)


@pytest.fixture
def poems(tmp_path):
    """A folder of sixty short documents."""
    folder = tmp_path / "poems"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:02d}.txt").write_text(make_text(2 + number % 5, seed=number))
    return folder


def test_a_run_on_packed_documents_predicts_every_token_and_every_end(train, poems):
    run = train("packed", "--train_file", str(poems), "--packing", "document", "--max_train_steps", "2")
    held_out = evaluations(run)[0]["eval/tokens"]
    stream = train("stream", "--train_file", str(poems), "--max_train_steps", "0")
    # A stream does not predict its first token and the end of its last document.
    assert held_out == evaluations(stream)[0]["eval/tokens"] + 2


@pytest.mark.parametrize("block_size", ["2", "4", "6"])
def test_small_blocks_are_packed(train, poems, block_size):
    flags = ("--train_file", str(poems), "--packing", "document", "--max_train_steps", "1")
    train("small", *flags, "--block_size", block_size)


def test_an_architecture_that_would_leak_trains_on_a_stream_only(train, poems, capsys):
    flags = ("--train_file", str(poems), "--model_type", "opt", "--block_size", "32", "--train_tokenizer", "char",
             "--config_overrides", "num_hidden_layers=1,num_attention_heads=2,hidden_size=32,ffn_dim=64,"
             "word_embed_proj_dim=32", "--max_train_steps", "1")  # fmt: skip
    train("leak", *flags, "--packing", "document", tiny=False, code=2)
    assert "packing document would leak: the architecture opt" in capsys.readouterr().err
    train("stream", *flags, tiny=False)


def write_pairs(tmp_path, number):
    prompts, completions = tmp_path / "prompts.txt", tmp_path / "stories.txt"
    prompts.write_text("".join(f"write about {index}\n" for index in range(number)))
    stories = (" ".join(make_text(3, seed=index).split()) for index in range(number))
    completions.write_text("".join(f"{story}\n" for story in stories))
    return "--prompt_file", str(prompts), "--completion_file", str(completions)


def test_leaving_prompts_out_of_the_loss_takes_them_out_of_the_count(train, tmp_path):
    flags = (*write_pairs(tmp_path, 60), "--max_train_steps", "1", "--block_size", "256")
    tokens = {}
    for name, more in (("all", ()), ("completions", ("--completion_only_loss",))):
        folder = train(name, *flags, *more)
        tokens[name] = evaluations(folder)[0]["eval/tokens"]
    # Three pairs of sixty are held out; a prompt is 14 or 15 characters with its separator of 7.
    assert 3 * (13 + 7) <= tokens["all"] - tokens["completions"] <= 3 * (14 + 7)


def test_random_windows_add_blocks_to_the_training_side_only(train):
    plain = train("plain", "--max_train_steps", "1")
    more = train("more", "--max_train_steps", "1", "--random_windows", "100")
    assert evaluations(plain)[0]["eval/tokens"] == evaluations(more)[0]["eval/tokens"]
    epochs = [metrics(run)[-1]["train/epoch"] for run in (plain, more)]
    blocks = round(8 / epochs[0])  # about: the last step of an epoch may be short
    assert epochs[1] == pytest.approx(1 / -(-(blocks + 100) // 8), rel=0.05)


def test_a_run_with_windows_goes_on_bit_equal(train):
    flags = ("--random_windows", "20", "--validation_split_percentage", "90", "--per_device_train_batch_size", "8",
             "--checkpointing_steps", "3", "--logging_steps", "1", "--lr_scheduler_type", "constant")  # fmt: skip
    whole = train("whole", *flags, "--max_train_steps", "6")
    train("parts", *flags, "--max_train_steps", "3")
    parts = train("parts", *flags, "--max_train_steps", "6")
    losses = [[row["train/loss"] for row in metrics(run) if "train/loss" in row] for run in (whole, parts)]
    assert losses[0] == losses[1]


def test_labels_of_padding_never_count(train, tmp_path):
    rows = [{"prompt": "a b", "story": "c d e"}, {"prompt": "f", "story": "g " * 60}] * 20
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--train_file", str(path), "--prompt_column", "prompt", "--completion_column", "story")
    run = train("pairs", *flags, "--max_train_steps", "1", "--per_device_train_batch_size", "100")
    seen = metrics(run)[-1]["train/tokens_seen"]
    # A pair of the first kind has 15 tokens and its end, one of the second is cut at 32.
    assert seen % 16 == 0
    assert 38 * 16 < seen < 38 * 32
