"""A plain Transformers model: a folder with config.json and weights, or an id on the hub."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stylegen.config.commands import SourceArguments
from stylegen.export.find import CONFIG, WEIGHTS, tokenizer_for
from stylegen.model import load_model


def find(path: Path) -> Path | None:
    """The folder, also for one of its files."""
    folder = path.parent if path.is_file() and path.suffix in (".safetensors", ".bin", ".json") else path
    is_there = (folder / CONFIG).is_file() and any((folder / name).is_file() for name in WEIGHTS)
    return folder if is_there else None


def load(found: Path | str, source: SourceArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model and tokenizer, as Transformers loads them; `found` is a folder or a hub id."""
    return load_model(str(found), dtype=source.dtype), tokenizer_for(source, found)
