"""The figures: which files are written, what the lines in them show, and the two numbers drawn by hand."""

import math

import pytest
from matplotlib.figure import Figure

from stylegen.figures import best_evaluation, draw_figures, training_loss_between

NAMES = ["loss", "loss_steps", "accuracy", "learning_rate"]


def training_row(step: int, epoch: float, tokens: int, loss: float) -> dict:
    return {
        "train/loss": loss,
        "train/learning_rate": 1e-3 / step,
        "train/epoch": epoch,
        "train/global_step": step,
        "train/tokens_seen": tokens,
    }


def evaluation_row(step: int, epoch: float, loss: float, accuracy: float = 0.5) -> dict:
    return {"eval/loss": loss, "eval/accuracy": accuracy, "train/epoch": epoch, "train/global_step": step}


# Five steps an epoch, logged every second: the third row straddles the end of the first epoch.
TRAINING = [
    training_row(2, 0.4, 400, 5.0),
    training_row(4, 0.8, 800, 4.0),
    training_row(6, 1.2, 1200, 3.0),
    training_row(8, 1.6, 1600, 2.5),
    training_row(10, 2.0, 2000, 2.0),
]
EVALUATIONS = [
    evaluation_row(0, 0.0, 6.0, 0.01),
    evaluation_row(5, 1.0, 3.5, 0.30),
    evaluation_row(10, 2.0, 2.8, 0.45),
]
FIRST_EPOCH = (400 * 5.0 + 400 * 4.0 + 200 * 3.0) / 1000
SECOND_EPOCH = (200 * 3.0 + 400 * 2.5 + 400 * 2.0) / 1000


@pytest.fixture
def drawn(monkeypatch):
    """The axes of each figure that was saved, by the name of its file."""
    saved = {}
    save = Figure.savefig

    def remember(figure, path, **options):
        (saved[path.stem],) = figure.axes
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return saved


def lines(axes) -> dict[str, list[tuple[float, float]]]:
    """The points of each line, by the first word of its label."""
    return {
        str(line.get_label()).split()[0].strip(":"): list(map(tuple, line.get_xydata()))
        for line in axes.lines
    }


# --- which files


def test_a_run_gets_four_pictures(tmp_path):
    paths = draw_figures(TRAINING + EVALUATIONS, tmp_path / "figures")
    assert paths == [tmp_path / "figures" / f"{name}.png" for name in NAMES]
    assert sorted((tmp_path / "figures").iterdir()) == sorted(paths)
    for path in paths:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n") and b"IEND" in content[-12:]
        width, height = int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
        assert width >= 1000 and height >= 600


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([], []),
        (TRAINING, ["loss_steps", "learning_rate"]),
        (EVALUATIONS, ["loss", "accuracy"]),
        (EVALUATIONS[:1], ["loss", "accuracy"]),
    ],
    ids=["nothing", "no evaluation yet", "evaluations only", "before the first step"],
)
def test_only_what_there_is_is_drawn(tmp_path, rows, names):
    assert [path.stem for path in draw_figures(rows, tmp_path)] == names
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(names)


def test_the_same_rows_give_the_same_pictures(tmp_path):
    for folder in ("one", "two"):
        draw_figures(TRAINING + EVALUATIONS, tmp_path / folder)
    for name in NAMES:
        assert (tmp_path / "one" / f"{name}.png").read_bytes() == (
            tmp_path / "two" / f"{name}.png"
        ).read_bytes()


# --- what they show


def test_the_lines_are_the_rows(tmp_path, drawn):
    draw_figures(TRAINING + EVALUATIONS, tmp_path)
    assert lines(drawn["loss"]) == {
        "training": [(1.0, pytest.approx(FIRST_EPOCH)), (2.0, pytest.approx(SECOND_EPOCH))],
        "validation": [(0.0, 6.0), (1.0, 3.5), (2.0, 2.8)],
        "best": [(2.0, 2.8)],
    }
    assert lines(drawn["loss_steps"]) == {
        "training": [(2, 5.0), (4, 4.0), (6, 3.0), (8, 2.5), (10, 2.0)],
        "validation": [(0, 6.0), (5, 3.5), (10, 2.8)],
        "best": [(10, 2.8)],
    }
    assert lines(drawn["accuracy"]) == {
        "validation": [(0.0, 0.01), (1.0, 0.30), (2.0, 0.45)],
        "best": [(2.0, 0.45)],
    }
    (rates,) = drawn["learning_rate"].lines
    assert list(map(tuple, rates.get_xydata())) == [(step, 1e-3 / step) for step in (2, 4, 6, 8, 10)]


