"""`tf_model.h5` of Transformers' TFGPT2LMHeadModel, read by h5py: neither TensorFlow nor Keras is needed."""

import re
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stylegen.config import UsageError
from stylegen.config.commands import SourceArguments
from stylegen.export.find import tokenizer_for
from stylegen.export.fit import fit_weights
from stylegen.export.gpt2 import explained
from stylegen.model import load_config

# Above it stand the layer and the model once more: transformer/tfgpt2lm_head_model/transformer/h_._0/...
NAME = re.compile(r".*/transformer/(.+)/(\w+):0")
PARTS = {"gamma": "weight", "beta": "bias", "embeddings": "weight"}


def find(path: Path) -> Path | None:
    """A .h5 file itself, or tf_model.h5 in a folder."""
    file = path / "tf_model.h5" if path.is_dir() else path
    return file if file.is_file() and file.suffix == ".h5" else None


def load(found: Path, source: SourceArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model, and the tokenizer beside it; needs h5py."""
    config = load_config(source.config_name or str(found.parent))
    if config.model_type != "gpt2":
        raise UsageError(
            f"{found} is a {config.model_type} model, of Keras only GPT-2 is read; get safetensors"
        )
    return fit_weights(config, _weights(found), found).eval(), tokenizer_for(source, found.parent)


def _weights(found: Path) -> dict[str, torch.Tensor]:
    with explained(f"{found} cannot be read", "pip install h5py"):
        import h5py
    weights: dict[str, torch.Tensor] = {}

    def read(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and (parts := NAME.fullmatch(name)):
            # Its numbers may be kept in other files, and a few bytes may claim to be any amount of them.
            if item.external or item.is_virtual or item.nbytes > found.stat().st_size:
                raise ValueError(f"the numbers of {name} are not in it")
            tensor, part = torch.from_numpy(item.astype("float32")[()]), PARTS.get(parts[2], parts[2])
            layer = parts[1].replace("h_._", "h.").replace("/", ".")
            weights[f"transformer.{layer}.{part}"] = tensor.flatten() if part == "bias" else tensor

    with explained(f"no model in {found}", "it is damaged, or not of Keras"), h5py.File(found, "r") as file:
        file.visititems(read)  # it follows no links
    return weights
