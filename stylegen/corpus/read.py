"""Source -> pieces of clean text: line ends are \\n, byte order marks and boilerplate are gone, pairs are joined.

A document is one file of text or Markdown, what lies between two separators in one, one row of a table, one play, or
one pair of prompt and completion. Bytes that are not UTF-8 are refused rather than guessed.
"""

import datetime
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from stylegen.config import END_OF_TEXT, SHAKESPEARE, UsageError
from stylegen.corpus.clean import cut_boilerplate, detokenize, split_at
from stylegen.corpus.decode import decoded, read_text
from stylegen.corpus.files import TABLE_SUFFIXES, Source, text_suffix
from stylegen.corpus.tables import UNNAMED, dataset_rows, dataset_splits, table_rows

__all__ = ["Findings", "Piece", "TextOptions", "dataset_splits", "read_pieces", "read_text"]


class Piece(NamedTuple):
    """Part of a document; longer documents come in several.

    ends    the document ends after it
    prompt  characters at its start that are prompt, in a pair (which is never cut)
    """

    text: str
    ends: bool = True
    prompt: int = 0


@dataclass(frozen=True)
class TextOptions:
    """How text is read; the meaning of each is in the help of the flag of the same name."""

    text_column: str | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    document_separator: str | None = END_OF_TEXT
    keep_boilerplate: bool = False
    pair_separator: str = " <sep> "
    max_completion_words: int | None = None
    detokenize: bool = False


@dataclass
class Findings:
    """What was met while reading, for the log."""

    boilerplate_texts: int = 0
    boilerplate_characters: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # why -> documents
    same_content: list[str] = field(default_factory=list)


def read_pieces(source: Source, options: TextOptions, findings: Findings) -> Iterator[Piece]:
    """The documents of a source, in order. Raises UsageError naming the file, and the line or row, of what is wrong."""
    if source.pair_files:
        yield from _pairs(_parallel_lines(*source.pair_files), options)
    elif source.dataset and source.dataset != SHAKESPEARE:
        rows = dataset_rows(source.dataset, source.config_name, source.split, source.streaming)
        yield from _row_pieces(rows, f"dataset {source.dataset}", options, findings)
    else:
        for path in source.paths():
            if (suffix := text_suffix(path)) in TABLE_SUFFIXES:
                yield from _row_pieces(table_rows(path, suffix), str(path), options, findings)
            elif options.prompt_column:
                raise UsageError(
                    f"{path} is no table, so it has no column '{options.prompt_column}'; leave it out"
                )
            elif source.dataset:
                yield Piece(_play_text(read_text(path)))
            elif suffix == ".md":
                yield from _markdown_pieces(path, options, findings)
            else:
                yield from _text_pieces(path, options, findings)


def _without_boilerplate(pieces: Iterable[str], options: TextOptions, findings: Findings) -> Iterable[str]:
    def note_cut(characters: int) -> None:
        findings.boilerplate_texts += 1
        findings.boilerplate_characters += characters

    return pieces if options.keep_boilerplate else cut_boilerplate(pieces, note_cut)


def _text_pieces(path: Path, options: TextOptions, findings: Findings) -> Iterator[Piece]:
    pieces = _without_boilerplate(decoded(path), options, findings)
    if options.document_separator:
        yield from (Piece(text, ends) for text, ends in split_at(pieces, options.document_separator))
    else:
        yield from (Piece(text, ends=False) for text in pieces)
        yield Piece("")


def _markdown_pieces(path: Path, options: TextOptions, findings: Findings) -> Iterator[Piece]:
    from stylegen.corpus.markdown import markdown_text

    source = "".join(_without_boilerplate(decoded(path), options, findings))
    yield Piece(markdown_text(source))


