"""The writing command: files that are gone on with, sessions, comparisons, and what it refuses."""

import contextlib
import html.parser
import io
import itertools
import json
import os
import pty
import re
import signal
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ACCELERATE, ROOT, make_text
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from stylegen.config import UsageError, check_arguments, parse_arguments
from stylegen.config.commands import GenerateArguments
from stylegen.generate import main
from stylegen.generate.plan import Plan
from stylegen.generate.prompts import Prompt
from stylegen.model import build_model, save_model, scratch_config
from stylegen.tokenizer import END_OF_TEXT

LINES = make_text(250).splitlines()
PROMPTS = [line for line in LINES if line][:200]
EXACT = ("--dtype", "float32")  # whatever the machine multiplies


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Two models of letters, whose logits differ enough for every text to be another."""
    words = [END_OF_TEXT, *sorted(set(make_text(200) + string.ascii_letters))]
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    backend.decoder = decoders.Fuse()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    overrides = {"n_layer": 2, "n_head": 2, "n_embd": 32, "initializer_range": 0.3}
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = scratch_config("gpt2", None, overrides, block_size=64)
        model = build_model(config, tokenizer, dtype="float32", attn_implementation=None)
        made.append(tmp_path_factory.mktemp("models") / f"model{seed}")
        save_model(model, tokenizer, made[-1])
    return made


@pytest.fixture
def write(folders, tmp_path, monkeypatch, capsys):
    """`write("--flag", ...)` runs the command in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: str, lines: str | None = None, models: int = 1) -> tuple[int, str, str]:
        if lines is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        code = main([*map(str, folders[:models]), *EXACT, "--max_new_tokens", "12", *flags])
        return code, *capsys.readouterr()

    return run


