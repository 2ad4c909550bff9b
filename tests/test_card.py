"""The model card, and the way to the hub: what the card says is so, and only what may leave does."""

import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState
from conftest import TINY, evaluations, make_text, metrics
from hub_server import TOKEN, HubServer, card_errors
from huggingface_hub import EvalResult, ModelCard, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from markdown_it import MarkdownIt
from test_invariants import stopped_after

from stylegen.config import (
    RankError,
    TrainArguments,
    UsageError,
    check_arguments,
    parse_arguments,
    stay_local,
)
from stylegen.config.checks import is_repository
from stylegen.report.card import write_card
from stylegen.report.record import RunRecord
from stylegen.train import main as train_main
from stylegen.train.publish import check_login, publish

HOSTILE = "no: \"1.0\" 'x' #<script>alert(1)</script> `a` | *b* [c](d) ---"
HOSTILE_TEXT = "<script>alert('1')</script>\n```\n# not a heading\n</details>\n---\n{{ name }} <img src=x>"
MODEL = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A small real run whose best model is not its last, not to be changed."""
    folder = tmp_path_factory.mktemp("card")
    (folder / "text.txt").write_text(make_text(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        AcceleratorState._reset_state(reset_partial_state=True)
        code = train_main([
            "--train_file", str(folder / "text.txt"), *TINY, "--mixed_precision", "no", "--max_train_steps", "8",
            "--eval_steps", "4", "--logging_steps", "2", "--sample_steps", "4", "--sample_prompts", "the king",
            "--learning_rate", "1e-2", "--output_dir", str(folder / "run"), "--data_license", "cc-by-4.0",
        ])  # fmt: skip
        assert code == 0
    rows = metrics(folder / "run")
    for row in rows:
        if row["train/global_step"] == 8 and "eval/loss" in row:
            row |= {"eval/loss": 9.0}
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_card(RunRecord.read(folder / "run"))
    return folder / "run"


@pytest.fixture
def run_dir(finished, tmp_path) -> Path:
    """A copy of all of it but the checkpoints."""
    return Path(
        shutil.copytree(finished, tmp_path / "mine", ignore=shutil.ignore_patterns("checkpoint-*", "*.html"))
    )


def change_settings(folder: Path, **values) -> None:
    settings = yaml.safe_load((folder / "config.yaml").read_text()) | values
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def card_of(folder: Path, repository: str | None = None) -> ModelCard:
    write_card(RunRecord.read(folder), repository)
    text = (folder / "README.md").read_text()
    assert card_errors(text) == []
    return ModelCard.load(folder / "README.md")


def snippet(card: ModelCard) -> str:
    return re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]


def written_by(card: ModelCard) -> str:
    """What the code of the card prints."""
    output = io.StringIO()
    with redirect_stdout(output):
        exec(snippet(card), {})
    return output.getvalue()


# --- the card


def test_the_card_parses_back_with_every_field(finished):
    card = ModelCard.load(finished / "README.md")
    (best,) = [row for row in evaluations(finished) if row["train/global_step"] == 4]
    same = {
        "task_type": "text-generation", "task_name": "Text generation", "dataset_type": "text",
        "dataset_name": "Validation text", "dataset_split": "validation",
    }  # fmt: skip
    named = {
        "loss": "Validation loss (nats per token)", "accuracy": "Share of next tokens that are right",
        "perplexity": "Perplexity", "bits_per_byte": "Bits per byte",
    }  # fmt: skip
    assert card.data.eval_results == [
        EvalResult(
            **same, metric_type=kind, metric_name=words, metric_value=pytest.approx(best[f"eval/{kind}"], abs=1e-6)
        )
        for kind, words in named.items()
    ]  # fmt: skip
    assert card.data.model_name == "run"
    told = {name: value for name, value in card.data.to_dict().items() if name != "model-index"}
    assert told == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["stylegen", "gpt2"],
    }  # fmt: skip
    assert card_errors(card.content) == []
    assert str(ModelCard(card.content)) == card.content == (finished / "README.md").read_text()


def test_the_card_says_how_good_the_model_is_and_how_it_was_made(finished):
    card = ModelCard.load(finished / "README.md")
    start, best, _ = evaluations(finished)
    rows = [line.strip("| ").split(" | ") for line in card.text.splitlines() if line.startswith("|")]
    assert rows[2:] == [
        ["Validation loss (nats per token)", f"{start['eval/loss']:.4f}", f"{best['eval/loss']:.4f}"],
        [
            "Share of next tokens that are right",
            f"{start['eval/accuracy']:.2%}",
            f"{best['eval/accuracy']:.2%}",
        ],
        ["Perplexity", f"{start['eval/perplexity']:.2f}", f"{best['eval/perplexity']:.2f}"],
        ["Bits per byte", f"{start['eval/bits_per_byte']:.4f}", f"{best['eval/bits_per_byte']:.4f}"],
    ]
    assert "A gpt2 model trained from scratch with stylegen." in card.text
    assert "![Training and validation loss by epoch](figures/loss.png)" in card.text
    facts = dict(re.findall(r"^- \*\*(\w+)\*\*: (.*)$", card.text, re.MULTILINE))
    assert facts.keys() == {
        "Text", "Tokenizer", "Length", "Batch", "Optimizer", "Precision", "Hardware", "Time", "Software",
    }  # fmt: skip
    tokens = metrics(finished)[-1]["train/tokens_seen"]
    assert facts["Text"] == "`text.txt`; 5 % of it were kept apart for the evaluation"
    assert facts["Tokenizer"] == "characters, trained on the text"
    assert facts["Length"].startswith("8 steps, ") and f"{tokens:,} tokens" in facts["Length"]
    assert facts["Length"].endswith("; the best model, which is this one, is that of step 4")
    assert facts["Batch"] == "8 blocks of 32 tokens a step, 256 tokens; packing stream"
    assert facts["Optimizer"] == (
        "adamw, learning rate 0.01, schedule linear, weight decay 0.0, gradients clipped to 1.0, seed 42"
    )
    assert facts["Precision"] == "weights float32" and facts["Hardware"] == "1 process on cpu"
    assert "As given by who trained the model: cc-by-4.0." in card.text


def test_the_sample_is_that_of_the_model_which_was_kept(finished):
    card = ModelCard.load(finished / "README.md")
    texts = {path.name: path.read_text().partition("\n")[2] for path in (finished / "samples").iterdir()}
    assert texts.keys() == {"step-000004.txt", "step-000008.txt"}
    assert "After step 4 (step 4, " in card.text
    assert texts["step-000004.txt"] in card.text and texts["step-000008.txt"] not in card.text


def test_what_is_copied_is_told_of_the_model_that_was_kept(run_dir):
    style = {"style/longest_copy": 12.0, "style/copy_rate_validation": 0.001}
    for step, rate in ((4, 0.0213), (8, 0.9)):
        row = {
            "style/copy_rate": rate,
            **style,
            "train/global_step": step,
            "train/epoch": 1,
            "train/tokens_seen": 1,
        }
        with open(run_dir / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
    text = card_of(run_dir).text
    assert "how much of it was not measured" not in text
    assert "2.13% of its 8-grams stand in the training text" in text and "90.00%" not in text


def test_what_the_card_repeats_the_run_with_is_a_preset_without_folders(run_dir, tmp_path):
    change_settings(run_dir, hub_model_id="somebody/else", project="secret plans")
    text = card_of(run_dir).text
    assert str(tmp_path.parent) not in text and "secret plans" not in text
    (tmp_path / "preset.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    again = parse_arguments(TrainArguments, [str(tmp_path / "preset.yaml")], positional="preset", usage="")
    first = parse_arguments(TrainArguments, [str(run_dir / "config.yaml")], positional="preset", usage="")
    apart = {"output_dir": "", "run_name": None, "project": "", "hub_model_id": None, "data_license": None}
    assert replace(again, **apart) == replace(first, **apart, train_file=["text.txt"])
    assert "python run_clm.py preset.yaml --output_dir out/mine\n" in text


def test_the_code_of_the_card_writes_a_text(run_dir, tmp_path, monkeypatch):
    """By the name that it has on the hub, under which a folder is found first."""
    shutil.copytree(run_dir, tmp_path / "somebody" / "model")
    monkeypatch.chdir(tmp_path)
    card = card_of(run_dir, "somebody/model")
    assert 'model="somebody/model"' in snippet(card)
    assert re.match("the king.", written_by(card), re.DOTALL)


@pytest.mark.parametrize("name", ["org/model", "gpt2", "no", "1.0"])
def test_a_base_model_of_the_hub_is_named(run_dir, name):
    change_settings(run_dir, model_name_or_path=name)
    card = card_of(run_dir)
    assert (card.data.base_model, card.data.base_model_relation) == (name, "finetune")
    assert f"`{name}` fine-tuned with stylegen." in card.text
    assert f"The licence of `{name}` holds as well." in card.text


@pytest.mark.parametrize("name", ["{here}/base", "base", "../base", HOSTILE])
def test_a_base_model_of_this_machine_is_named_without_its_folder(run_dir, tmp_path, monkeypatch, name):
    """Where the run was started there is such a folder; where the card is written there need not be."""
    (tmp_path / "base").mkdir()
    change_settings(run_dir, model_name_or_path=name.format(here=tmp_path), output_dir="mine")
    monkeypatch.chdir("/")
    card = card_of(run_dir)
    assert card.data.base_model is card.data.get("base_model_relation") is None
    assert str(tmp_path) not in card.content and ".." not in card.text.partition("\n## ")[0]
    if name != HOSTILE:
        assert "`base` fine-tuned with stylegen." in card.text
    assert "holds as well" not in card.text


def test_a_dataset_of_the_hub_is_named(run_dir):
    change_settings(run_dir, dataset_name="somebody/poems", dataset_config_name="old", train_file=[])
    card = card_of(run_dir)
    assert card.data.datasets == ["somebody/poems"]
    assert {(each.dataset_type, each.dataset_name) for each in card.data.eval_results} == {
        ("somebody/poems", "somebody/poems")
    }
    assert "- **Text**: `somebody/poems`, `old`; " in card.text
    change_settings(run_dir, dataset_name="shakespeare")
    assert card_of(run_dir).data.datasets is None


def test_nothing_that_others_wrote_breaks_the_card(run_dir, tmp_path):
    folder = run_dir.rename(tmp_path / HOSTILE.replace("/", ""))
    for path in (folder / "samples").iterdir():
        path.write_text(HOSTILE_TEXT)
    change_settings(
        folder, model_name_or_path=HOSTILE, train_file=[HOSTILE], tokenizer_name=HOSTILE,
        data_license=f"{HOSTILE}\n# and a heading", hub_model_id=HOSTILE, sample_prompts=[HOSTILE_TEXT],
    )  # fmt: skip
    card = card_of(folder)
    assert card.data.model_name == folder.name
    tokens = MarkdownIt("commonmark").enable("table").parse(card.text)
    assert [token.content.strip() for token in tokens if token.type == "html_block"] == [
        "<details><summary>preset.yaml</summary>", "</details>",
    ]  # fmt: skip
    inline = [part for token in tokens for part in token.children or ()]
    assert {part.type for part in inline}.isdisjoint({"html_inline", "link_open", "em_open"})
    headings = [
        after.content for token, after in itertools.pairwise(tokens)
        if token.type == "heading_open" and token.tag == "h2"
    ]  # fmt: skip
    assert len([token for token in tokens if token.type == "heading_open" and token.tag == "h1"]) == 1
    assert headings == [
        "How to use it", "What it writes", "How it was trained", "Licence of the training text", "Limits",
        "How to train it again",
    ]  # fmt: skip
    assert HOSTILE_TEXT + "\n" in [token.content for token in tokens if token.type == "fence"]
    (code,) = [token.content for token in tokens if token.type == "fence" and token.info == "python"]
    compile(code, "card", "exec")


def test_a_run_that_has_measured_nothing_yet_has_a_card(run_dir):
    rows = [row for row in metrics(run_dir) if "train/loss" in row]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("samples", "figures"):
        shutil.rmtree(run_dir / name)
    for name in ("environment.json", "config.json"):
        (run_dir / name).unlink()
    card = card_of(run_dir)
    assert card.data.eval_results is None and "model-index" not in card.content
    assert "before training" not in card.text and "What it writes" not in card.text and "](" not in card.text


def test_a_number_that_yaml_of_the_hub_does_not_know_is_left_out(run_dir):
    rows = [
        row | {"eval/perplexity": float("inf")} if "eval/loss" in row else row for row in metrics(run_dir)
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = card_of(run_dir)
    assert [each.metric_type for each in card.data.eval_results] == ["loss", "accuracy", "bits_per_byte"]


# --- arguments


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--hub_model_id me/mine", "hub_model_id is for models on the hub; give --push_to_hub too, or leave"),
        ("--hub_private_repo false", "hub_private_repo is for models on the hub; give --push_to_hub too"),
        ("--push_to_hub --hub_model_id a/b/c", r"hub_model_id, 'a/b/c', cannot be that of a model on the hub"),
        ("--push_to_hub --output_dir out/my..model", "the name of output_dir, 'my..model', cannot be that"),
        ("--data_license=", "data_license is empty; give the name of the licence, or leave it out"),
    ],
)  # fmt: skip
def test_what_cannot_go_to_the_hub_is_refused_with_a_remedy(flags, message):
    arguments = parse_arguments(
        TrainArguments, ["--train_file", "a.txt", *flags.split()], positional="preset", usage=""
    )
    with pytest.raises(UsageError, match=message):
        check_arguments(arguments)


@pytest.mark.parametrize(
    "name",
    [
        "a", "me/mine", "Foo-BAR_foo.bar123", "_a_", "x" * 96, "x" * 97, "a/" + "x" * 97, "", "/", "a/", "/a", "a/b/c",
        "-a", "a-", ".a", "a.", "a/-b", "a-/b", "a--b", "a..b", "a.git", "a.git/b", "café", "a b", "a\n", "mine:1",
    ],
)  # fmt: skip
def test_names_are_those_that_the_library_of_the_hub_takes(name):
    try:
        validate_repo_id(name)
        expected = True
    except HFValidationError:
        expected = False
    assert is_repository(name) == expected


# --- before the training begins


@pytest.fixture
def hub(monkeypatch):
    """The stand-in, which the hub's library in this process goes to, logged in."""
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        assert server.unknown == []
        assert not [sent for sent in server.requests if TOKEN in f"{sent.path}{sent.body!r}"]
        holders = {name for sent in server.requests for name, value in sent.headers.items() if TOKEN in value}
        assert holders <= {"authorization"}