def test_every_axis_says_what_it_is_and_the_best_value_is_named(tmp_path, drawn):
    draw_figures(TRAINING + EVALUATIONS, tmp_path)
    assert {name: (axes.get_xlabel(), axes.get_ylabel()) for name, axes in drawn.items()} == {
        "loss": ("epoch", "loss (nats per token)"),
        "loss_steps": ("optimizer step", "loss (nats per token)"),
        "accuracy": ("epoch", "next token guessed right"),
        "learning_rate": ("optimizer step", "learning rate"),
    }
    labels = {name: [text.get_text() for text in drawn[name].get_legend().get_texts()] for name in NAMES[:3]}
    assert "best: 2.8000 (epoch 2)" in labels["loss"]
    assert "best: 2.8000 (epoch 2)" in labels["loss_steps"]
    assert "best: 45.0% (epoch 2)" in labels["accuracy"]


def test_the_training_loss_is_drawn_from_the_first_epoch_on_even_without_an_evaluation_before_it(
    tmp_path, drawn
):
    """With `eval_on_start: false` the first epoch was trained all the same."""
    draw_figures(TRAINING + EVALUATIONS[1:], tmp_path)
    assert lines(drawn["loss"])["training"] == [
        (1.0, pytest.approx(FIRST_EPOCH)),
        (2.0, pytest.approx(SECOND_EPOCH)),
    ]


def test_a_line_of_one_row_can_be_seen(tmp_path, drawn):
    """A run shorter than `logging_steps` has one training row: a line between one point is nothing."""
    draw_figures([*TRAINING[-1:], *EVALUATIONS[:1], *EVALUATIONS[-1:]], tmp_path)
    invisible = [
        (name, line.get_label())
        for name, axes in drawn.items()
        for line in axes.lines
        if len(line.get_xydata()) == 1 and line.get_marker() in ("None", "", None)
    ]
    assert invisible == []


# --- the numbers


@pytest.mark.parametrize(
    ("after", "until", "expected"),
    [
        (0.0, 1.0, FIRST_EPOCH),  # half of the third row belongs to it
        (1.0, 2.0, SECOND_EPOCH),
        (0.0, 2.0, (5.0 + 4.0 + 3.0 + 2.5 + 2.0) / 5),
        (0.4, 0.8, 4.0),  # exactly one row
        (0.5, 0.6, 4.0),  # a part of one row
        (0.6, 1.0, (200 * 4.0 + 200 * 3.0) / 400),  # straddles both ends
    ],
)
def test_training_loss_between_two_evaluations(after, until, expected):
    assert training_loss_between(TRAINING, after, until) == pytest.approx(expected, rel=1e-12)


def test_training_loss_weighs_rows_by_their_tokens():
    """The last step of an epoch may be short."""
    rows = [training_row(2, 0.5, 300, 4.0), training_row(4, 1.0, 400, 2.0)]
    assert training_loss_between(rows, 0.0, 1.0) == pytest.approx((300 * 4.0 + 100 * 2.0) / 400)


@pytest.mark.parametrize(
    ("after", "until"), [(2.0, 3.0), (1.0, 1.0)], ids=["after the last row", "an empty span"]
)
def test_there_is_no_training_loss_where_nothing_was_trained(after, until):
    assert math.isnan(training_loss_between(TRAINING, after, until))
    assert math.isnan(training_loss_between([], after, until))


def test_the_best_evaluation_has_the_lowest_loss():
    rows = [evaluation_row(5, 1.0, 3.0), evaluation_row(10, 2.0, 2.0), evaluation_row(15, 3.0, 2.5)]
    assert best_evaluation(TRAINING + rows) is rows[1]


def test_the_best_evaluation_is_never_the_one_before_training():
    before, after = evaluation_row(0, 0.0, 1.0), evaluation_row(5, 1.0, 3.0)
    assert best_evaluation([before, after]) is after
    assert best_evaluation([before]) is None
    assert best_evaluation(TRAINING) is None


def test_of_equally_good_evaluations_the_earlier_one_is_the_best():
    rows = [evaluation_row(5, 1.0, 3.0), evaluation_row(10, 2.0, 2.5), evaluation_row(15, 3.0, 2.5)]
    assert best_evaluation(rows) is rows[1]
