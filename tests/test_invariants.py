"""Equivalent runs give equal numbers: the tests that every change of the loop has to pass."""

import types

import numpy as np
import pytest
import torch
from conftest import evaluations, metrics, training_losses
from safetensors.torch import load_file

STEPS = (
    "--logging_steps",
    "1",
    "--eval_steps",
    "2",
    "--checkpointing_steps",
    "3",
    "--lr_scheduler_type",
    "cosine",
)
# Eight blocks a step, and few enough blocks that six steps pass the end of an epoch and its short last group.
BATCH = ("--per_device_train_batch_size", "8", "--max_train_samples", "21")


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_bit_equal(first, second):
    assert training_losses(first) == training_losses(second)
    assert evaluations(first) == evaluations(second)
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def stopped_after(step, monkeypatch):
    """Make the next training stop as if SIGTERM had come during that step."""
    from stylegen.train import run

    original = run.train_step

    def train_step(current, state, watch):
        norm = original(current, state, watch)
        if state.step == step:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return norm

    monkeypatch.setattr(run, "train_step", train_step)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stop", [3, 4, 5])
def test_six_steps_are_some_and_the_rest_after_a_stop(train, monkeypatch, optimizer, stop):
    flags = (*STEPS, *BATCH, "--optim", optimizer, "--max_train_steps", "6")
    whole = train("whole", *flags)
    with monkeypatch.context() as patch:
        stopped_after(stop, patch)
        parts = train("parts", *flags)
        assert metrics(parts)[-1]["train/global_step"] <= stop
        assert not (parts / "model.safetensors").exists()
    train("parts", *flags)
    assert_bit_equal(whole, parts)
    assert [row["train/global_step"] for row in metrics(parts) if "train/loss" in row] == [1, 2, 3, 4, 5, 6]


def test_a_stop_before_the_first_step_is_no_error(train, monkeypatch):
    from stylegen.stop import StopRequest

    flags = (*STEPS, *BATCH, "--max_train_steps", "3", "--eval_on_start", "false")
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "agreed", lambda self, accelerator: "SIGTERM")
        stopped = train("stopped", *flags)
        assert not metrics(stopped)
    assert_bit_equal(train("stopped", *flags), train("whole", *flags))


def test_the_same_command_gives_the_same_numbers(train):
    flags = (*STEPS, *BATCH, "--max_train_steps", "3")
    assert_bit_equal(train("first", *flags), train("second", *flags))


def test_a_finished_run_goes_on_with_more_steps(train, capsys):
    flags = (*STEPS, *BATCH, "--lr_scheduler_type", "constant")
    whole = train("whole", *flags, "--max_train_steps", "6")
    parts = train("parts", *flags, "--max_train_steps", "3")
    before = (parts / "metrics.jsonl").read_text()
    assert train("parts", *flags, "--max_train_steps", "3") == parts
    assert (parts / "metrics.jsonl").read_text() == before
    assert "finished at step 3; give more epochs or steps to go on" in capsys.readouterr().err
    train("parts", *flags, "--max_train_steps", "6")
    assert "the learning rate now follows 6 steps, it followed 3 before" in capsys.readouterr().err
    # The last turn of the shorter run evaluated step 3 as well.
    assert training_losses(whole) == training_losses(parts)
    assert [row for row in evaluations(parts) if row["train/global_step"] != 3] == evaluations(whole)


@pytest.mark.parametrize("batch", [("1", "8"), ("2", "4"), ("3", None)])
def test_accumulation_gives_the_gradient_of_the_big_batch(train, batch):
    """Dropout is off, since it draws per forward pass; the short last group of the epoch is among the steps."""
    off = "n_layer=2,n_head=2,n_embd=32,resid_pdrop=0,embd_pdrop=0,attn_pdrop=0"
    # Plain SGD would compare gradients directly; with AdamW the gradient norm does, before its division.
    flags = (*STEPS, "--max_train_samples", "21", "--config_overrides", off, "--max_train_steps", "6")
    size, accumulation = batch
    whole = train("whole", *flags, "--per_device_train_batch_size", "9" if accumulation is None else "8")
    steps = "3" if accumulation is None else accumulation
    parts = train(
        "parts", *flags, "--per_device_train_batch_size", size, "--gradient_accumulation_steps", steps
    )
    for one, two in zip(metrics(whole), metrics(parts), strict=True):
        for name in ("train/loss", "train/grad_norm", "eval/loss"):
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=1e-5)
        assert one["train/tokens_seen"] == two["train/tokens_seen"]


def test_evaluation_is_equal_for_any_batch_size(train):
    results = []
    for size in ("1", "7", "16"):
        folder = train(f"batch-{size}", "--per_device_eval_batch_size", size, "--max_train_steps", "1")
        results.append(evaluations(folder))
    for rows in results[1:]:
        for row, first in zip(rows, results[0], strict=True):
            assert row["eval/tokens"] == first["eval/tokens"]
            assert row["eval/accuracy"] == first["eval/accuracy"]
            assert row["eval/loss"] == pytest.approx(first["eval/loss"], rel=1e-6)


def test_evaluation_and_samples_do_not_disturb_the_training(train):
    flags = ("--max_train_steps", "4", "--logging_steps", "1")
    often = train("often", *flags, "--eval_steps", "1", "--sample_steps", "1", "--checkpointing_steps", "1")
    seldom = train(
        "seldom", *flags, "--eval_on_start", "false", "--sample_steps", "end", "--checkpointing_steps", "end"
    )
    assert training_losses(often) == training_losses(seldom)


