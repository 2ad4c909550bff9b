"""Style measured while the model trains: what is logged, what stops a run early, and what the summary says of it."""

import pytest
from conftest import evaluations, make_text, metrics, training_losses

from stylegen.config import UsageError, check_arguments, parse_arguments
from stylegen.config.fields import TrainArguments
from stylegen.report import style_in_words
from stylegen.tracking import read_metrics

STEPS = ("--logging_steps", "2", "--eval_steps", "2", "--max_train_steps", "4", "--sample_steps", "end")
STYLE = ("--style_steps", "eval", "--style_samples", "3", "--sample_max_new_tokens", "64")


def style_rows(folder):
    return [row for row in metrics(folder) if "style/copy_rate" in row]


def test_style_is_measured_at_each_evaluation_and_changes_nothing_else(train):
    with_style = train("with", *STEPS, *STYLE)
    without = train("without", *STEPS)
    assert [row["train/global_step"] for row in style_rows(with_style)] == [2, 4]
    assert all(
        {"train/epoch", "train/tokens_seen", "style/longest_copy"} <= row.keys()
        for row in style_rows(with_style)
    )
    assert training_losses(with_style) == training_losses(without)
    assert evaluations(with_style) == evaluations(without)
    kinds = [
        ("eval/loss" in row, "style/copy_rate" in row) for row in read_metrics(with_style / "metrics.jsonl")
    ]
    assert kinds == [(True, False), (False, False), (True, False), (False, True), *kinds[1:4]]


@pytest.mark.parametrize("rhythm, steps", [("3", [3, 4]), ("end", [4]), ("never", []), ("eval", [2, 4])])
def test_it_has_a_rhythm_of_its_own(train, rhythm, steps):
    folder = train("run", *STEPS, *STYLE, "--style_steps", rhythm)
    assert [row["train/global_step"] for row in style_rows(folder)] == steps


def test_the_texts_are_the_same_after_a_stop(train, monkeypatch):
    from test_invariants import stopped_after

    flags = (*STEPS, *STYLE, "--checkpointing_steps", "3")
    whole = train("whole", *flags)
    with monkeypatch.context() as patch:
        stopped_after(3, patch)
        train("parts", *flags)
    assert style_rows(train("parts", *flags)) == style_rows(whole)


def test_a_run_stops_when_it_copies_more_than_is_allowed(train, tmp_path, capsys):
    """A short text, learnt by heart: what is copied rises above the limit, and the run ends there, evaluated."""
    text = tmp_path / "short.txt"
    text.write_text(make_text(5))
    words = (
        "--max_train_steps 400 --eval_steps 400 --checkpointing_steps end --learning_rate 1e-2 "
        "--per_device_train_batch_size 4 --block_size 128 --sample_max_new_tokens 100 --sample_temperature 0.1 "
        "--style_steps 40 --style_samples 1 --early_stopping_metric style/copy_rate --early_stopping_threshold 0.5"
    )
    flags = ("--train_file", str(text), "--validation_file", str(text), *words.split())
    folder = train("run", *flags)
    last = style_rows(folder)[-1]
    assert last["style/copy_rate"] > 0.5 and last["train/global_step"] < 400
    assert all(row["style/copy_rate"] <= 0.5 for row in style_rows(folder)[:-1])
    assert evaluations(folder)[-1]["train/global_step"] == last["train/global_step"]
    assert (folder / "model.safetensors").exists()
    assert "of its 8-grams stand in the training text" in capsys.readouterr().out
    train("run", *flags)  # it is finished
    assert "finished at step" in capsys.readouterr().err


def test_a_run_goes_on_with_another_metric_to_stop_by(train):
    """What was watched before is nothing to compare the new metric with."""
    flags = (*STYLE, "--logging_steps", "2", "--eval_steps", "2", "--lr_scheduler_type", "constant")
    train("run", *flags, "--max_train_steps", "2")
    by_style = ("--early_stopping_metric", "style/copy_rate", "--early_stopping_threshold", "0.99")
    folder = train("run", *flags, *by_style, "--max_train_steps", "4")
    assert evaluations(folder)[-1]["train/global_step"] == 4


def test_a_text_without_words_trains_all_the_same(train, tmp_path, capsys):
    text = tmp_path / "map.txt"
    text.write_text("#..##.#.\n" * 300)
    folder = train("run", *STEPS, *STYLE, "--train_file", str(text))
    assert not style_rows(folder) and (folder / "model.safetensors").exists()
    assert capsys.readouterr().err.count("no style is measured: the training text has no word in it") == 1


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "fsdp"])
def test_several_processes_measure_the_same(train, launch, tmp_path, config):
    one = train("one", *STEPS, *STYLE, "--total_batch_size", "8")
    code, _, log = launch(
        config, *STEPS, *STYLE, "--total_batch_size", "8", "--per_device_train_batch_size", "4",
        "--output_dir", str(tmp_path / "two"), "--early_stopping_metric", "style/copy_rate",
        "--early_stopping_threshold", "0.9",
    )  # fmt: skip
    assert code == 0, log
    assert [row["train/global_step"] for row in style_rows(tmp_path / "two")] == [2, 4]
    names = style_rows(one)[0].keys()
    assert style_rows(tmp_path / "two")[0].keys() == names


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--early_stopping_metric", "style/copy_rate"), "needs --early_stopping_threshold"),
        (
            ("--early_stopping_threshold", "0.01", "--early_stopping_patience", "1"),
            "is a limit for style/copy_rate",
        ),
        (
            (
                "--early_stopping_metric",
                "style/distance",
                "--early_stopping_patience",
                "2",
                "--style_steps",
                "never",
            ),
            "is never measured",
        ),
        (("--early_stopping_metric", "loss"), "must be eval/loss or style/distance"),
    ],
)
def test_flags_that_cannot_work_are_refused(flags, words):
    with pytest.raises(UsageError, match=words):
        arguments = parse_arguments(
            TrainArguments, ["--train_file", "t.txt", *flags], positional="preset", usage=""
        )
        check_arguments(arguments)


def row(step, **values):
    names = {"loss": "eval/loss", "copied": "style/copy_rate", "author": "style/copy_rate_validation"}
    return {"train/global_step": step, **{names[name]: value for name, value in values.items()}}


def rows_of(*steps):
    rows = []
    for step, loss, copied in steps:
        style = {**row(step, copied=copied, author=0.001), "style/longest_copy": 12.0}
        rows += [row(step, loss=loss), style]
    return rows


def test_the_summary_says_since_when_it_memorises():
    words = style_in_words(
        rows_of((10, 4.0, 0.001), (20, 3.5, 0.002), (30, 3.6, 0.008), (40, 3.9, 0.2), (50, 4.4, 0.6))
    )
    assert words[1].startswith(
        "memorising since step 40: the validation loss has turned up from 3.5000 (step 20) to 3.9000"
    )
    assert "20.00% of the 8-grams are copied, 0.20% before; the model kept is that of step 20" in words[1]


@pytest.mark.parametrize(
    "steps",
    [
        [
            (10, 4.0, 0.001),
            (20, 3.5, 0.2),
        ],  # more is copied, but the loss still falls: a text full of formulas
        [(10, 4.0, 0.001), (20, 4.5, 0.002)],  # too many epochs, but nothing is copied
    ],
)
def test_one_sign_alone_is_not_called_memorising(steps):
    assert len(style_in_words(rows_of(*steps))) == 1
