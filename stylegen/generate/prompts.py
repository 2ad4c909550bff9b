"""The prompts of the command line or of a file."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from stylegen.config import GenerateArguments, UsageError


class Prompt(NamedTuple):
    """What a text goes on from, and what truly follows it, where that is known."""

    text: str
    completion: str | None = None


def read_prompts(arguments: GenerateArguments) -> list[Prompt]:
    """The prompts in order, an empty one if there is none. Raises UsageError naming file and row."""
    if arguments.prompt_file:
        prompts = _from_file(Path(arguments.prompt_file))
    else:
        prompts = [Prompt(text) for text in arguments.prompt or [""]]
    for number, prompt in enumerate(prompts, start=1):
        try:
            "".join(filter(None, prompt)).encode()
        except UnicodeEncodeError:  # bytes of the command line that are no UTF-8, or half a character in JSON
            raise UsageError(f"prompt {number} is not valid Unicode; write it as UTF-8") from None
    if arguments.num_samples and len(prompts) > 1:
        raise UsageError(
            f"num_samples is for one prompt or none, and here are {len(prompts)}; use --num_return_sequences"
        )
    return prompts


def _from_file(path: Path) -> list[Prompt]:
    from stylegen.corpus import read_text

    if not path.is_file():
        raise UsageError(f"prompt_file {path} does not exist; give a UTF-8 file with one prompt a line")
    lines = enumerate(read_text(path).split("\n"), start=1)
    filled = [(f"prompt_file {path} row {number}", line) for number, line in lines if line.strip()]
    if not filled:
        raise UsageError(f"prompt_file {path} has no prompt in it; write one a line")
    return [_from_row(*row) if path.suffix == ".jsonl" else Prompt(row[1]) for row in filled]


def _from_row(where: str, line: str) -> Prompt:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise UsageError(f'{where} has no prompt; write one JSON object a line, as {{"prompt": "..."}}')
    if not isinstance(row.get("completion"), str | None):
        raise UsageError(f"{where} has a completion that is no text; write a string, or leave it out")
    return Prompt(row["prompt"], row.get("completion"))