def test_without_a_token_nothing_begins(hub, train, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    folder = train("run", "--push_to_hub", code=2)
    assert not folder.exists() and hub.requests == []
    assert capsys.readouterr().err == (
        "error: push_to_hub needs a token that may write; log in with hf auth login, or set HF_TOKEN in the "
        "environment\n"
    )
    monkeypatch.setenv("RANK", "1")  # another process pushes
    check_login(TrainArguments(push_to_hub=True))


def test_a_login_of_the_hub_is_a_token(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text(TOKEN)
    check_login(TrainArguments(push_to_hub=True))
    assert hub.requests == []


def test_a_hub_that_is_forbidden_is_told_before_anything_begins(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UsageError, match="push_to_hub needs the hub, which HF_HUB_OFFLINE or TRANSFORMERS_OFF"
    ):
        check_login(TrainArguments(push_to_hub=True))
    check_login(TrainArguments())


def test_only_a_push_leaves_the_hub_within_reach(monkeypatch):
    for push in (False, True):
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            monkeypatch.setenv(name, "0")
        stay_local(TrainArguments(push_to_hub=push))
        assert (os.environ["HF_HUB_OFFLINE"], os.environ["HF_DATASETS_OFFLINE"]) == (
            "0" if push else "1", "1",
        )  # fmt: skip


# --- the push


def arguments_for(folder: Path, **values) -> TrainArguments:
    return TrainArguments(output_dir=str(folder), push_to_hub=True, **values)


def test_a_push_is_the_model_and_its_card_byte_for_byte_and_private(hub, run_dir):
    assert publish(arguments_for(run_dir)) == f"{hub.url}/tester/mine"
    repository = hub.repositories["tester/mine"]
    assert repository.is_private
    assert repository.files.keys() == {*MODEL, "README.md", "figures/loss.png"}
    assert all(content == (run_dir / path).read_bytes() for path, content in repository.files.items())
    assert 'model="tester/mine"' in repository.files["README.md"].decode()
    assert len(repository.commits) == 1
    assert not [sent for sent in hub.requests if str(run_dir.parent).encode() in sent.body]


def test_a_second_push_changes_what_has_changed(hub, run_dir):
    publish(arguments_for(run_dir))
    publish(arguments_for(run_dir))
    repository = hub.repositories["tester/mine"]
    assert len(repository.commits) == 1  # nothing was new
    repository.files |= {"model-00002-of-00002.safetensors": b"old", "notes.txt": b"theirs"}
    (run_dir / "model.safetensors").write_bytes(b"new")
    publish(arguments_for(run_dir))
    assert repository.commits[1][1] == ["model.safetensors", "model-00002-of-00002.safetensors"]
    assert repository.files.keys() == {*MODEL, "README.md", "figures/loss.png", "notes.txt"}


def test_what_everybody_can_see_is_pushed_to_only_when_asked(hub, run_dir):
    publish(arguments_for(run_dir, hub_model_id="tester/open", hub_private_repo=False))
    repository = hub.repositories["tester/open"]
    assert not repository.is_private and "model.safetensors" in repository.files
    before = dict(repository.files)
    (run_dir / "model.safetensors").write_bytes(b"secret")
    with pytest.raises(
        RankError, match="everybody can see what is there; give --hub_private_repo false"
    ) as told:
        publish(arguments_for(run_dir, hub_model_id="tester/open"))
    assert repository.files == before and "hf upload" not in str(told.value)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "the hub does not take the token; log in again with hf auth login, or set HF_TOKEN in the environment"),
        (403, "the token may not write there; take one that may, or another --hub_model_id"),
        (500, r"Server error '500 Internal Server Error' for url '.*'"),
        (None, "ConnectError: .*"),
    ],
)  # fmt: skip
def test_a_push_that_fails_says_why_and_how_to_repeat_it(hub, run_dir, status, reason):
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    if status:
        hub.status = status
    else:
        hub.stop()
        hub.start = lambda: hub
    with pytest.raises(RankError) as told:
        publish(arguments_for(run_dir))
    assert re.fullmatch(
        rf"the finished model is in {run_dir}, but not on the hub as mine: {reason}\. When that is put right: the same "
        rf"command again, or hf upload mine {run_dir} \. --private --include .*",
        str(told.value),
    )
    assert TOKEN not in str(told.value)
    assert before == {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def test_somebody_elses_name_is_refused_there(hub, run_dir):
    with pytest.raises(RankError, match="as other/mine: the token may not write there"):
        publish(arguments_for(run_dir, hub_model_id="other/mine"))


def test_a_card_that_the_hub_refuses_is_told(hub, run_dir, monkeypatch):
    monkeypatch.setattr("hub_server.card_errors", lambda card: ["tags is no list"])
    with pytest.raises(RankError, match=r"Invalid metadata in README.md\. - tags is no list"):
        publish(arguments_for(run_dir))
    assert hub.repositories["tester/mine"].files == {}


def test_the_command_that_is_named_pushes_the_same_files(hub, run_dir):
    hub.status = 500
    with pytest.raises(RankError) as told:
        publish(arguments_for(run_dir))
    hub.status = 200
    words = shlex.split(str(told.value).rpartition(", or ")[2])
    assert words[0] == "hf"
    command = [str(Path(sys.executable).parent / "hf"), *words[1:]]
    done = subprocess.run(command, env={**os.environ, **hub.environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["tester/mine"]
    assert repository.is_private
    assert repository.files.keys() == {*MODEL, "README.md", "figures/loss.png"}
    assert all(content == (run_dir / path).read_bytes() for path, content in repository.files.items())


# --- the push of the command


def test_a_run_pushes_when_it_is_finished_and_a_failed_push_is_repeated_by_the_same_command(
    hub, train, monkeypatch, capsys
):
    flags = ("--max_train_steps", "4", "--push_to_hub", "--hub_model_id", "poet")
    with monkeypatch.context() as patch:
        stopped_after(2, patch)
        folder = train("run", *flags)
    assert hub.requests == []  # a model that is not finished stays here
    hub.status = 500
    capsys.readouterr()
    train("run", *flags, code=1)
    output, log = capsys.readouterr()
    assert "model       " in output and "hub         " not in output
    assert [line for line in log.splitlines() if line.startswith("error: the finished model is in ")]
    weights = (folder / "model.safetensors").read_bytes()
    hub.status = 200
    train("run", *flags)
    assert capsys.readouterr().out.splitlines()[-1] == f"hub         {hub.url}/tester/poet"
    assert hub.repositories["tester/poet"].files["model.safetensors"] == weights
    assert yaml.safe_load((folder / "config.yaml").read_text())["hub_model_id"] == "poet"
    num_requests = len(hub.requests)
    train("run", "--max_train_steps", "4")  # not asked for
    assert len(hub.requests) == num_requests


def test_an_adapter_goes_without_the_folder_of_its_base_model(
    hub, train, model_folder, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("peft")
    flags = (
        "--model_name_or_path",
        str(model_folder),
        "--max_train_steps",
        "2",
        "--push_to_hub",
        "--lora_r",
        "2",
    )
    folder = train("adapted", *flags, "--sample_prompts", "the king", tiny=False)
    assert "warning: the adapter needs its base model, " in capsys.readouterr().err
    files = hub.repositories["tester/adapted"].files
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    told = json.loads(files["adapter_config.json"])
    here = json.loads((folder / "adapter_config.json").read_text())
    assert here.pop("base_model_name_or_path") == str(model_folder)
    assert (told.pop("base_model_name_or_path"), told) == ("tiny", here)
    sent = b"".join(sent.body for sent in hub.requests) + b"".join(files.values())
    assert str(tmp_path).encode() not in sent and str(model_folder.parent).encode() not in sent
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "peft" and card.data.base_model is None and "lora" in card.data.tags
    assert "A LoRA adapter for `tiny`, trained with stylegen" in card.text
    for name, place in (("tiny", model_folder), ("tester/adapted", folder)):
        shutil.copytree(place, tmp_path / "elsewhere" / name)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert written_by(card).startswith("the king")

    train("adapted", *flags, "--merge_lora", tiny=False)  # the whole model takes its place
    files = hub.repositories["tester/adapted"].files
    assert "model.safetensors" in files and not [name for name in files if name.startswith("adapter")]
    assert ModelCard.load(folder / "README.md").data.library_name == "transformers"


def test_an_adapter_names_its_base_model_of_the_hub(run_dir):
    change_settings(run_dir, model_name_or_path="org/base", model_revision="v2", lora_r=4, model_type=None)
    for name in ("config.json", "model.safetensors"):
        (run_dir / name).unlink()
    (run_dir / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    card = card_of(run_dir)
    data = card.data
    assert (data.library_name, data.base_model, data.base_model_relation) == ("peft", "org/base", "adapter")
    assert 'AutoModelForCausalLM.from_pretrained("org/base", revision="v2")\n' in snippet(card)
    assert "- **Adapter**: LoRA of rank 4, alpha 8, layers: all linear ones but the output" in card.text


@pytest.mark.slow
def test_the_real_command_asks_the_hub_for_nothing_but_the_push(command, text_file, tmp_path):
    with HubServer() as server:
        done = command(
            "run_clm.py", "--train_file", str(text_file), *TINY, "--max_train_steps", "2", "--push_to_hub",
            "--output_dir", str(tmp_path / "poet"), environment=server.environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert [(sent.method, sent.path) for sent in server.requests] == [
            ("POST", "/api/repos/create"), ("GET", "/api/models/tester/poet"), ("POST", "/api/validate-yaml"),
            ("POST", "/api/models/tester/poet/preupload/main"), ("POST", "/api/models/tester/poet/commit/main"),
        ]  # fmt: skip
        assert server.repositories["tester/poet"].is_private
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.slow
def test_of_several_processes_one_pushes_and_one_that_fails_ends_the_job(launch, tmp_path):
    flags = ("--max_train_steps", "2", "--push_to_hub", "--output_dir", str(tmp_path / "poet"))
    with HubServer() as server:
        server.status = 500
        code, _, log = launch("ddp", *flags, **server.environment)
        assert code == 1 and "error: rank 0 on " in log and "the finished model is in " in log
        server.status, server.requests = 200, []
        code, output, log = launch("ddp", *flags, **server.environment)
        assert code == 0, log
        assert output.splitlines()[-1] == f"hub         {server.url}/tester/poet"
        assert len(server.repositories["tester/poet"].commits) == 1 and len(server.requests) == 5
