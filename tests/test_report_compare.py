"""The report of several runs, the marks of what is copied, and curves: on made runs, of every kind of damage."""

import json
import math
import random
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, make_text
from huggingface_hub import ModelCard
from test_report import HOSTILE, Page, evaluation_row, tables, write_metrics

from stylegen.report import compare_runs, marks, summarize, write_report
from stylegen.report.__main__ import main
from stylegen.report.charts import MOST_POINTS, Scale, draw_run, thin
from stylegen.report.record import RunRecord
from stylegen.report.tables import Look, evenly
from stylegen.style import StyleReference
from stylegen.tracking.rows import IN_EVERY_ROW

MOST_BYTES = 3_000_000
NAN, INF = math.nan, math.inf


def training_row(step: int, loss: float = 3.0, **more: float) -> dict:
    return {
        "train/loss": loss, "train/learning_rate": 1e-3, "train/epoch": step / 5, "train/global_step": step,
        "train/tokens_seen": step * 1000, **more,
    }  # fmt: skip


def style_row(step: int, **values: float) -> dict:
    axes = {"train/epoch": step / 5, "train/global_step": step, "train/tokens_seen": step * 1000}
    return {**{f"style/{name}": value for name, value in values.items()}, **axes}


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(make_text(100))
    return path


@pytest.fixture
def make_run(tmp_path, text):
    """`make_run("a", rows, {step: texts}, learning_rate=...)` makes what a report is made from."""

    def make(name: str, rows: list[dict], samples: dict[int, list[str]] | None = None, **settings) -> Path:
        folder = tmp_path / "out" / name
        (folder / "samples").mkdir(parents=True)
        settings = {"train_file": [str(text)], "learning_rate": 1e-3, "output_dir": str(folder), **settings}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        write_metrics(folder, rows)
        for step, texts in (samples or {}).items():
            header = f"# step {step}, seed 0, prompts {['O', 'King'][: len(texts)]}\n"
            path = folder / "samples" / f"step-{step:06d}.txt"
            path.write_text(header + "\n====\n".join(texts) + "\n")
        return folder

    return make


@pytest.fixture
def two(make_run, text) -> tuple[Path, Path]:
    """Two runs; the second writes a line of its training text."""
    copied = next(line for line in text.read_text().splitlines() if len(line.split()) == 9)
    losses = ((6.0, 4.0, 5.0), (6.0, 3.0, 3.5))
    rows = [
        [evaluation_row(step, loss) for step, loss in zip((0, 10, 20), each, strict=True)] for each in losses
    ]
    return (
        make_run("a", rows[0], {10: ["Ox", "Kin"], 20: ["O one", "King two"]}, optim="adamw"),
        make_run("b", rows[1], {20: [f"O unknown, {copied} No.", "King four"]}, optim="muon", seed=2),
    )


@pytest.fixture
def no_drawing(monkeypatch):
    """Leave the figures out, which take most of the time."""
    monkeypatch.setattr("stylegen.report.pages.draw_figures", lambda rows, folder: [])
    monkeypatch.setattr("stylegen.report.compare.draw_comparison", lambda runs, path: path)


def pages_of(folder: Path, name: str) -> tuple[str, str]:
    return (folder / f"{name}.md").read_text(), (folder / f"{name}.html").read_text()


# --- several runs


def test_the_table_of_runs_has_their_numbers_and_the_best_of_each_marked(two):
    assert compare_runs([*two]).resolve() == two[0].parent / "comparison.html"
    markdown, page = pages_of(two[0].parent, "comparison")
    expected = [
        ["run", "lowest loss", "at step", "average loss", "highest loss", "accuracy", "perplexity", "bits per byte",
         "steps", "epochs", "tokens/s"],
        ["a", "4.0000", "10", "4.5000", "5.0000", "**4.00%**", "8.00", "2.0000", "20", "4.00", "–"],
        ["b", "**3.0000**", "10", "**3.2500**", "**3.5000**", "3.00%", "**6.00**", "**1.5000**", "20", "4.00", "–"],
    ]  # fmt: skip
    assert tables(markdown)[:3] == expected
    assert Page(page).cells[:33] == [cell.strip("*") for row in expected for cell in row]
    assert page.count('<td class="best">') == 6
    assert "Of 2 runs b has the lowest validation loss: **3.0000** nats per token at step 10" in markdown
    assert (two[0].parent / "comparison.png").is_file()


