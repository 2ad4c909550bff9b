"""What a name stands for, found by content; loaded for writing, or written as a plain folder."""

import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from stylegen.checkpoint import files_in, put_in_place, settle_files
from stylegen.config import UsageError
from stylegen.config.commands import SourceArguments
from stylegen.export import accelerate_state, adapter, folder, gguf, keras, nanogpt, tensorflow, zero
from stylegen.export.find import CONFIG, choose_checkpoint, local_path
from stylegen.model import context_length, embedding_rows, fuse_activations, num_parameters, save_model
from stylegen.tokenizer import num_ids

# In the order in which they are looked for: a folder may hold several, such as an adapter beside its base model.
FORMATS: dict[ModuleType, str] = {
    adapter: "adapter (adapter_config.json)",
    zero: "state of DeepSpeed",
    accelerate_state: "state of Accelerate",
    folder: "Transformers model (config.json)",
    nanogpt: "nanoGPT checkpoint (ckpt.pt)",
    keras: "Keras model (tf_model.h5)",
    tensorflow: "TensorFlow checkpoint of GPT-2 (*.index)",
    gguf: "GGUF file",
}
TOLERANCE = 1e-5  # of the largest logit, between a model and what is read back of it


class Found(NamedTuple):
    """What a user's name of a model stands for."""

    format: ModuleType
    path: Path | str  # what the module's `load` takes; a hub id is no Path

    def __str__(self) -> str:
        return f"{FORMATS[self.format] if isinstance(self.path, Path) else 'model of the hub'}: {self.path}"


def find_model(name: str, source: SourceArguments) -> Found:
    """The model that `name` stands for; in a run directory the one that `source.checkpoint` says.

    What is no local path is a hub id. Raises UsageError saying what was looked for.
    """
    path = local_path(name)
    place = choose_checkpoint(path or Path(name), source.checkpoint)
    if path is None:
        return Found(folder, name)
    for each in FORMATS:
        if found := each.find(place):
            return Found(each, found)
    if (place / CONFIG).is_file():
        return Found(folder, place)  # Transformers says best what is missing
    if place.is_file():
        raise UsageError(f"{place} is a file that is no model by itself; give the folder that it lies in")
    raise UsageError(f"{place} holds no model; looked for: run directory, {', '.join(FORMATS.values())}")


def load_for_writing(
    name: str, source: SourceArguments, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model in evaluation mode on `device`, with weights of `source.dtype`, and its tokenizer."""
    return _load(find_model(name, source), source, device)


def export(name: str, source: SourceArguments, out: Path) -> list[str]:
    """Write the model as a plain Transformers folder, whole or not at all; returns lines that say what was done.

    Raises UsageError if `out` is not new or empty, and if what Transformers reads back is not the same model.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UsageError(f"{out} exists; give a folder that is new or empty")
    found, out = find_model(name, source), out.resolve()
    model, tokenizer = _load(found, source, torch.device("cpu"))
    temporary = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        save_model(model, tokenizer, temporary)
        settle_files(temporary, files_in(temporary))
        difference = _difference(model, tokenizer, temporary)
        if not difference <= TOLERANCE:
            raise UsageError(
                f"{out} is not written: what Transformers reads back is another model, whose logits differ by "
                f"{difference:.1e} of the largest"
            )
        if out.is_dir():
            out.rmdir()  # it is empty
        put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = f"{num_parameters(model):,} parameters, {source.dtype}, {num_ids(tokenizer):,} words"
    return [
        f"found    {found}",
        f"written  {out}: {model.config.model_type}, {size}",
        f"checked  read back by Transformers, no logit differs by more than {difference:.1e} of the largest",
    ]


def _load(
    found: Found, source: SourceArguments, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    dtype = getattr(torch, source.dtype)
    model, tokenizer = found.format.load(found.path, source)
    rows = embedding_rows(model)
    if num_ids(tokenizer) > rows:
        raise UsageError(
            f"the tokenizer in {source.tokenizer_name or found.path} has {num_ids(tokenizer)} words, the model {rows}; "
            f"they do not belong together"
        )
    for parameter in model.parameters():  # of buffers, the frequencies of positions have to stay exact
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    fuse_activations(model)
    model.to(device)
    return model.eval(), tokenizer


@torch.no_grad()
def _difference(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, written: Path) -> float:
    """Of the logits of the written model from those of `model`, over the largest; infinite for another tokenizer."""
    if (
        AutoTokenizer.from_pretrained(str(written), trust_remote_code=False).get_vocab()
        != tokenizer.get_vocab()
    ):
        return float("inf")
    again = AutoModelForCausalLM.from_pretrained(
        str(written), dtype=model.dtype, trust_remote_code=False
    ).eval()
    fuse_activations(again)  # in half precision another way of computing would look like other weights
    ids = torch.arange(min(16, embedding_rows(model), context_length(model) or 16))[None]
    logits, others = (each(input_ids=ids).logits.float() for each in (model, again))
    return float((logits - others).abs().max() / logits.abs().max())