def rows_of(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def in_a_child(*arguments: str) -> None:
    """The command in a fork of this process, which saves the seconds that its imports take."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs the tests may ignore it
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        code = main([*arguments, *EXACT])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def signal_at(call: str, count: int, number: int) -> None:
    """Have this process signalled right after the `count`th call of that name in output.py."""
    calls = itertools.count(1)

    def watch(frame, event, function):
        of_rows = frame.f_code.co_filename.endswith("generate/output.py") and event == "c_return"
        if of_rows and function.__name__ == call and next(calls) == count:
            signal.raise_signal(number)

    sys.setprofile(watch)


# --- files


@pytest.fixture
def prompt_file(tmp_path) -> str:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    return "prompts.jsonl"


def test_a_row_holds_all_that_its_text_comes_from(write):
    assert write("--prompt", "the king", "--output", "a.jsonl", "--stop", "zz", "--seed", "3")[0] == 0
    (row,) = rows_of("a.jsonl")
    assert row.pop("text") and row.pop("checkpoint").endswith("model1")
    assert row == {
        "prompt": "the king", "number": 0, "temperature": 0.8, "seed": 3, "max_new_tokens": 12, "top_k": 0,
        "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "num_beams": 1, "stop": ["zz"], "bad_words": [],
        "dtype": "float32",
    }  # fmt: skip


def test_a_batch_that_was_killed_goes_on_to_the_same_file(write, folders, prompt_file):
    """200 prompts, SIGKILL in the middle, the same command again."""
    flags = ("--prompt_file", prompt_file, "--batch_size", "8", "--max_new_tokens", "6")
    assert write(*flags, "--output", "whole.jsonl")[0] == 0
    whole = Path("whole.jsonl").read_bytes()
    child = os.fork()
    if not child:
        signal_at("flush", 70, signal.SIGSTOP)  # it would be done before a busy machine comes to kill it
        in_a_child(str(folders[0]), *flags, "--output", "killed.jsonl")
    assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    there = Path("killed.jsonl").read_bytes()
    assert there.count(10) == 70 and whole.startswith(there)
    _, _, log = write(*flags, "--output", "killed.jsonl")
    assert log == f"killed.jsonl goes on after {there.count(10):,} texts\n"
    assert Path("killed.jsonl").read_bytes() == whole
    assert [row["prompt"] for row in rows_of("killed.jsonl")] == PROMPTS


@pytest.mark.parametrize("size", [0, 1, 1000, -1])
def test_a_file_cut_anywhere_is_made_whole(write, size):
    flags = ("--prompt", *"abcdefg", "--temperature", "0.7,1.1", "--batch_size", "3", "--output", "a.jsonl")
    write(*flags)
    whole = Path("a.jsonl").read_bytes()
    Path("a.jsonl").write_bytes(whole[:size])
    assert write(*flags)[0] == 0
    assert Path("a.jsonl").read_bytes() == whole
    assert len(rows_of("a.jsonl")) == 14


def test_a_complete_file_is_told_and_loads_no_model(write, folders):
    write("--prompt", "a", "--output", "a.jsonl")
    before = Path("a.jsonl").stat().st_mtime_ns
    (folders[0] / "model.safetensors").rename(folders[0] / "away")
    try:
        code, output, log = write("--prompt", "a", "--output", "a.jsonl")
    finally:
        (folders[0] / "away").rename(folders[0] / "model.safetensors")
    assert (code, output, log) == (0, "", "a.jsonl is complete with 1 texts\n")
    assert Path("a.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--prompt", "b"), 'row 1 has prompt "a", and this command "b"'),
        (("--prompt", "a", "--temperature", "0.9"), "row 1 has temperature 0.8, and this command 0.9"),
        (("--prompt", "a", "--stop", "x"), 'row 1 has stop [], and this command ["x"]'),
        (("--prompt", "a", "--num_return_sequences", "1"), "row 2 is one more than this command writes"),
        (("--prompt", "a", "--tokenizer_name", "x"), 'row 1 has tokenizer_name null, and this command "x"'),
    ],
)
def test_a_file_of_another_command_is_refused_and_begun_anew_when_asked(write, flags, why):
    write("--prompt", "a", "--num_return_sequences", "2", "--output", "a.jsonl")
    before = Path("a.jsonl").read_bytes()
    code, _, log = write(*flags, "--output", "a.jsonl")
    assert code == 2
    assert log == (
        f"error: output a.jsonl is of another command: {why}; choose another file, or begin it anew with "
        f"--overwrite_output\n"
    )
    assert Path("a.jsonl").read_bytes() == before
    if "--tokenizer_name" not in flags:
        assert write(*flags, "--output", "a.jsonl", "--overwrite_output")[0] == 0
        assert Path("a.jsonl").read_bytes() != before


@pytest.mark.parametrize("line", ["no json", "[1]", '{"prompt": "a"}', "[" * 20_000])
def test_a_file_of_something_else_is_left_alone(write, line):
    Path("a.jsonl").write_text(f"{line}\n")
    code, _, log = write("--prompt", "a", "--output", "a.jsonl")
    assert (code, Path("a.jsonl").read_text()) == (2, f"{line}\n")
    assert "row 1 is no text of generate.py" in log


def test_a_file_without_a_line_end_is_left_alone_too(write, tmp_path):
    """It is no torn row: the prompts themselves, for example."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "hello"}')
    code, _, error = write("--prompt_file", "p.jsonl", "--output", "p.jsonl")
    assert code == 2 and "ends in a line that is no text of this command" in error
    assert (tmp_path / "p.jsonl").read_text() == '{"prompt": "hello"}'


def test_prompts_of_any_length_come_in_order_with_the_texts_that_they_have_alone(write):
    """40 prompts are more than are sorted together; what is gone on with begins anywhere among those."""
    prompts = [("abcdefg" * 9)[: 1 + 7 * number % 40] for number in range(40)]
    flags = (
        "--prompt",
        *prompts,
        "--temperature",
        "0.7,1.1",
        "--max_new_tokens",
        "5",
        "--num_return_sequences",
        "2",
    )
    write(*flags, "--batch_size", "1", "--output", "alone.jsonl")
    write(*flags, "--batch_size", "4", "--output", "a.jsonl")
    whole = Path("a.jsonl").read_bytes()
    assert whole == Path("alone.jsonl").read_bytes()
    rows = rows_of("a.jsonl")
    assert [row["prompt"] for row in rows] == [prompt for prompt in prompts for _ in range(4)]
    assert [row["number"] for row in rows] == [number for number in range(80) for _ in range(2)]
    for lines in (1, 63, 64, 77, 159):
        end = len(b"".join(whole.splitlines(keepends=True)[:lines]))
        Path("a.jsonl").write_bytes(whole[:end])
        write(*flags, "--batch_size", "4", "--output", "a.jsonl")
        assert Path("a.jsonl").read_bytes() == whole


def test_a_batch_has_prompts_of_similar_length():
    prompts = ["a" * length for length in (9, 1, 8, 2, 7, 3, 6, 4) * 4]
    arguments = GenerateArguments(checkpoints=["x"], batch_size=4)
    plan = Plan(arguments, [Prompt(prompt) for prompt in prompts])
    lengths = [[len(row["prompt"]) for row in batch] for batch in plan.batches()]
    assert lengths == [[length] * 4 for length in (1, 2, 3, 4, 6, 7, 8, 9)]
    assert [row["prompt"] for row in plan.in_order(plan.batches())] == prompts
    # One prompt of many texts: nothing waits.
    many = Plan(GenerateArguments(checkpoints=["x"], num_samples="inf"), [Prompt("a")])
    assert [row["number"] for row in next(many.batches())] == list(range(8))


def test_more_texts_can_be_asked_for_later(write):
    write("--output", "a.jsonl", "--num_samples", "3")
    three = Path("a.jsonl").read_bytes()
    write("--output", "a.jsonl", "--num_samples", "9")
    write("--output", "b.jsonl", "--num_samples", "9")
    assert Path("a.jsonl").read_bytes() == Path("b.jsonl").read_bytes()
    assert Path("a.jsonl").read_bytes().startswith(three)


def test_a_text_file_is_not_gone_on_with(write):
    assert write("--prompt", "a", "b", "--output", "a.txt")[0] == 0
    first = Path("a.txt").read_text()
    assert re.fullmatch(r"a.*\n====\nb.*\n", first, re.DOTALL)
    code, _, log = write("--prompt", "c", "--output", "a.txt")
    assert (code, log) == (
        2, "error: output a.txt exists; choose another file, or begin it anew with --overwrite_output\n",
    )  # fmt: skip
    assert write("--prompt", "c", "--output", "a.txt", "--overwrite_output")[0] == 0
    assert Path("a.txt").read_text().startswith("c")


@pytest.mark.parametrize(
    ("number", "suffix"), [(signal.SIGINT, "jsonl"), (signal.SIGTERM, "jsonl"), (signal.SIGTERM, "txt")]
)
def test_endless_samples_end_cleanly(write, folders, number, suffix):
    path = Path(f"endless.{suffix}")
    child = os.fork()
    if not child:
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT), 2)
        in_a_child(str(folders[0]), "--num_samples", "inf", "--max_new_tokens", "5", "--output", str(path))
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 800):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    content = path.read_text()
    count = content.count("\n====\n") + 1 if suffix == "txt" else content.count("\n")
    assert f"stopped: {path} has {count:,} texts" in Path("log").read_text()
    if suffix == "jsonl":
        write("--num_samples", str(count), "--max_new_tokens", "5", "--output", "counted.jsonl")
        assert Path("counted.jsonl").read_text() == content  # the same texts as with an end