def _play_text(markdown: str) -> str:
    """A play of the wheel without its marks: `# title`, `**SPEAKER**  `, `_direction_`, `\\[`, two-space line ends.

    Not by the Markdown reader: fifty of its directions are not marked as Markdown wants, and would keep their marks.
    """
    text = re.sub(r"^#+ |[*_\\]| +$", "", markdown, flags=re.MULTILINE)
    return text.strip() + "\n"


def _row_pieces(
    rows: Iterator[dict[str, Any]], source: str, options: TextOptions, findings: Findings
) -> Iterator[Piece]:
    """Rows of a table as documents: one column of them, or a pair of columns joined."""
    wanted = [name for name in (options.prompt_column, options.completion_column) if name]
    first = next(rows, None)
    if first is None:
        yield Piece("")  # to be counted as empty
        return
    named = [name for name in first if not name.startswith(UNNAMED)] or list(first)
    names = wanted or [options.text_column or ("text" if "text" in first else named[0])]
    for name in names:
        if name not in first:
            flag = "--prompt_column and --completion_column" if wanted else "--text_column"
            raise UsageError(
                f"{source} has no column '{name}'; its columns are {', '.join(first)}: use {flag}"
            )
    numbered = enumerate(itertools.chain([first], rows), start=1)
    texts = (tuple(_cell(row.get(name), name, number, source) for name in names) for number, row in numbered)
    if wanted:
        yield from _pairs(texts, options)
    else:
        separator = options.document_separator
        for (text,) in texts:
            text = "".join(_without_boilerplate([text], options, findings))
            for part in text.split(separator) if separator and separator in text else (text,):
                yield Piece(part)


def _cell(value: Any, column: str, number: int, source: str) -> str:
    if not isinstance(value, str):
        if isinstance(value, datetime.datetime):
            raise UsageError(
                f"{source} row {number} column '{column}' holds what the reader of JSON takes for dates, {value}; "
                f"put such texts into a .csv"
            )
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        raise UsageError(f"{source} row {number} column '{column}' holds {shown}, not text; "
                         f"use another column, or leave that row out")  # fmt: skip
    if "\0" in value:
        raise UsageError(f"{source} row {number} column '{column}' holds a NUL byte; leave that row out")
    return value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value


def _pairs(pairs: Iterable[tuple[str, ...]], options: TextOptions) -> Iterator[Piece]:
    """Prompt and completion joined; a pair without a completion gives an empty document, which is dropped."""
    limit = options.max_completion_words
    for prompt, completion in pairs:
        if limit and (last := next(itertools.islice(re.finditer(r"\S+", completion), limit - 1, None), None)):
            completion = completion[: last.end()]
        if options.detokenize:
            prompt, completion = detokenize(prompt), detokenize(completion)
        prompt = prompt.strip() + options.pair_separator
        completion = completion.strip()
        yield Piece(prompt + completion if completion else "", prompt=len(prompt) if completion else 0)


def _parallel_lines(prompt_file: Path, completion_file: Path) -> Iterator[tuple[str, str]]:
    """Line n of both files. Raises UsageError with both counts if one has more lines than the other."""
    prompts, completions = _lines(prompt_file), _lines(completion_file)
    for number, (prompt, completion) in enumerate(itertools.zip_longest(prompts, completions)):
        if prompt is None or completion is None:
            counts = [number + (line is not None) for line in (prompt, completion)]
            counts = [
                count + sum(1 for _ in rest)
                for count, rest in zip(counts, (prompts, completions), strict=True)
            ]
            raise UsageError(
                f"{prompt_file} has {counts[0]:,} lines, but {completion_file} has {counts[1]:,}; "
                f"line n of one belongs to line n of the other, so repair the shorter one"
            )
        yield prompt, completion


def _lines(path: Path) -> Iterator[str]:
    line: list[str] = []  # the pieces of a line that has not ended yet
    for piece in decoded(path):
        first, *others = piece.split("\n")
        line.append(first)
        for other in others:
            yield "".join(line)
            line = [other]
    if last := "".join(line):
        yield last
