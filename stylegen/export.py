"""A checkpoint on disk or on the hub -> a Transformers model and tokenizer, ready to write."""

import contextlib
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stylegen.checkpoint import MANIFEST, OtherFormatError, find_damage, newest_checkpoint
from stylegen.config import UsageError
from stylegen.model import embedding_rows, load_model
from stylegen.tokenizer import load_tokenizer, num_ids

BEST = "best"  # the best model of a run that has not ended


def find_model(checkpoint: str) -> str:
    """The folder or hub id that `from_pretrained` takes for what the user named.

    A run directory gives its best model, also while it runs; a folder with config.json is taken as it is; what
    is no local path is a hub id. Raises UsageError saying what was looked for.
    """
    path = Path(checkpoint).expanduser()
    if not path.exists():
        if (
            path.is_absolute()
            or checkpoint.startswith((".", "~"))
            or checkpoint.count("/") > 1
            or (path.parent.exists() and path.parent != Path("."))
        ):
            raise UsageError(
                f"{checkpoint} does not exist; give a run directory, a checkpoint, a model folder or a hub id"
            )
        return checkpoint
    if not path.is_dir():
        raise UsageError(
            f"{checkpoint} is a file; give the folder that holds config.json and model.safetensors"
        )
    for folder in (path / BEST, path):
        if (folder / "config.json").is_file():
            _refuse_damage(folder)
            return str(folder)
    if newest := newest_checkpoint(path):
        return str(newest)
    raise UsageError(
        f"{checkpoint} holds no model; looked for config.json in it and in {BEST}/, and for checkpoint-* folders"
    )


def _refuse_damage(folder: Path) -> None:
    if not (folder / MANIFEST).is_file():
        return
    with contextlib.suppress(OtherFormatError):  # the model in it is a plain one whatever the version
        if damage := find_damage(folder):
            raise UsageError(f"{folder} cannot be used: {damage}")


def load_for_writing(
    checkpoint: str, dtype: str, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model in evaluation mode on `device`, and its tokenizer."""
    folder = find_model(checkpoint)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, dtype=dtype)
    rows = embedding_rows(model)
    if num_ids(tokenizer) > rows:
        raise UsageError(
            f"the tokenizer in {folder} has {num_ids(tokenizer)} words, the model {rows}; they do not belong together"
        )
    model.to(device)  # type: ignore[arg-type]
    return model.eval(), tokenizer
