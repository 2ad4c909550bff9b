"""The jobs of docs/data.md: each preset with its own command on a small text, and the pages' other commands."""

import contextlib
import importlib
import io
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, evaluations, make_text

DATA = (ROOT / "docs/data.md").read_text(encoding="utf-8")
TINY = ("--config_overrides", "n_layer=1,n_head=2,n_embd=32", "--vocab_size", "300")
SHORT = ("--max_train_steps", "2", "--cache_dir", "cache")


MAINS = {
    "run_clm.py": "stylegen.train",
    "stylegen.blocks": "stylegen.blocks.__main__",
    "stylegen.tokenizer": "stylegen.tokenizer.__main__",
    "stylegen.report": "stylegen.report.__main__",
}


def run(place: Path, command: str, *more: str, code: int = 0) -> str:
    """Run `python run_clm.py ...` or `python -m stylegen.X ...` in `place`, in this process; what it printed."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    words = [word for word in command.split()[1:] if word != "-m"]
    arguments = [str(ROOT / word) if word.startswith("configs/") else word for word in words[1:]]
    printed = io.StringIO()
    with contextlib.chdir(place), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        assert importlib.import_module(MAINS[words[0]]).main([*arguments, *more]) == code, printed.getvalue()
    return printed.getvalue()


def shown(beginning: str) -> str:
    """The command of docs/data.md that begins so."""
    commands = re.findall(r"`(python [^`]+)`", DATA) + re.findall(r"^ *(python .+)$", DATA, re.M)
    (command,) = {command for command in commands if command.startswith(beginning)}
    return command


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text, and a model to fine-tune."""
    place = tmp_path_factory.mktemp("jobs")
    (place / "mine.txt").write_text(make_text(300).replace("o", "ö"))
    run(
        place, "python run_clm.py configs/quickstart.yaml --train_file mine.txt --output_dir small",
        *TINY, *SHORT, "--block_size", "64",
    )  # fmt: skip
    return place


def test_a_blog(place):
    posts = place / "posts"
    posts.mkdir()
    for number in range(40):
        (posts / f"{number}.md").write_text(
            f"---\ntitle: {number}\n---\n\n# A *week*\n\n{make_text(5, number)}"
        )
    out = run(
        place,
        shown("python run_clm.py configs/blog.yaml"),
        "--model_name_or_path",
        "small",
        "--block_size",
        "64",
        *SHORT,
    )
    assert re.search(r"train +\d\d ", out)
    look = "python -m stylegen.blocks configs/blog.yaml --model_name_or_path small --block_size 64"
    assert "title" not in run(place, look, "--cache_dir", "cache", "--train_file", "posts/")
    assert evaluations(place / "out/blog")


def test_prompts_and_stories(place):
    """One epoch: the perplexity before and after, and a learning rate that warms up over a tenth of the steps."""
    (place / "prompts.txt").write_text("".join(f"[ WP ] Tale {number} , please .\n" for number in range(200)))
    stories = (" <newline> ".join(make_text(4, number).split("\n")) for number in range(200))
    (place / "stories.txt").write_text("".join(f"`` {story} ''\n" for story in stories))
    command = shown("python run_clm.py configs/prompts_and_stories.yaml")
    out = run(place, command, "--model_name_or_path", "small", "--block_size", "64", "--cache_dir", "cache",
              "--logging_steps", "1", "--learning_rate", "0.01")  # fmt: skip
    before, after = evaluations(place / "out/stories")
    assert after["eval/perplexity"] < before["eval/perplexity"]
    assert re.search(r"train +190 ", out)
    assert after["train/global_step"] == 12  # 190 pairs, 16 a step
    settings = yaml.safe_load((ROOT / "configs/prompts_and_stories.yaml").read_text())
    assert (settings["block_size"], settings["num_train_epochs"], settings["num_warmup_steps"]) == (
        512,
        1,
        0.1,
    )


def test_one_play_with_windows(place):
    command = shown("python run_clm.py configs/one_play.yaml")
    out = run(place, command, "--train_file", "mine.txt", "--cache_dir", "cache",
              "--max_train_steps", "1", "--eval_on_start", "false")  # fmt: skip
    assert "3,000 of them random windows" in out
    assert yaml.safe_load((place / "out/one_play/config.yaml").read_text())["block_size"] == 140


def test_normalizers_are_compared_in_one_figure(place):
    command = shown("python run_clm.py configs/normalizers.yaml")
    for form in ("none", "nfd"):
        run(place, command.replace("$form", form), *TINY, *SHORT)
    out = run(place, "python -m stylegen.report out/normalizers/none out/normalizers/nfd")
    assert (place / "out/normalizers/comparison.png").stat().st_size > 10_000
    assert "comparison.png" in out
    assert shown("python -m stylegen.report") == "python -m stylegen.report out/normalizers/*"


def test_a_look_at_the_blocks_trains_nothing(place):
    out = run(
        place,
        "python -m stylegen.blocks configs/one_play.yaml --train_file mine.txt --output_dir look",
        "--cache_dir",
        "cache",
    )
    assert out.count("--- train block") == 3
    assert "documents          count" in out
    assert "kept 100.00 % of the" in out
    assert (place / "look.lengths.png").stat().st_size > 5_000
    assert not (place / "look").exists()


def test_a_look_marks_borders_prompts_and_padding(place):
    (place / "p.csv").write_text("prompt,story\n" + "".join(f"tell {n},once {n}\n" for n in range(100, 140)))
    out = run(
        place, "python -m stylegen.blocks --train_file p.csv --prompt_column prompt --completion_column story",
        "--completion_only_loss", "--block_size", "40", "--train_tokenizer", "char", "--cache_dir", "cache",
    )  # fmt: skip
    # <|endoftext|>, "tell 123", " <sep> " are not predicted; "once 123" and the end are.
    assert re.search(r"‖⟦<\|endoftext\|>tell (1\d\d) <sep> ⟧once \1<\|endoftext\|>⟦padding x 16⟧", out)
    assert "9 of 40 labels count" in out


def test_a_tokenizer_alone(place):
    out = run(place, shown("python -m stylegen.tokenizer"))
    assert 257 < int(re.search(r"vocabulary +([\d,]+)", out)[1].replace(",", "")) <= 1000
    assert re.search(r"bytes per token  \d\.\d{3}\nunknown tokens   0\.0000%\n", out)
    again = run(place, "python -m stylegen.tokenizer mine.txt --tokenizer_name tokenizer")
    assert re.search(r"tokens +[\d,]+", again)[0] == re.search(r"tokens +[\d,]+", out)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing.txt",), "nothing.txt does not exist"),
        (("mine.txt", "--vocab_size", "20"), "vocab_size is 20, but byte-level BPE needs 257 or more"),
        (
            ("mine.txt", "--tokenizer_name", "small", "--output_dir", "x"),
            "tokenizer_name is measured as it is",
        ),
        (
            ("mine.txt", "--tokenizer_name", "small", "--vocab_size", "500"),
            "both tokenizer_name and vocab_size",
        ),
        (("mine.txt", "--train_tokenizer", "char", "--vocab_size", "500"), "vocab_size is for bpe"),
        (("mine.txt", "--output_dir", "mine.txt/x"), "output_dir mine.txt/x cannot be a folder"),
        ((), "the following arguments are required: files"),
    ],
)
def test_a_tokenizer_that_cannot_be_is_refused(place, arguments, message):
    printed = run(place, "python -m stylegen.tokenizer", *arguments, code=2)
    assert printed.startswith("error: ")
    assert message in printed