def test_no_run_is_called_better_than_its_equal(make_run, no_drawing):
    runs = [
        make_run(name, [evaluation_row(10, loss)]) for name, loss in (("a", 3.0), ("b", 3.00001), ("c", 4.0))
    ]
    compare_runs(runs)
    markdown = pages_of(runs[0].parent, "comparison")[0]
    assert "Of 3 runs a and b have the lowest validation loss: **3.0000** nats per token." in markdown
    assert [row[1] for row in tables(markdown)[1:4]] == ["**3.0000**", "**3.0000**", "4.0000"]


def test_only_arguments_that_differ_are_shown_one_column_a_run(two, no_drawing):
    compare_runs([*two])
    rows = tables((two[0].parent / "comparison.md").read_text())
    start = rows.index(["argument", "a", "b"])
    assert rows[start + 1 :] == [["optim", "adamw", "muon"], ["seed", "–", "2"]]


def test_the_last_texts_stand_side_by_side_with_what_is_copied_marked(two, text, no_drawing):
    compare_runs([*two])
    markdown, page = pages_of(two[0].parent, "comparison")
    shown = Page(page)
    order = [
        shown.texts.index(words) for words in ("O", "O one", "O unknown, ", "King", "King two", "King four")
    ]
    assert order == sorted(order)
    (copied,) = shown.marks
    assert len(copied.split()) == 9 and copied in text.read_text()
    assert f"b: {copied}" in markdown and "Ox" not in shown.texts


def test_a_run_looks_the_same_everywhere(two, no_drawing):
    compare_runs([*two])
    page = (two[0].parent / "comparison.html").read_text()
    for look, name in (("run0", "a"), ("run1", "b")):
        key = rf'<svg class="key curve dotted {look}"[^>]*>(?:<path[^>]*>)*</svg>(?:<a [^>]*>)?{name}<'
        assert len(re.findall(key, page)) >= 5  # in tables, legends, above texts
        assert page.count(f'<g class="curve {look}') == page.count("<figure>") == 4
    assert len({Look.of_run(place) for place in range(16)}) == 16


def test_runs_that_were_measured_on_other_texts_are_compared_by_bits_and_said_so(make_run, no_drawing):
    one = make_run("one", [evaluation_row(10, 3.0)])
    other = make_run("other", [{**evaluation_row(10, 4.0), "eval/tokens": 50, "eval/bits_per_byte": 1.0}])
    compare_runs([one, other])
    markdown = (one.parent / "comparison.md").read_text()
    assert "Of 2 runs other has the fewest bits per byte: **1.0000** at step 10" in markdown
    assert "different numbers of tokens (50, 100)" in markdown


def test_runs_of_the_same_name_in_other_folders_are_two(make_run, tmp_path, no_drawing):
    runs = [make_run(f"{place}/run", [evaluation_row(10, 3.0)]) for place in ("a", "b c?")]
    page = compare_runs(runs)
    shown = Page(page.read_text())
    assert {"a/run", "b c?/run"} <= set(shown.texts)
    for run, link in zip(runs, shown.loads, strict=True):  # the only addresses there are
        assert tmp_path / "out" / urllib.parse.unquote(link) == run / "report.html"


