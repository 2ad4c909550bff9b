"""What generate.py's arguments cannot be, and whether there is a place to write to."""

import math
import os
from pathlib import Path

from stylegen.config import processes
from stylegen.config.commands import GenerateArguments
from stylegen.config.errors import UsageError

EXCLUSIVE = (
    ("prompt", "prompt_file"), ("num_samples", "num_return_sequences"), ("stream", "output"), ("stream", "compare"),
    ("output", "compare"), ("num_beams", "stop"), ("num_beams", "bad_words"),
    ("interactive", "output"), ("interactive", "compare"), ("interactive", "prompt_file"), ("interactive", "num_beams"),
    ("interactive", "num_samples"), ("interactive", "num_return_sequences"),
)  # fmt: skip


def check_writing(arguments: GenerateArguments) -> None:
    """Raise UsageError for what generate.py cannot do."""
    if not arguments.checkpoints:
        raise UsageError(
            "which model? python generate.py CHECKPOINT, a run directory, a checkpoint or a model folder"
        )
    defaults = GenerateArguments()
    for first, second in EXCLUSIVE:
        if all(getattr(arguments, name) != getattr(defaults, name) for name in (first, second)):
            raise UsageError(
                f"the command line gives both {first} and {second}; they exclude each other, leave one out"
            )
    for is_wrong, message in (*_drawing(arguments), *_numbers(arguments)):
        if is_wrong:
            raise UsageError(message)
    _check_file("output", arguments.output, (".txt", ".jsonl"), arguments.overwrite_output)
    _check_file("compare", arguments.compare, (".html",), arguments.overwrite_output)


def check_writable(path: Path, name: str) -> None:
    """Raise UsageError if the folder `path`, called `name`, cannot be written into, or not be made."""
    nearest = path.resolve()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UsageError(f"{name} {path} cannot be a folder, {nearest} is a file; choose another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{name} {path} cannot be written ({nearest} is read-only); choose another place")


def _drawing(arguments: GenerateArguments) -> tuple[tuple[bool, str], ...]:
    """Pairs of (whether it is so, what to say then)."""
    asked, beams, texts = arguments.temperature, arguments.num_beams, arguments.texts_per_prompt
    try:
        heats = arguments.temperatures
    except ValueError:
        heats = [-1.0]
    often, remedy = (
        (f"{texts:g} times", f", or --num_beams {texts:g}") if texts < math.inf else ("for ever", "")
    )
    return (
        (not all(0 <= value < math.inf for value in heats),
         f"temperature is {asked}, but must be a number from 0 up, or several as 0.7,1.0"),
        (len(set(heats)) < len(heats), f"temperature {asked} has a number twice; leave one out"),
        (len(heats) > 1 and arguments.interactive,
         "interactive begins with one temperature; give one, and change it with /temperature"),
        (beams > 1 and any(heats),
         "num_beams searches and does not draw; add --temperature 0, or leave num_beams out"),
        (beams > 1 and arguments.stream,
         "stream cannot show a beam search, which knows its text only at the end; leave one out"),
        (0 in heats and texts > max(beams, 1),
         f"temperature 0 writes the same text {often}; use a temperature above 0{remedy}"),
        ("" in arguments.stop + arguments.bad_words,
         "stop and bad_words cannot have an empty string, which is everywhere; leave it out"),
    )  # fmt: skip


def _numbers(arguments: GenerateArguments) -> tuple[tuple[bool, str], ...]:
    models, prompts, count = len(arguments.checkpoints), len(arguments.prompt), processes.world_size()
    endless = arguments.texts_per_prompt == math.inf
    return (
        (models > 1 and not arguments.compare,
         f"{models} checkpoints, but one writes; name one, or add --compare OUT.html to see what each of them writes"),
        (models == 1 and bool(arguments.compare),
         "compare needs two checkpoints or more: python generate.py A B --compare OUT.html"),
        (arguments.interactive and prompts > 1, "interactive begins with one prompt; give one, or none"),
        (bool(arguments.num_samples) and prompts > 1,
         f"num_samples is for one prompt or none, and here are {prompts}; use --num_return_sequences"),
        (endless and not arguments.output,
         "num_samples inf writes to a file until it is stopped; add --output FILE.jsonl"),
        (count > 1 and not (arguments.output or "").endswith(".jsonl"),
         f"the launcher started {count} processes; they need a file to write together: add --output FILE.jsonl"),
        (count > 1 and endless,
         f"num_samples inf is for one process, and the launcher started {count}; give a number, or start one"),
    )  # fmt: skip


def _check_file(name: str, value: str | None, suffixes: tuple[str, ...], overwrite: bool) -> None:
    if value is None:
        return
    path = Path(value)
    if path.suffix not in suffixes:
        raise UsageError(f"{name} is {value}, but must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UsageError(f"{name} {value} is a folder; give a file name")
    check_writable(path.parent, f"the folder of {name}")
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        raise UsageError(f"{name} {value} is read-only; choose another file")
    if path.exists() and path.stat().st_size and path.suffix != ".jsonl" and not overwrite:
        raise UsageError(
            f"{name} {value} exists; choose another file, or begin it anew with --overwrite_output"
        )
