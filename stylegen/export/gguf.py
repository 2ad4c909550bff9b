"""A GGUF file, as llama.cpp reads them: weights, mostly quantized, with configuration and tokenizer."""

import importlib.util
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stylegen.config import UsageError
from stylegen.config.commands import SourceArguments
from stylegen.export.find import CONFIG
from stylegen.model import load_model
from stylegen.tokenizer import load_tokenizer


def find(path: Path) -> Path | None:
    """The file itself, or the only one in a folder without config.json."""
    if path.is_file():
        with open(path, "rb") as file:
            return path if file.read(4) == b"GGUF" else None
    files = sorted(path.glob("*.gguf")) if not (path / CONFIG).is_file() else []
    if len(files) > 1:
        raise UsageError(f"{path} holds {len(files)} GGUF files; give one of them, such as {files[0]}")
    return files[0] if files else None


def load(found: Path, source: SourceArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model, its weights no longer quantized, and the tokenizer."""
    if not importlib.util.find_spec("gguf"):
        raise UsageError(f"{found} is a GGUF file, which the package gguf reads; pip install gguf")
    folder, name = str(found.parent), found.name
    asked = source.tokenizer_name
    tokenizer = load_tokenizer(asked) if asked else load_tokenizer(folder, gguf_file=name)
    return load_model(folder, gguf_file=name, dtype=source.dtype), tokenizer
