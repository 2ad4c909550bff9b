"""What the model wrote while it trained: one file a step in samples/, its settings in the first line."""

import ast
import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

SEPARATOR = "\n====\n"  # between texts


@dataclass(frozen=True)
class Sample:
    """What the model wrote after one step: `header`, the settings in words, and a text a prompt (prompt included)."""

    step: int
    header: str
    texts: tuple[str, ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each text, "" where the header does not tell."""
        listed: list[str] = []
        with contextlib.suppress(ValueError, SyntaxError):
            listed = [str(prompt) for prompt in ast.literal_eval(self.header.partition("prompts ")[2])]
        return tuple((listed + [""] * len(self.texts))[: len(self.texts)])


def sample_path(run_dir: Path, step: int) -> Path:
    """Where the texts of a step lie."""
    return run_dir / "samples" / f"step-{step:06d}.txt"


def write_sample(run_dir: Path, sample: Sample) -> Path:
    """Write the file of a step. Raises OSError."""
    path = sample_path(run_dir, sample.step)
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# {sample.header}\n{SEPARATOR.join(sample.texts)}\n", encoding="utf-8", newline="\n")
    return path


def read_samples(run_dir: Path) -> list[Sample]:
    """The samples of a run directory by step."""
    paths = [path for path in (run_dir / "samples").glob("step-*.txt") if path.is_file()]
    return sorted(map(_read, sorted(paths)), key=lambda sample: sample.step)


def _read(path: Path) -> Sample:
    text = path.read_bytes().decode("utf-8", errors="replace")  # read_text would change a lone \r in it
    header, _, body = text.partition("\n") if text.startswith("# step ") else ("", "", text)
    step = int(re.sub(r"\D", "", path.stem) or 0)
    return Sample(step, header.removeprefix("# "), tuple(body.removesuffix("\n").split(SEPARATOR)))