def test_every_block_is_seen_once_an_epoch(train, monkeypatch):
    from stylegen.train.feed import Feed

    seen, original = [], Feed.take

    def take(feed, step, number, blocks):
        seen.append(blocks.shares[number])
        return original(feed, step, number, blocks)

    monkeypatch.setattr(Feed, "take", take)
    folder = train("epochs", *BATCH, "--num_train_epochs", "2")
    assert [len(step) for step in seen] == [8, 8, 5, 8, 8, 5]
    first, second = np.concatenate(seen[:3]), np.concatenate(seen[3:])
    assert sorted(first) == sorted(second) == list(range(21))
    assert list(first) != list(second)
    assert metrics(folder)[-1]["train/epoch"] == 2.0


def test_processes_that_do_not_know_each_other_are_refused(train, monkeypatch, capsys):
    """A launcher that says two where each would train alone: two trainings would write into one directory."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr(
        "stylegen.runtime.process.Accelerator", lambda **options: types.SimpleNamespace(num_processes=1)
    )
    train("lonely", "--max_train_steps", "1", code=2)
    assert "the launcher says 2 processes, but each of them trains alone" in capsys.readouterr().err


def test_the_saved_model_is_loaded_and_compared(train, monkeypatch, capsys):
    from stylegen.train import finish, turn

    folder = train("good", "--max_train_steps", "1")
    assert f"{folder} loads in Transformers and gives the loss it was saved with" in capsys.readouterr().err

    original = turn.save_model

    def save_model(model, *where):
        with torch.no_grad():
            model.transformer.wte.weight.mul_(2)
            original(model, *where)
            model.transformer.wte.weight.div_(2)

    with monkeypatch.context() as patch:
        patch.setattr(turn, "save_model", save_model)
        with pytest.raises(
            RuntimeError, match=r"has loss [\d.]+ on the first validation block, but had [\d.]+"
        ):
            train("bad", "--max_train_steps", "1")
    monkeypatch.setattr(finish, "free_memory_bytes", lambda: 1000)
    train("unchecked", "--max_train_steps", "1")
    assert "was not loaded to check it: 0.0 GB of memory are free" in capsys.readouterr().err


def test_a_run_that_is_given_fewer_steps_than_it_did_ends_with_a_model(train, capsys):
    flags = ("--checkpointing_steps", "2", "--eval_steps", "10")
    with pytest.MonkeyPatch.context() as patch:
        stopped_after(2, patch)
        folder = train("run", *flags, "--max_train_steps", "10")
    assert not (folder / "model.safetensors").exists()
    train("run", *flags, "--max_train_steps", "2")
    assert (folder / "model.safetensors").exists()
    assert evaluations(folder)[-1]["train/global_step"] == 2
    capsys.readouterr()
    train("run", *flags, "--max_train_steps", "2")
    assert "finished at step 2" in capsys.readouterr().err


def test_a_run_that_goes_on_elsewhere_has_a_best_model_of_its_own(train, capsys):
    flags = ("--checkpointing_steps", "2", "--eval_steps", "2", "--lr_scheduler_type", "constant")
    first = train("first", *flags, "--max_train_steps", "4")
    checkpoint = str(first / "checkpoint-000004")
    second = train("second", *flags, "--max_train_steps", "6", "--resume_from_checkpoint", checkpoint)
    log = capsys.readouterr().err
    assert f"the best model so far, of step 4, is not in {second}: it is looked for anew" in log
    assert (second / "model.safetensors").exists()


def test_a_loss_that_is_no_number_is_not_the_best(train, monkeypatch):
    from stylegen.evaluate import Evaluation
    from stylegen.train import turn

    losses = iter([2.0, float("nan"), 3.0])
    monkeypatch.setattr(turn, "evaluate", lambda *values: Evaluation(next(losses), 0.5, 100))
    monkeypatch.setattr("stylegen.train.finish._check_saved_model", lambda *values: None)
    folder = train("run", "--max_train_steps", "3", "--eval_steps", "1", "--eval_on_start", "false")
    from stylegen.checkpoint import list_checkpoints, read_manifest

    state = read_manifest(list_checkpoints(folder)[-1])["state"]
    assert (state["best_step"], state["best_loss"], state["stale_evaluations"]) == (1, 2.0, 2)


def test_a_run_that_goes_on_from_an_earlier_step_leaves_the_later_ones(train, monkeypatch):
    """Killed before its first save, it must not come back to them."""
    from stylegen.checkpoint import list_checkpoints
    from stylegen.train import run

    flags = ("--checkpointing_steps", "2", "--save_total_limit", "5", "--lr_scheduler_type", "constant")
    folder = train("run", *flags, "--max_train_steps", "6")
    flags += ("--max_train_steps", "8")

    def killed(*values):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(run, "train_step", killed)
        train("run", *flags, "--resume_from_checkpoint", str(folder / "checkpoint-000002"))
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-000002"]
    train("run", *flags)
    names = [path.name for path in list_checkpoints(folder)]
    assert names == ["checkpoint-000002", "checkpoint-000004", "checkpoint-000006", "checkpoint-000008"]