def test_a_hostile_name_breaks_no_page(make_run, no_drawing):
    name = HOSTILE.replace("/", "")
    rows = [evaluation_row(0, 3.0), evaluation_row(9, 2.0)]
    runs = [make_run(each, rows) for each in (name, "b")]
    page = Page(compare_runs(runs).read_text())
    assert not {"script", "img"} & set(page.tags) and name in page.texts
    first, *_ = tables((runs[0].parent / "comparison.md").read_text())
    assert len(first) == 11


def test_the_command_says_where_the_pages_are(two, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "stylegen.report", "a", "b", "a/"],
        cwd=tmp_path / "out", env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "a/report.html\nb/report.html\ncomparison.html\ncomparison.png\n", done.stderr
    assert done.returncode == 0


def test_a_wildcard_may_be_given_again(two, capsys):
    """Then the pages of the first time are among what it stands for."""
    for _ in range(2):
        found = sorted(map(str, two[0].parent.iterdir()))
        assert main(found) == 0, capsys.readouterr().err
    pages = [path for path in found if path not in map(str, two)]
    assert len(pages) == 3 and main(pages) == 2
    assert capsys.readouterr().err.startswith("error: which run? python -m stylegen.report RUN_DIR")


def test_a_run_without_metrics_leaves_the_others_their_pages(two, make_run, capsys, no_drawing):
    empty = make_run("empty", [])
    assert main([str(two[0]), str(empty), str(two[1])]) == 2
    output = capsys.readouterr()
    assert output.err == f"error: {empty} has no metrics yet; wait for the first evaluation\n"
    assert len(output.out.splitlines()) == 4 and (two[1] / "report.html").is_file()


def test_an_unknown_flag_is_refused(two, capsys):
    assert main([str(two[0]), "--colour"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown flag --colour")


# --- what is copied


def test_one_run_marks_what_is_copied_at_each_step(two, text, no_drawing):
    write_report(two[1])
    markdown, page = pages_of(two[1], "report")
    shown = Page(page)
    assert len(shown.marks) == 1 and shown.marks[0] in text.read_text()
    assert f"step 20: {shown.marks[0]}" in markdown
    assert marks.MARKED in markdown and marks.MARKED in shown.texts[-1] + "".join(shown.texts)


def test_a_training_marks_with_the_index_that_it_has(two, text, no_drawing):
    reference = StyleReference.build([("text", text.read_text())], [])
    text.unlink()
    write_report(two[1], reference)
    assert len(Page((two[1] / "report.html").read_text()).marks) == 1


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"train_file": ["gone.txt"]}, r"gone\.txt does not exist; .* relative to the folder the run was started in"),
        ({"train_file": ["/gone/x.txt"]}, r"/gone/x\.txt does not exist; give a file, a folder or a glob in quotes"),
        ({"train_file": [], "dataset_name": "org/data"}, "its training text, org/data, is not on this machine"),
        ({"train_file": ["LONG"]}, "its training text is longer than 1,000 characters"),
    ],
)  # fmt: skip
def test_where_nothing_is_marked_the_page_says_why(make_run, text, monkeypatch, settings, reason, no_drawing):
    monkeypatch.setattr(marks, "LARGEST_TEXT", 1000)
    if settings["train_file"] == ["LONG"]:
        settings = {"train_file": [str(text)]}
    folder = make_run("a", [evaluation_row(10, 3.0)], {10: ["O one"]}, **settings)
    write_report(folder)
    page = Page((folder / "report.html").read_text())
    assert re.search(f"Nothing is marked: .*{reason}", "".join(page.texts)) and page.marks == []


# --- runs of every kind


KINDS = {
    "one evaluation": [evaluation_row(0, 5.0)],
    "no evaluation": [training_row(10)],
    "no number": [evaluation_row(0, NAN), training_row(5, NAN), training_row(10, INF), evaluation_row(10, NAN)],
    "one number": [evaluation_row(0, NAN), evaluation_row(5, 2.0), evaluation_row(10, 1e300)],
    "style": [style_row(5, copy_rate=0.5, longest_copy=9.0), style_row(9, copy_rate=NAN, longest_copy=INF)],
    "style in part": [evaluation_row(5, 1.0), style_row(5, distance=1.2, distance_low=1.1, distance_high=1.3,
                      copy_rate=0.0, longest_copy=0.0)],
}  # fmt: skip


