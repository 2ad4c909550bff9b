"""Where a model is: a path or a hub id, a checkpoint in a run directory, the tokenizer that belongs to it."""

import contextlib
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from stylegen.checkpoint import (
    MANIFEST,
    OtherFormatError,
    find_damage,
    list_checkpoints,
    newest_checkpoint,
    step_of,
)
from stylegen.config import UsageError
from stylegen.config.commands import SourceArguments
from stylegen.export import BEST
from stylegen.tokenizer import load_tokenizer

CONFIG, ADAPTER = "config.json", "adapter_config.json"
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")


def local_path(name: str) -> Path | None:
    """The path that `name` is, or None for a hub id. Raises UsageError for a path that does not exist."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    starts_here = path.parent.exists() and path.parent != Path(".")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or starts_here:
        raise UsageError(
            f"{name} does not exist; give a run directory, a checkpoint, a model folder or a hub id"
        )
    return None


def is_run(path: Path) -> bool:
    """Whether a training of ours wrote this directory."""
    has_rows = (path / "config.yaml").is_file() and (path / "metrics.jsonl").is_file()
    return has_rows or (path / BEST).is_dir() or bool(list_checkpoints(path))


def choose_checkpoint(path: Path, which: str) -> Path:
    """The folder of a run directory that is meant; any other path as it is.

    which  best: the best model so far, else the newest checkpoint; latest: the newest one; a number: that of a step
    Raises UsageError if there is none, or if its files are not as they were written.
    """
    if which not in (BEST, "latest") and not which.isdecimal():
        raise UsageError(f"checkpoint is {which}, but must be best, latest or the number of a step")
    if is_run(path):
        path = _in_run(path, which)
    elif which != BEST:
        raise UsageError(f"checkpoint {which} is for a run directory, which {path} is not; leave it out")
    with contextlib.suppress(OtherFormatError):  # the model in it is a plain one whatever the version
        if (path / MANIFEST).is_file() and (damage := find_damage(path)):
            raise UsageError(f"{path} cannot be used: {damage}")
    return path


def tokenizer_for(source: SourceArguments, *places: Path | str) -> PreTrainedTokenizerFast:
    """The tokenizer that is asked for, else that of the first folder with one, or of a hub id among the places."""
    if source.tokenizer_name:
        return load_tokenizer(source.tokenizer_name)
    for place in places:
        if isinstance(place, str) or any((place / name).is_file() for name in TOKENIZERS):
            return load_tokenizer(str(place))
    raise UsageError(
        f"no tokenizer in {' or '.join(map(str, places))}; give the folder or hub id of one with --tokenizer_name"
    )


def _in_run(run: Path, which: str) -> Path:
    models = [
        path for path in (run / BEST, run) if any((path / name).is_file() for name in (CONFIG, ADAPTER))
    ]
    if which == BEST and models:
        return models[0]
    there = list_checkpoints(run)
    chosen = [path for path in there if which.isdecimal() and step_of(path) == int(which)]
    newest = None if which.isdecimal() else newest_checkpoint(run)
    if newest or chosen:
        return newest or chosen[0]
    steps = ", ".join(str(step_of(path)) for path in there) or "none"
    raise UsageError(f"{run} has no model for checkpoint {which}; complete checkpoints of steps: {steps}")
