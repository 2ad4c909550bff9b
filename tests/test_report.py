"""The pages that a run leaves: their numbers are those of metrics.jsonl, and no content breaks a page."""

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState
from conftest import TINY, evaluations, make_text, metrics
from huggingface_hub import ModelCard

from stylegen.config import UsageError
from stylegen.figures import training_loss_between
from stylegen.report import summarize, write_report
from stylegen.report.__main__ import main
from stylegen.train import main as train_main

PAGES = ["README.md", "report.html", "report.md"]
# What a model may write, as it was written by the people it learnt from.
HOSTILE = (
    "<script>alert('1')</script> & \"quotes\"\n```\n# not a heading\n{{ name }} {% raw %}\n</pre><img src=x>"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A small real run, not to be changed."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "text.txt").write_text(make_text(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        AcceleratorState._reset_state(reset_partial_state=True)
        assert (
            train_main([
                "--train_file", str(folder / "text.txt"), *TINY, "--mixed_precision", "no",
                "--max_train_steps", "8", "--eval_steps", "3", "--logging_steps", "2", "--sample_steps", "end",
                "--learning_rate", "1e-2", "--output_dir", str(folder / "run"),
            ])
            == 0
        )  # fmt: skip
    return folder / "run"


@pytest.fixture
def run_dir(finished, tmp_path) -> Path:
    """A copy of what a report is made from."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "environment.json", "metrics.jsonl"):
        shutil.copy(finished / name, folder)
    shutil.copytree(finished / "samples", folder / "samples")
    return folder


@pytest.fixture
def no_drawing(monkeypatch):
    """Leave the figures out, which take most of the time."""
    monkeypatch.setattr("stylegen.report.pages.draw_figures", lambda rows, folder: [])


def write_metrics(folder: Path, rows: list[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluation_row(step: int, loss: float) -> dict:
    return {
        "eval/loss": loss, "eval/accuracy": loss / 100, "eval/perplexity": loss * 2, "eval/bits_per_byte": loss / 2,
        "eval/tokens": 100, "train/epoch": step / 5, "train/global_step": step, "train/tokens_seen": step * 1000,
    }  # fmt: skip


def tables(markdown: str) -> list[list[str]]:
    """The cells of every table row, rulers left out."""
    rows = [line.strip("| ").split("|") for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if set("".join(row)) - set("-: ")]


class Page(HTMLParser):
    """What a browser would make of a page: its tags, with the attributes that load something, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.texts: list[str] = []
        self.marks: list[str] = []
        self.cells: list[str] = []  # of tables
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        self.loads += [
            value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")
        ]

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        self.texts.append(data)
        if "mark" in self.open:
            self.marks.append(data)
        if "td" in self.open or "th" in self.open:
            self.cells[-1] += data


# --- which files


def test_a_report_is_three_pages_and_the_figures(run_dir):
    before = {path.name for path in run_dir.iterdir()}
    figures = write_report(run_dir)
    assert sorted({path.name for path in run_dir.iterdir()} - before) == sorted([*PAGES, "figures"])
    assert [path.name for path in figures] == [
        "loss.png",
        "loss_steps.png",
        "accuracy.png",
        "learning_rate.png",
    ]
    assert sorted((run_dir / "figures").iterdir()) == sorted(figures)


def test_the_training_wrote_the_same_pages_that_the_command_writes_again(finished, run_dir):
    write_report(run_dir)
    for name in PAGES:
        assert (run_dir / name).read_text() == (finished / name).read_text()


# --- the numbers


def test_the_table_of_evaluations_is_that_of_metrics_jsonl(finished):
    own, training = evaluations(finished), [row for row in metrics(finished) if "train/loss" in row]
    assert [row["train/global_step"] for row in own] == [0, 3, 6, 8]
    best = min(own[1:], key=lambda row: row["eval/loss"])
    previous = 0.0
    expected = [
        ["step", "epoch", "training loss", "validation loss", "accuracy", "perplexity", "bits per byte"]
    ]
    for row in own:
        mean = training_loss_between(training, previous, row["train/epoch"])
        previous = row["train/epoch"]
        loss = f"{row['eval/loss']:.4f}"
        expected.append([
            f"{row['train/global_step']}",
            f"{row['train/epoch']:.2f}",
            f"{mean:.4f}" if row["train/global_step"] else "–",
            f"**{loss}**" if row is best else loss,
            f"{row['eval/accuracy']:.2%}",
            f"{row['eval/perplexity']:.2f}",
            f"{row['eval/bits_per_byte']:.4f}",
        ])  # fmt: skip
    assert tables((finished / "report.md").read_text())[:5] == expected
    page = Page((finished / "report.html").read_text())
    assert page.cells[: 5 * 7] == [cell.strip("*") for row in expected for cell in row]


def test_the_pages_name_the_best_loss_and_the_one_before_training(finished):
    start, *later = evaluations(finished)
    best = min(later, key=lambda row: row["eval/loss"])
    losses = [row["eval/loss"] for row in later]
    markdown, page = ((finished / name).read_text() for name in ("report.md", "report.html"))
    step, loss = best["train/global_step"], f"{best['eval/loss']:.4f}"
    assert f"Best validation loss **{loss}** nats per token at step {step} (epoch " in markdown
    assert f"Best validation loss <b>{loss}</b> nats per token at step {step} (epoch " in page
    worst = max(later, key=lambda row: row["eval/loss"])["train/global_step"]
    words = (
        f"Before training: loss {start['eval/loss']:.4f}, perplexity {start['eval/perplexity']:.2f}.",
        f"8 steps, {later[-1]['train/epoch']:.2f} epochs, {later[-1]['train/tokens_seen']:,} tokens",
        f"lowest {min(losses):.4f} (step {step}), average {sum(losses) / 3:.4f}, highest {max(losses):.4f} "
        f"(step {worst})",
    )
    for sentence in words:
        assert sentence in markdown and sentence in page


def test_the_settings_and_the_environment_are_in_the_report(finished):
    markdown = (finished / "report.md").read_text()
    (settings,) = re.findall(r"```yaml\n(.*?)```", markdown, re.DOTALL)
    assert yaml.safe_load(settings) == yaml.safe_load((finished / "config.yaml").read_text())
    (environment,) = re.findall(r"```json\n(.*?)```", markdown, re.DOTALL)
    assert json.loads(environment) == json.loads((finished / "environment.json").read_text())


def test_the_last_sample_is_in_the_report(finished):
    (sample,) = (finished / "samples").iterdir()
    text = sample.read_text(encoding="utf-8")
    assert text in (finished / "report.md").read_text()
    page = "".join(Page((finished / "report.html").read_text()).texts)
    assert all(part in page for part in text.partition("\n")[2].removesuffix("\n").split("\n====\n"))


def test_a_run_is_repeated_by_what_the_report_says(finished, tmp_path, monkeypatch):
    """Started where the run was, as the paths in a config.yaml may be relative; here they are not."""
    markdown = (finished / "report.md").read_text()
    *checkout, command = re.findall(r"```bash\n(.*?)\n```", markdown, re.DOTALL)[0].splitlines()
    commit = json.loads((finished / "environment.json").read_text())["git_commit"]
    assert checkout == ([f"git checkout {commit}"] if commit else [])
    program, script, preset, flag, place = shlex.split(command)
    assert (program, script, flag) == ("python", "run_clm.py", "--output_dir")
    assert Path(preset) == finished / "config.yaml" and Path(place) == finished.with_name("run-again")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train_main([preset, flag, str(tmp_path / "again")]) == 0
    assert evaluations(tmp_path / "again") == evaluations(finished)


def test_a_run_without_evaluation_or_sample_still_has_a_report(run_dir):
    write_metrics(run_dir, [row for row in metrics(run_dir) if "train/loss" in row])
    shutil.rmtree(run_dir / "samples")
    (run_dir / "environment.json").unlink()
    assert [path.name for path in write_report(run_dir)] == ["loss_steps.png", "learning_rate.png"]
    markdown = (run_dir / "report.md").read_text()
    assert "Best validation loss" not in markdown and "What it writes" not in markdown
    assert ModelCard.load(run_dir / "README.md")


# --- the pages as pages


def test_the_html_page_loads_nothing(finished):
    text = (finished / "report.html").read_text()
    page = Page(text)
    assert page.loads == []
    assert not {"script", "link", "iframe", "object", "embed", "img"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text
    assert page.tags.count("figure") == 5  # two of the loss, accuracy, learning rate, throughput


def test_a_sample_cannot_break_the_html_page(run_dir, no_drawing):
    (sample,) = (run_dir / "samples").iterdir()
    sample.write_text("harmless")
    write_report(run_dir)
    tags = Page((run_dir / "report.html").read_text()).tags
    sample.write_text(HOSTILE)
    write_report(run_dir)
    page = Page((run_dir / "report.html").read_text())
    assert page.tags == tags
    assert HOSTILE in "".join(page.texts)


def test_a_run_of_any_name_cannot_break_the_html_page(run_dir, tmp_path, no_drawing):
    folder = run_dir.rename(tmp_path / "<b>run & 'co'")
    write_report(folder)
    page = Page((folder / "report.html").read_text())
    assert page.tags.count("b") == 1  # the best loss
    assert "<b>run & 'co'" in page.texts


def test_a_sample_cannot_break_the_markdown_page(run_dir, no_drawing):
    """A line of backticks in a text must not end the block that shows it: a longer fence holds it."""
    (run_dir / "samples" / "step-000009.txt").write_text(HOSTILE)
    write_report(run_dir)
    lines = (run_dir / "report.md").read_text().splitlines()
    start = lines.index("## What it writes") + 2
    fence = lines[start]
    assert re.fullmatch(r"`{3,}|~{3,}", fence)
    end = next(
        number for number, line in enumerate(lines[start + 1 :], start + 1)
        if line.startswith(fence) and set(line) == {fence[0]}
    )  # fmt: skip
    assert "\n".join(lines[start + 1 : end]).strip() == HOSTILE


# --- the summary


def test_the_summary_shows_start_best_and_last(run_dir):
    write_metrics(run_dir, [evaluation_row(0, 5.0), evaluation_row(10, 3.0), evaluation_row(20, 4.0)])
    title, header, *rows = summarize(run_dir).splitlines()
    assert title == "run: 20 steps, 4.00 epochs, 20,000 tokens"
    assert header.split() == ["step", "epoch", "loss", "accuracy", "perplexity", "bits/byte"]
    assert [row.split() for row in rows] == [
        ["start", "0", "0.00", "5.0000", "5.00%", "10.00", "2.5000"],
        ["best", "10", "2.00", "3.0000", "3.00%", "6.00", "1.5000"],
        ["last", "20", "4.00", "4.0000", "4.00%", "8.00", "2.0000"],
    ]
    assert len({len(row) for row in (header, *rows)}) == 1  # the columns stand under each other


def test_the_summary_says_when_training_made_it_worse(run_dir):
    write_metrics(run_dir, [evaluation_row(0, 5.0), evaluation_row(10, 6.0), evaluation_row(20, 7.0)])
    assert summarize(run_dir).splitlines()[-1] == (
        "no evaluation after training was better than the one before it; try a lower --learning_rate"
    )


def test_the_summary_says_how_fast_the_run_was(run_dir):
    same = {
        "train/epoch": 1, "train/tokens_seen": 1, "perf/step_seconds": 0.25, "perf/data_wait_fraction": 0.0125,
        "perf/mfu": 0.412, "perf/save_seconds": 0.5, "perf/max_memory_bytes": 10**9,
    }  # fmt: skip
    rows = [
        {**same, "train/global_step": step, "perf/tokens_per_second": rate}
        for step, rate in enumerate((100, 4000, 5000))
    ]
    rows[0]["perf/first_step_seconds"] = 3.21
    write_metrics(run_dir, rows)
    words = (
        "speed: 4,000 tokens/s (MFU 41.2%), 0.250 s a step, 1.2% of it waiting for data, 1.5 s for saves, first step "
        "3.2 s after the command, at most 1,000 MB"
    )
    assert summarize(run_dir).splitlines()[-1] == words
    for row in rows:
        for name in ("perf/mfu", "perf/first_step_seconds"):
            row.pop(name, None)
    write_metrics(run_dir, rows)
    assert summarize(run_dir).splitlines()[-1] == (
        words.replace(" (MFU 41.2%)", "").replace(", first step 3.2 s after the command", "")
    )


def test_the_summary_of_an_evaluation_alone_has_one_row(run_dir):
    write_metrics(run_dir, [evaluation_row(0, 5.0)])
    title, _, *rows = summarize(run_dir).splitlines()
    assert title == "run: 0 steps, 0.00 epochs, 0 tokens"
    assert [row.split()[0] for row in rows] == ["start"]


# --- what cannot be reported


def test_a_folder_that_is_no_run_directory_is_refused(tmp_path, capsys):
    message = f"{tmp_path} is not a run directory: it has no config.yaml"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        write_report(tmp_path)
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, "", '{"train/loss": 3.'], ids=["no file", "empty", "half a row"])
def test_a_run_without_metrics_is_refused(run_dir, content):
    (run_dir / "metrics.jsonl").unlink()
    if content is not None:
        (run_dir / "metrics.jsonl").write_text(content)
    message = f"{run_dir} has no metrics yet; wait for the first evaluation"
    for command in (write_report, summarize):
        with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
            command(run_dir)
    assert not (run_dir / "figures").exists()


@pytest.mark.parametrize("content", ["a: [1", "\x00", "just text", ""])
def test_a_run_with_a_damaged_config_is_a_usage_error(run_dir, content):
    (run_dir / "config.yaml").write_text(content)
    with pytest.raises(UsageError, match=r"config\.yaml"):
        write_report(run_dir)


def test_a_half_written_last_row_is_left_out(run_dir, no_drawing):
    write_report(run_dir)
    pages = {name: (run_dir / name).read_text() for name in PAGES}
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write('{"eval/loss": 0.1, "eval/accu')
    write_report(run_dir)
    assert pages == {name: (run_dir / name).read_text() for name in PAGES}


@pytest.mark.parametrize("arguments", [[], ["--wandb-of-nothing"]])
def test_the_command_without_a_run_asks_which(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err == "error: which run? python -m stylegen.report RUN_DIR [RUN_DIR ...]\n"