def test_a_run_of_any_kind_has_its_pages_alone_and_beside_others(make_run):
    runs = [make_run(name, rows) for name, rows in KINDS.items()]
    for run in runs:
        write_report(run)
        markdown, page = pages_of(run, "report")
        assert len({len(row) for row in tables(markdown)}) <= 2  # evaluations, style
        assert "nan" not in page.partition("<h2>Curves</h2>")[2].partition("<h2>")[0]
    compare_runs(runs)
    page = Page((runs[0].parent / "comparison.html").read_text())
    assert page.cells[11 * 5] == "style" and page.tags.count("figure") > 0
    assert pages_of(runs[3], "report")[0].count("**2.0000**") == 2  # the best one is a number


STYLE = dict.fromkeys(
    ("distance", "distance_low", "distance_high", "copy_rate", "copy_rate_validation", "longest_copy"), 0.5
)
SPEED = ("perf/tokens_per_second", "perf/step_seconds")
ALL_METRICS = [
    evaluation_row(0, 4.0), style_row(0, **STYLE), evaluation_row(10, 3.0), style_row(10, **STYLE),
    training_row(10, **dict.fromkeys(SPEED, 1.0)),
]  # fmt: skip


@pytest.mark.parametrize("name", sorted({name for row in ALL_METRICS for name in row} - set(IN_EVERY_ROW)))
def test_a_run_without_one_of_the_metrics_has_its_pages(make_run, no_drawing, name):
    bare = [{key: value for key, value in row.items() if key != name} for row in ALL_METRICS]
    runs = [make_run("bare", bare), make_run("whole", ALL_METRICS)]
    for run in runs:
        write_report(run)
        words = summarize(run)
        assert ("1.000 s a step" in words) == (run.name == "whole" or name not in SPEED), words
        ModelCard.load(run / "README.md")
    compare_runs(runs)


def test_lines_that_are_no_rows_are_left_out(make_run):
    folder = make_run("a", [evaluation_row(10, 3.0)])
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b'7\n[1]\n{"eval/loss": 1.0}\n{"train/global_step": "x"}\n\xff\n{"train/glo')
    assert RunRecord.read(folder).rows == [evaluation_row(10, 3.0)]


def test_figures_are_drawn_of_what_there_is(make_run):
    rows = [
        {key: row[key] for key in row if key in (*IN_EVERY_ROW, "eval/loss", "train/loss")}
        for row in ALL_METRICS
    ]
    bare = [row for row in rows if row.keys() - set(IN_EVERY_ROW)]
    folder = make_run("a", bare)
    write_report(folder)
    assert {path.name for path in (folder / "figures").iterdir()} == {"loss.png", "loss_steps.png"}


def test_odd_files_among_the_samples_and_a_damaged_environment_do_no_harm(make_run, no_drawing):
    folder = make_run("a", [evaluation_row(10, 3.0)], {1_000_000: ["O last"], 999_999: ["O first"]})
    (folder / "environment.json").write_text("[1")
    (folder / "samples" / "step-000005.txt").mkdir()
    (folder / "samples" / "step-x.txt").write_bytes(b"\xff\x00")
    (folder / "samples" / "notes.txt").write_text("nobody asked")
    write_report(folder)
    page = "".join(Page((folder / "report.html").read_text()).texts)
    assert page.index("O last") < page.index("O first") < page.rindex("O last")  # the last, then all by step
    assert "nobody asked" not in page


