"""What of a run's texts stands word for word in its training text, which its config.yaml names."""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from stylegen.config import SHAKESPEARE, TrainArguments, UsageError, read_preset
from stylegen.corpus import Findings, Source, TextOptions, find_sources, read_pieces
from stylegen.style import StyleReference

LARGEST_TEXT = 50_000_000  # characters; an index of them takes 0.4 s a million
MARKED = "Marked: runs of 8 words or more that stand in its training text."


class Marks:
    """Says of texts which pieces are copied; `note` says what is marked, or why nothing is."""

    def __init__(self, run_dir: Path, reference: StyleReference | None = None):
        """For a run directory or a checkpoint in one; `reference` is that of its text, where there already is one."""
        self.note, self._reference = MARKED, reference
        try:
            self._reference = reference or _reference(*_training_text(run_dir))
        except UsageError as error:
            self.note = f"Nothing is marked: {error}"
        except OSError as error:
            self.note = f"Nothing is marked: its training text cannot be read, {error}"

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """A text in pieces, each with whether it is copied."""
        runs = self._reference.copied_runs(text) if self._reference else []
        edges = [0, *(edge for run in runs for edge in run), len(text)]
        return [
            (text[start:end], place % 2 == 1)
            for place, (start, end) in enumerate(itertools.pairwise(edges))
            if end > start
        ]


def _training_text(checkpoint: Path) -> tuple[Source, TextOptions]:
    """What a checkpoint's run was trained on. Raises UsageError where nothing here says it, or holds it."""
    for folder in (checkpoint, checkpoint.parent):
        if (folder / "config.yaml").is_file():
            arguments = TrainArguments(**read_preset(TrainArguments, folder / "config.yaml"))
            source = _source(arguments)
            if source.dataset and source.dataset != SHAKESPEARE and not Path(source.dataset).is_dir():
                raise UsageError(f"its training text, {source.dataset}, is not on this machine")
            return source, TextOptions(**{f.name: getattr(arguments, f.name) for f in fields(TextOptions)})
    raise UsageError("it is in no run directory, whose config.yaml would name its training text")


def _source(arguments: TrainArguments) -> Source:
    try:
        return find_sources(arguments)[0]
    except UsageError as error:
        named = [*arguments.train_file, *filter(None, (arguments.prompt_file, arguments.completion_file))]
        if any(not Path(name).expanduser().is_absolute() for name in named):
            raise UsageError(f"{error} (its path is relative to the folder the run was started in)") from None
        raise


@functools.lru_cache(maxsize=2)  # of several runs most share their text
def _reference(source: Source, options: TextOptions) -> StyleReference:
    return StyleReference.build(_documents(source, options), [])


def _documents(source: Source, options: TextOptions) -> Iterator[tuple[str, str]]:
    pieces: list[str] = []
    length = 0
    for piece in read_pieces(source, options, Findings()):
        length += len(piece.text)
        if length > LARGEST_TEXT:
            raise UsageError(f"its training text is longer than {LARGEST_TEXT:,} characters")
        pieces.append(piece.text)
        if piece.ends:
            yield str(source), "".join(pieces)
            pieces.clear()
