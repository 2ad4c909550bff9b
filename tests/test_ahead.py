"""A text prepared while the libraries are imported: the same cache and errors, nothing left of one not used."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import ROOT, make_text

from stylegen.blocks import prepare_text
from stylegen.blocks.ahead import MOST_BYTES, begin_text
from stylegen.config import TrainArguments, UsageError, resolve_arguments
from stylegen.corpus import find_sources
from stylegen.tokenizer import as_pretrained, train_backend


@pytest.fixture
def arguments(tmp_path, text_file):
    return TrainArguments(
        train_file=[str(text_file)], cache_dir=str(tmp_path / "cache"), train_tokenizer="bpe", vocab_size=300
    )


def files_below(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def begin(arguments):
    return begin_text(arguments, *find_sources(arguments))


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_it_is_the_cache_that_is_made_without_it(tmp_path, arguments, kind):
    arguments = replace(arguments, train_tokenizer=kind, vocab_size=300 if kind == "bpe" else None)
    ahead = begin(arguments)
    assert ahead is not None
    cache = ahead.result()
    ahead.leave()
    other = replace(arguments, cache_dir=str(tmp_path / "other"))
    plain = prepare_text(resolve_arguments(other, 1), *find_sources(other))
    assert cache.fingerprints == plain.fingerprints
    assert files_below(tmp_path / "cache") == files_below(tmp_path / "other") != {}


def test_what_is_there_is_opened_and_not_made_again(tmp_path, arguments):
    begin(arguments).result()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    ahead = begin(arguments)
    assert len(ahead.result().tokenizer) == 300
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == made


def test_nothing_is_left_of_one_that_nobody_asked_for(tmp_path, arguments):
    ahead = begin(arguments)
    ahead.leave()
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(begin(arguments).result().tokenizer) == 300  # its lock is free again


def test_what_is_wrong_with_the_text_is_told_when_it_is_asked_for(tmp_path, arguments):
    (tmp_path / "text.txt").write_text(" \n")
    ahead = begin(arguments)
    with pytest.raises(UsageError, match="is empty; give a file with text in it"):
        ahead.result()
    assert list((tmp_path / "cache").iterdir()) == []


def test_it_is_for_one_process_and_small_files_of_text(tmp_path, arguments, monkeypatch):
    table = tmp_path / "table.jsonl"
    table.write_text(json.dumps({"text": "a"}) + "\n")
    assert begin(replace(arguments, train_file=[str(table)])) is None
    assert begin(replace(arguments, validation_file=[str(table)])) is None
    large = tmp_path / "large.txt"
    with open(large, "wb") as file:
        file.truncate(MOST_BYTES + 1)
    assert begin(replace(arguments, train_file=[str(large)])) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert begin(arguments) is None


@pytest.mark.parametrize("kind", ["bpe", "char"])
@pytest.mark.parametrize("special", [(), ("<sep>", "<a b>")])
@pytest.mark.parametrize("normalizer", ["none", "nfkd"])
def test_a_tokenizer_of_transformers_changes_no_ids_of_the_one_in_it(kind, special, normalizer):
    text = make_text(40) + "é<sep>é"
    backend = train_backend(kind, [[text]], len(text), 300 if kind == "bpe" else None, normalizer, 0, special)
    tokenizer = as_pretrained(backend, special)
    bare, wrapped = (json.loads(each.to_str()) for each in (backend, tokenizer.backend_tokenizer))
    del (
        bare["post_processor"],
        wrapped["post_processor"],
    )  # adds special tokens around a text, and here there are none
    assert bare == wrapped
    assert tokenizer.eos_token_id == backend.token_to_id("<|endoftext|>") == 0


def test_libraries_that_a_start_does_not_need_are_not_imported():
    """Neither by the thread, which must not import what the main thread does, nor before the first step."""
    code = """if True:
        import sys
        import stylegen.blocks.ahead
        print([name for name in ("torch", "transformers", "datasets", "accelerate") if name in sys.modules])
        import stylegen.train.run
        names = "datasets", "pandas", "pyarrow", "matplotlib", "wandb", "deepspeed", "scipy", "sklearn", "torchvision"
        print([name for name in names if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["[]", "[]"]


def test_a_mistake_found_meanwhile_is_told_alone_and_leaves_nothing(tmp_path, text_file, command):
    done = command(
        "run_clm.py", "--train_file", str(text_file), "--output_dir", "out", "--config_overrides", "n_lajer=2"
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: config_overrides names n_lajer, which a gpt2")
    assert "Traceback" not in done.stderr and "tokenizing" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert files_below(tmp_path / "cache") == {}


def test_the_log_tells_of_the_text_once_and_in_its_place(text_file, command):
    flags = (
        "--config_overrides",
        "n_layer=1,n_head=1,n_embd=8",
        "--block_size",
        "16",
        "--max_train_steps",
        "1",
    )
    done = command("run_clm.py", "--train_file", str(text_file), "--output_dir", "out", *flags)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert [line for line in lines if "tokenizing" in line] == [lines[0]]
    assert lines[1].startswith("documents")