def test_a_long_run_has_small_pages_without_losing_its_ends(make_run, no_drawing):
    draw = random.Random(0)
    rows = [evaluation_row(0, 9.0)]
    for step in range(1, 20_001):
        rows.append(training_row(step, 2 + draw.random(), **{"perf/tokens_per_second": draw.random()}))
        if step % 20 == 0:
            rows.append(evaluation_row(step, 2.5 + draw.random()))
    rows[12_345]["train/loss"] = 0.5
    rows[-1]["eval/loss"] = 0.25
    folder = make_run("a", rows, {step: [HOSTILE * 200, "King"] for step in range(0, 12_000, 100)})
    write_report(folder)
    markdown, page = pages_of(folder, "report")
    assert len(page.encode()) < MOST_BYTES and len(markdown.encode()) < MOST_BYTES
    for words in ("24 of 120 samples, from step 0 to step 11,900", "200 of 1,001 evaluations"):
        assert words in page and words in markdown
    assert "**0.2500**" in markdown and "lowest 0.5000 (step" in markdown
    charts = {each.title: each for each in draw_run(RunRecord.read(folder))}
    for curve in charts["Loss by step"].curves:
        assert curve.line.count("L") <= MOST_POINTS + 1
        left, right = (curve.line.split("L")[end].strip("M").split()[0] for end in (0, -1))
        assert float(right) == 388 and float(left) <= 46.1
    lowest = max(float(point.split()[1]) for point in charts["Loss by step"].curves[1].line[1:].split("L"))
    assert lowest == Scale(0.25 - 0.06 * 8.75, 9 + 0.06 * 8.75, 191, 10)(0.5)


# --- curves


def test_a_point_tells_its_numbers(two, no_drawing):
    write_report(two[0])
    page = (two[0] / "report.html").read_text()
    for point in (
        "validation, step 20: 5.0000",
        "best: validation, step 10: 4.0000",
        "validation, epoch 4.00: 5.00%",
    ):
        assert f"<title>{point}</title>" in page
    assert 'aria-label="Loss by step: validation from 6.0000 to 5.0000"' in page


def test_thinning_keeps_the_ends_and_every_lowest_and_highest_point():
    draw = random.Random(1)
    points = [(float(x), draw.random()) for x in range(5000)]
    thinned = thin(points, 100)
    assert len(thinned) <= 102 and thinned == sorted(thinned)
    assert {points[0], points[-1]} <= set(thinned) <= set(points)
    assert {min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])} <= set(thinned)
    assert thin(points[:100], 100) == points[:100]


def test_evenly_takes_the_first_and_the_last():
    assert evenly(range(120), 4) == [0, 40, 79, 119] and evenly("abc", 4) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "low, high, is_share, expected",
    [
        (0, 1, False, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (0, 35_000, False, ["0", "10k", "20k", "30k"]),
        (0, 2e6, False, ["0", "0.5M", "1M", "1.5M", "2M"]),
        (0, 1e-4, False, ["0", "2e-5", "4e-5", "6e-5", "8e-5", "1e-4"]),
        (0, 0.009, True, ["0%", "0.2%", "0.4%", "0.6%", "0.8%"]),
        (3, 3, False, ["3"]),
    ],
)
def test_ticks_are_round_numbers(low, high, is_share, expected):
    ticks = Scale(low, high, 0, 100).ticks(5, is_share=is_share)
    assert [words for _, words in ticks] == expected
    assert all(0 <= place <= 100 for place, _ in ticks)


def test_the_folder_of_a_run_that_is_copied_elsewhere_still_names_itself(make_run, no_drawing):
    folder = make_run("a", [evaluation_row(10, 3.0)], output_dir="elsewhere/b")
    (folder / "environment.json").write_text(
        json.dumps({"git_commit": "abc", "world_size": 2, "device": "cpu"})
    )
    write_report(folder)
    markdown = (folder / "report.md").read_text()
    assert "git checkout abc\npython run_clm.py a/config.yaml --output_dir a-again\n" in markdown
    assert "It ran with 2 processes on cpu." in markdown