@pytest.mark.parametrize("moment", ["write", "flush"])
def test_a_row_that_a_signal_comes_into_is_whole_and_counted(write, folders, moment):
    child = os.fork()
    if not child:
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT), 2)
        signal_at(moment, 3, signal.SIGTERM)
        in_a_child(str(folders[0]), "--num_samples", "inf", "--max_new_tokens", "5", "--output", "a.jsonl")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [json.loads(line)["number"] for line in Path("a.jsonl").read_text().splitlines()] == [0, 1, 2]
    assert Path("log").read_text() == "stopped: a.jsonl has 3 texts\n"


@pytest.mark.slow
def test_two_processes_write_the_same_file_as_one(write, folders, tmp_path):
    flags = ("--num_samples", "20", "--temperature", "0.7,1.1", "--batch_size", "3", "--max_new_tokens", "12")
    write(*flags, "--output", "one.jsonl")
    command = [ACCELERATE, "launch", "--config_file", str(ROOT / "configs/accelerate/ddp.yaml")]
    command += [
        "--num_processes",
        "2",
        str(ROOT / "generate.py"),
        str(folders[0]),
        *EXACT,
        *flags,
        "--output",
        "two.jsonl",
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}

    def launch() -> subprocess.CompletedProcess:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    one = Path("one.jsonl").read_bytes()
    for size in (0, len(one) // 2, len(one)):  # from nothing, gone on with, complete
        Path("two.jsonl").write_bytes(one[:size])
        result = launch()
        assert result.returncode == 0, result.stderr
        assert Path("two.jsonl").read_bytes() == one
    assert "two.jsonl is complete with" in result.stderr
    assert result.stderr.count("complete") == 1


# --- temperatures, ends, bad words on the terminal


def test_a_sweep_writes_each_text_at_each_temperature_with_the_same_draws(write):
    texts = ("--prompt", "a", "b", "--num_return_sequences", "2")
    write(*texts, "--temperature", "0.5,1,1.5", "--output", "all.jsonl")
    rows = rows_of("all.jsonl")
    assert [(row["number"], row["prompt"], row["temperature"]) for row in rows] == [
        (number, "ab"[number // 2], heat) for number in range(4) for heat in (0.5, 1.0, 1.5)
    ]
    for heat in ("0.5", "1", "1.5"):
        write(*texts, "--temperature", heat, "--output", f"{heat}.jsonl")
        assert rows_of(f"{heat}.jsonl") == [row for row in rows if row["temperature"] == float(heat)]


def test_the_terminal_says_the_temperature_only_where_there_are_several(write):
    _, plain, _ = write("--prompt", "a", "--temperature", "0.5")
    _, several, _ = write("--prompt", "a", "--temperature", "0.5,2")
    first, second = several.split("====\n")
    assert first == f"# temperature 0.5\n{plain}"
    assert second.startswith("# temperature 2\na")
    assert write("--prompt", "a", "--temperature", "0.5,2", "--stream")[1] == several


def test_stop_strings_and_bad_words_through_the_command(write):
    _, plain, _ = write("--prompt", "the king", "--max_new_tokens", "40")
    letter = plain[len("the king") + 20]
    _, stopped, log = write("--prompt", "the king", "--max_new_tokens", "40", "--stop", letter)
    assert stopped == plain[: plain.index(letter, len("the king"))] + "\n"
    assert log == ""
    _, clean, _ = write("--prompt", "the king", "--max_new_tokens", "40", "--bad_words", letter)
    assert letter not in clean[len("the king") :]
    assert clean[: len(stopped) - 1] == stopped[:-1]  # the same up to there


def test_beams_of_a_prompt_file_go_into_a_file_too(write, prompt_file):
    flags = ("--prompt", "a", "b", "--num_beams", "3", "--temperature", "0", "--num_return_sequences", "2")
    write(*flags, "--output", "a.jsonl")
    rows = rows_of("a.jsonl")
    assert [row["prompt"] for row in rows] == ["a", "a", "b", "b"]
    assert [row["number"] for row in rows] == [0, 1, 2, 3]
    _, output, _ = write(*flags)
    assert output == "====\n".join(row["prompt"] + row["text"] + "\n" for row in rows)


# --- the type of the weights


@pytest.mark.parametrize(("multiplies", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_weights_are_bfloat16_where_the_processor_multiplies_it(write, monkeypatch, multiplies, dtype):
    monkeypatch.setattr("stylegen.optim.cpu_multiplies_bf16", lambda: multiplies)
    flags = ("--prompt", "a", "--device", "cpu", "--output")
    code, _, log = write("--dtype", "auto", *flags, "a.jsonl")
    assert (code, log) == (0, "")
    assert rows_of("a.jsonl")[0]["dtype"] == dtype
    code, _, log = write("--dtype", dtype, *flags, "b.jsonl")
    assert (code, log) == (0, "")
    assert Path("a.jsonl").read_bytes() == Path("b.jsonl").read_bytes()
    assert write("--dtype", "auto", *flags, "a.jsonl")[2].endswith("a.jsonl is complete with 1 texts\n")


def test_the_type_of_the_weights_is_auto_where_nothing_is_said():
    assert parse_arguments(GenerateArguments, ["A"], positional="checkpoints", usage="").dtype == "auto"


@pytest.mark.parametrize("free", [10**3, 10**12])
def test_weights_are_packed_where_there_is_room(write, monkeypatch, free):
    from stylegen.generate import writer

    packed = []
    monkeypatch.setattr(writer, "free_memory_bytes", lambda: free)
    monkeypatch.setattr(writer, "can_pack", lambda model: True)
    monkeypatch.setattr(writer, "pack_weights", packed.append)
    assert write("--prompt", "a")[0] == 0
    assert len(packed) == (free > 10**6)


# --- prompts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "", "prompt_file p.txt has no prompt in it; write one a line"),
        ("p.jsonl", "\n \n", "prompt_file p.jsonl has no prompt in it; write one a line"),
        ("p.jsonl", '{"prompt": "a"}\n\n{"text": "b"}\n', "prompt_file p.jsonl row 3 has no prompt; write one JSON"),
        ("p.jsonl", '{"prompt": null}\n', "prompt_file p.jsonl row 1 has no prompt"),
        ("p.jsonl", '{"prompt": "a"\n', "prompt_file p.jsonl row 1 has no prompt"),
        ("p.jsonl", "[" * 20_000, "prompt_file p.jsonl row 1 has no prompt"),
        ("p.jsonl", '{"prompt": "a", "completion": 3}\n', "row 1 has a completion that is no text"),
        ("p.jsonl", '{"prompt": "\\ud800"}\n', "prompt 1 is not valid Unicode"),
    ],
)  # fmt: skip
def test_prompt_files_that_cannot_be_are_refused(write, name, content, message):
    Path(name).write_text(content)
    code, _, log = write("--prompt_file", name)
    assert code == 2 and message in log and log.count("\n") == 1


def test_rows_of_prompts_may_be_empty_and_have_more_in_them(write):
    Path("p.jsonl").write_text('{"prompt": ""}\n{"prompt": "two\\nlines", "completion": "x", "id": 3}\n')
    assert write("--prompt_file", "p.jsonl", "--output", "a.jsonl")[0] == 0
    assert [row["prompt"] for row in rows_of("a.jsonl")] == ["", "two\nlines"]


# --- what cannot be is said before anything heavy is imported


def refuse(*argv: str) -> str:
    with pytest.raises(UsageError) as error:
        check_arguments(parse_arguments(GenerateArguments, argv, positional="checkpoints", usage=""))
    return str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("A B", "2 checkpoints, but one writes; name one, or add --compare OUT.html"),
        ("A --compare x.html", "compare needs two checkpoints or more"),
        ("A B --compare x.txt", "compare is x.txt, but must end in .html"),
        ("A B --compare x.html --output y.jsonl", "gives both output and compare"),
        ("A B --compare x.html --stream", "gives both stream and compare"),
        ("A --stream --output y.txt", "gives both stream and output"),
        ("A --num_samples 3 --num_return_sequences 2", "gives both num_samples and num_return_sequences"),
        ("A --num_samples 3 --prompt a b", "num_samples is for one prompt or none, and here are 2"),
        ("A --num_samples inf", "num_samples inf writes to a file until it is stopped; add --output FILE.jsonl"),
        ("A B --num_samples inf --compare x.html", "add --output FILE.jsonl"),
        ("A --num_samples 0", "num_samples is 0, but must be at least 1"),
        ("A --num_samples many", "num_samples in the command line is 'many'"),
        ("A --num_samples inf --output x.txt --temperature 0", "temperature 0 writes the same text for ever"),
        ("A --num_samples 4 --temperature 0", "temperature 0 writes the same text 4 times; use a temperature above"),
        ("A --temperature 0.7,0.7", "temperature 0.7,0.7 has a number twice"),
        ("A --temperature 0.7,", "temperature is 0.7,, but must be a number from 0 up"),
        ("A --temperature nan", "temperature is nan, but must be a number from 0 up"),
        ("A --num_beams 2 --temperature 0,1", "num_beams searches and does not draw"),
        ("A --num_beams 2 --temperature 0 --stop x", "gives both num_beams and stop"),
        ("A --num_beams 2 --temperature 0 --bad_words x", "gives both num_beams and bad_words"),
        ("A --num_beams 2 --temperature 0 --stream", "stream cannot show a beam search"),
        ("A --stop=", "stop and bad_words cannot have an empty string"),
        ("A --bad_words=", "stop and bad_words cannot have an empty string"),
        ("A --interactive --output x.txt", "gives both interactive and output"),
        ("A B --interactive --compare x.html", "gives both interactive and compare"),
        ("A --interactive --prompt_file x.txt", "gives both interactive and prompt_file"),
        ("A --interactive --num_samples 2", "gives both interactive and num_samples"),
        ("A --interactive --num_return_sequences 2", "gives both interactive and num_return_sequences"),
        ("A --interactive --num_beams 2 --temperature 0", "gives both interactive and num_beams"),
        ("A --interactive --temperature 0.5,1", "interactive begins with one temperature"),
        ("A --interactive --prompt a b", "interactive begins with one prompt"),
        ("A --output x.csv", "output is x.csv, but must end in .txt or .jsonl"),
        ("A --output /proc/x.jsonl", "the folder of output /proc cannot be written"),
    ],
)  # fmt: skip
def test_combinations_that_cannot_work_are_refused(flags, message, monkeypatch):
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "proc" not in str(path) and access(path, mode))
    assert message in refuse(*flags.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "A",
            "the launcher started 2 processes; they need a file to write together: add --output FILE.jsonl",
        ),
        ("A --output x.txt", "add --output FILE.jsonl"),
        ("A --interactive", "add --output FILE.jsonl"),
        ("A B --compare x.html", "add --output FILE.jsonl"),
        (
            "A --num_samples inf --output x.jsonl",
            "num_samples inf is for one process, and the launcher started 2",
        ),
    ],
)
def test_several_processes_need_a_file_of_rows(flags, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert message in refuse(*flags.split())


# --- in turns


def test_a_session_through_a_pipe(write):
    lines = "the king\n\n/again\n/temperature 1.5\n/more\n/undo\nROMEO:\n/new\nsword\n/save s.jsonl\n/save s.txt\n"
    code, output, log = write("--interactive", "--seed", "5", lines=lines)
    assert code == 0
    rows = rows_of("s.jsonl")
    assert [row["seed"] for row in rows] == [5, 7, 9, 10]  # 6 was written again, 8 taken back
    assert [row["temperature"] for row in rows] == [0.8, 0.8, 1.5, 1.5]
    first, more, romeo, sword = rows
    assert first["prompt"] == "the king"
    assert more["prompt"] == first["prompt"] + first["text"]
    assert romeo["prompt"] == more["prompt"] + more["text"] + "\nROMEO:"
    assert sword["prompt"] == "sword"
    ends = [row["prompt"] + row["text"] for row in (romeo, sword)]
    assert Path("s.txt").read_text() == "====\n".join(f"{end}\n" for end in ends)
    assert output.startswith(f"the king{first['text']}\n")
    assert f"\nROMEO:{romeo['text']}\nsword{sword['text']}\n" in output
    assert "/help" in log and "the text ends with" in log
    # The same inputs, the same session; and each answer again by itself.
    assert write("--interactive", "--seed", "5", lines=lines.replace("s.", "t."))[1] == output
    assert rows_of("t.jsonl") == rows
    write("--prompt", romeo["prompt"], "--seed", "9", "--temperature", "1.5", "--output", "alone.jsonl")
    assert rows_of("alone.jsonl") == [romeo]


def test_wrong_commands_are_answered_with_a_hint(write):
    lines = (
        "/again\n/undo\n/temperature\n/temperature warm\n/temperature -1\n/temperature nan\n/foo bar\n/help\n"
    )
    lines += "/save\n/save .\n/save /proc/nothing/x.txt\n/save ~nobody-here/x\n/save \0\n/save there.txt\n"
    lines += "king\n/quit\nno\n"
    Path("there.txt").write_text("mine")
    code, output, log = write("--interactive", lines=lines)
    assert code == 0 and "Traceback" not in log
    for hint in (
        "there is no answer yet", "the text is empty", "/temperature needs a number from 0 up; it is 0.8",
        "/foo is no command; /help lists them", "an empty line   the model goes on",
        "/proc/nothing/x.txt cannot be written", "~nobody-here/x cannot be written",
        "there.txt exists; /save needs the name of a new file",
    ):  # fmt: skip
        assert hint in log
    assert log.count("/temperature needs") == 4
    assert output.startswith("king") and output.count("\n") == 1  # nothing after /quit
    assert Path("there.txt").read_text() == "mine"


def test_a_first_line_longer_than_the_context_is_told(write):
    _, _, log = write("--interactive", lines="king " * 20 + "\n\n")
    assert log.count("warning: ") == 1
    assert "warning: prompt 1 has 100 tokens, the model's context 64; it sees the last 32 of them" in log


def test_a_session_begins_with_the_prompt_of_the_command_line(write):
    _, output, _ = write("--interactive", "--prompt", "the king", lines="")
    assert output == write("--prompt", "the king")[1]


class Terminal:
    """A command at a real pseudo-terminal."""

    def __init__(self, *arguments: str):
        self.child, self.end = pty.fork()
        if not self.child:
            in_a_child(*arguments)
        self.seen = ""

    def expect(self, text: str) -> str:
        """What comes up to `text`, which is taken away."""
        deadline = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            with contextlib.suppress(OSError):  # the other end is closed
                self.seen += os.read(self.end, 4096).decode().replace("\r\n", "\n")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())


