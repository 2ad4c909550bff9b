"""Tables and `datasets` -> rows, streamed from where they lie: no second copy on disk, no file whole in memory."""

import csv
import glob
import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stylegen.config import UsageError, first_line
from stylegen.corpus.decode import decoded
from stylegen.corpus.files import GZIP_ERRORS, TABLE_SUFFIXES, damaged_gzip

Row = dict[str, Any]
UNNAMED = "Unnamed: "  # how pandas calls a column without a name, such as the row numbers it writes itself
LARGEST_GZIP_RATIO = 1032  # deflate cannot do better


def table_rows(path: Path, suffix: str) -> Iterator[Row]:
    """The rows of one table. Raises UsageError with the file, and the line where it can be known."""
    _refuse_huge_rows(path, suffix)
    # The index of a Parquet file is at its end, so it must be unpacked.
    if suffix == ".parquet" and path.suffix.lower() == ".gz":
        with tempfile.TemporaryDirectory() as folder:
            unpacked = Path(folder) / path.stem
            try:
                with gzip.open(path) as source, open(unpacked, "wb") as target:
                    shutil.copyfileobj(source, target)
            except GZIP_ERRORS as error:
                raise damaged_gzip(path, error) from None
            yield from _stream(path, unpacked, suffix)
    else:
        yield from _stream(path, path, suffix)


def dataset_rows(name: str, config_name: str | None, split: str, streaming: bool) -> Iterator[Row]:
    """The rows of one split of a `datasets` folder or hub id."""
    datasets = _datasets()
    try:
        yield from datasets.load_dataset(name, config_name, split=split, streaming=streaming)
    except Exception as error:  # datasets raises whatever its builders and the hub client raise
        raise UsageError(f"dataset_name {name} cannot be loaded: {first_line(error)}") from error


def dataset_splits(name: str, config_name: str | None) -> tuple[list[str], str]:
    """(names of the splits, what tells this version of the dataset from another)."""
    datasets = _datasets()
    try:
        builder = datasets.load_dataset_builder(name, config_name)
        splits = datasets.get_dataset_split_names(name, config_name)
    except Exception as error:
        raise UsageError(f"dataset_name {name} cannot be loaded: {first_line(error)}") from error
    return splits, f"{builder.config_id} {builder.hash} {builder.info.version}"


def _datasets() -> Any:
    import datasets

    # What it would print about a damaged file we say ourselves.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    return datasets


def _stream(path: Path, readable: Path, suffix: str) -> Iterator[Row]:
    datasets = _datasets()
    builder = TABLE_SUFFIXES[suffix]
    if not readable.stat().st_size:
        return
    try:
        options = _csv_options(readable, suffix, datasets) if builder == "csv" else {}
        yield from datasets.load_dataset(
            builder,
            data_files=glob.escape(str(readable.resolve())),
            split="train",
            streaming=True,
            **options,
        )
    except UsageError:
        raise
    except Exception as error:  # pyarrow, pandas, gzip and datasets each raise their own
        line = _broken_json_line(readable) if builder == "json" else ""
        if not line and builder != "parquet":
            for _ in decoded(readable):  # which says where it is no UTF-8
                pass
        raise _unreadable(path, line or first_line(error.__cause__ or error)) from error


def _unreadable(path: Path, reason: str) -> UsageError:
    return UsageError(f"{path} cannot be read as a table: {reason.rstrip('.')}; repair it, or leave it out")


def _csv_options(path: Path, suffix: str, datasets: Any) -> dict[str, Any]:
    """Every cell is text, whatever it looks like: 1984 is no number, "None" is no missing value."""
    separator = "\t" if suffix == ".tsv" else ","
    with _open_text(path) as file:
        rows = csv.reader(file, delimiter=separator)
        header, first = next(rows, []), next(rows, [])
    # pandas would take the surplus for row names, and the texts from the next column.
    if len(first) > len(header):
        raise UsageError(
            f"{path} row 1 has {len(first)} cells, but there are {len(header)} column names; put texts with a "
            f"{'tab' if suffix == '.tsv' else 'comma'} in them into quotes"
        )
    features = datasets.Features(
        {name or f"{UNNAMED}{number}": datasets.Value("string") for number, name in enumerate(header)}
    )
    return {"sep": separator, "keep_default_na": False, "features": features}


def _broken_json_line(path: Path) -> str:
    """Which line of a JSON or JSON lines file does not parse, and why; "" if they all do."""
    try:
        with _open_text(path) as file:
            if file.read(1) == "[":
                file.seek(0)
                json.load(file)
                return ""
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if line.strip():
                    _parse(line.rstrip(), number)
    except json.JSONDecodeError as error:
        return f"line {error.lineno}: {error.msg} at character {error.colno}"
    except (OSError, *GZIP_ERRORS, UnicodeDecodeError):
        return ""
    return ""


def _parse(line: str, number: int) -> None:
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        error.lineno = number
        raise


def _open_text(path: Path):
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _refuse_huge_rows(path: Path, suffix: str) -> None:
    """Readers of tables hold a row, or a Parquet row group, whole: refuse one that memory has no room for.

    A row may take a quarter of the machine's memory: it exists up to four times while it is converted.
    """
    limit, size, where = row_limit(), 0, "a row group"
    compressed = path.suffix.lower() == ".gz"
    if suffix == ".parquet":
        size = 0 if compressed else _largest_row_group(path)
    elif path.stat().st_size * (LARGEST_GZIP_RATIO if compressed else 1) > limit:
        try:
            size, line = _longest_line(path)
        except GZIP_ERRORS as error:
            raise damaged_gzip(path, error) from None
        where = f"line {line:,}"
    if size > limit:
        raise UsageError(
            f"{path}: {where} is {size / 2**30:.1f} GiB, more than a table's row may take on this machine "
            f"({limit / 2**30:.1f} GiB); put such a text into a .txt file of its own"
        )


def row_limit() -> int:
    """Bytes that one row of a table may take."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def _longest_line(path: Path) -> tuple[int, int]:
    """(bytes, number) of the longest line, read in pieces."""
    longest, current, number, number_of_longest = 0, 0, 1, 1
    with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
        while piece := file.read(1 << 24):
            for index, part in enumerate(piece.split(b"\n")):
                if index:
                    current, number = 0, number + 1
                current += len(part)
                if current > longest:
                    longest, number_of_longest = current, number
    return longest, number_of_longest


def _largest_row_group(path: Path) -> int:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        metadata = parquet.ParquetFile(path).metadata
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, first_line(error)) from None
    sizes = [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
    return max(sizes, default=0)