def test_a_session_at_a_terminal(write, folders):
    terminal = Terminal(str(folders[0]), "--interactive", "--max_new_tokens", "12")
    terminal.expect("/help lists what else can be said\n> ")
    terminal.type("the kinh\x7fg\n")  # a mistake, and a backspace
    answer = terminal.expect("\n> ").rpartition("the king")[2]
    assert "the king" + answer + "\n" == write("--prompt", "the king")[1]
    terminal.type("\x03")  # nothing to stop: only the line is cleared
    terminal.expect("/quit or Ctrl-D leaves\n> ")
    terminal.type("/save s.jsonl\n")
    terminal.expect("saved in s.jsonl\n> ")
    assert [row["text"] for row in rows_of("s.jsonl")] == [answer]
    terminal.type("\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.child, 0)[1]) == 0


def test_ctrl_c_stops_an_answer_and_keeps_what_was_written(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    terminal = Terminal(str(folders[0]), "--interactive", "--max_new_tokens", "100000", "--bad_words", "\n")
    terminal.expect("\n> ")
    terminal.type("the king\n")
    terminal.expect("the king\n")
    terminal.expect("the king")
    while len(terminal.seen) < 20:
        terminal.seen += os.read(terminal.end, 4096).decode()
    terminal.type("\x03")
    answer = terminal.expect("\n> ")
    terminal.type("/save s.jsonl\n")
    terminal.expect("saved in")
    (row,) = rows_of("s.jsonl")
    assert row["text"] == answer.replace("^C", "") and len(row["text"]) < 100_000
    terminal.type("/quit\n")
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.child, 0)[1]) == 0


# --- side by side


class Page(html.parser.HTMLParser):
    """Texts and marks of a page, and that every tag that needs it is closed."""

    def __init__(self, path: str):
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.marks: list[str] = []
        self.links: list[str] = []
        self.feed(Path(path).read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag != "meta":
            self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag == "p":
            self.texts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "p" in self.open:
            self.texts[-1] += data
        if "mark" in self.open:
            self.marks.append(data)


def test_a_page_shows_what_each_checkpoint_writes(write, folders):
    Path("p.jsonl").write_text(
        '{"prompt": "the <b>king</b>", "completion": "true & real"}\n{"prompt": "O"}\n'
    )
    code, output, log = write(
        "--prompt_file", "p.jsonl", "--temperature", "0.7,1", "--compare", "x.html", models=2
    )
    assert (code, output, log) == (0, "", "x.html\n")
    page = Page("x.html")
    expected = []
    for model in folders:
        assert main([str(model), *EXACT, "--prompt_file", "p.jsonl", "--temperature", "0.7,1", "--max_new_tokens", "12",
                     "--output", f"{model.name}.jsonl"]) == 0  # fmt: skip
    for one, other in zip(*(rows_of(f"{model.name}.jsonl") for model in folders), strict=True):
        expected += [one["text"], other["text"]] + (["true & real"] if one["prompt"] != "O" else [])
    assert page.texts[1:] == expected
    assert page.links == [] and page.marks == []
    assert "<b>king" not in Path("x.html").read_text()
    assert Path("x.html").read_text().count("Nothing is marked: it is in no run directory") == 2
    assert write("--prompt", "a", "--compare", "x.html", models=2)[0] == 2  # it is there


def test_copied_runs_are_marked_where_the_training_text_is_known(
    train, text_file, folders, tmp_path, monkeypatch
):
    """What the models write is replaced: one of 32 units takes too long to learn a line by heart."""
    from stylegen.generate.writer import Writer

    monkeypatch.chdir(tmp_path)
    folder = train("run", "--max_train_steps", "1", "--eval_on_start", "false")
    line = next(line for line in text_file.read_text().splitlines() if len(line.split()) == 9)
    copied = line.rstrip(".,;!?")
    monkeypatch.setattr(
        Writer, "fill", lambda self, rows: [row | {"text": f"Unknown words, {line} No."} for row in rows]
    )
    assert main([str(folder), str(folder / "checkpoint-000001"), "--compare", "x.html"]) == 0
    page = Page("x.html")
    assert page.texts[1:] == [f"Unknown words, {line} No."] * 2 and page.marks == [copied] * 2
    assert Path("x.html").read_text().count("Marked: runs of 8 words or more") == 2
    text_file.unlink()
    assert main([str(folder), str(folders[0]), "--compare", "y.html"]) == 0
    assert f"Nothing is marked: {text_file} does not exist" in Path("y.html").read_text()
