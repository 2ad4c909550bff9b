"""A PEFT adapter, such as LoRA's: its base model is found, and the adapter merged into it."""

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stylegen.config import UsageError, first_line
from stylegen.config.commands import SourceArguments
from stylegen.export import folder
from stylegen.export.find import ADAPTER, choose_checkpoint, is_run, local_path, tokenizer_for
from stylegen.model import embedding_rows, load_model
from stylegen.trust import check_source

MERGED = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "VERA")  # these leave nothing but changed weights
FLAG = "--base_model_name_or_path"


def find(path: Path) -> Path | None:
    """The folder with adapter_config.json, also for one of its files."""
    place = path.parent if path.is_file() and path.name.startswith("adapter_") else path
    return place if (place / ADAPTER).is_file() else None


def load(found: Path, source: SourceArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The base model with the adapter merged in; the adapter's own tokenizer, else that of the base."""
    if not importlib.util.find_spec("peft"):
        raise UsageError(f"{found} is an adapter, which the package peft reads; pip install peft")
    check_source(found, adapter=True)
    config = json.loads((found / ADAPTER).read_text(encoding="utf-8"))
    if not isinstance(config, dict) or config.get("peft_type") not in MERGED:
        raise UsageError(f"{found / ADAPTER} is of no kind that can be merged: {', '.join(MERGED)}")
    if config.get("megatron_config"):  # PEFT would import the module that it names
        raise UsageError(
            f"{found / ADAPTER} asks for code with megatron_config, and that is never run; take it out"
        )
    base = _find_base(found, str(config.get("base_model_name_or_path") or ""), source)
    is_followed = isinstance(base, str) and not source.base_model_name_or_path
    try:
        revision = config.get("revision") if is_followed else None
        tokenizer = tokenizer_for(source, found, base)
        model = load_model(str(base), revision=revision, dtype="float32")
    except UsageError as error:
        if not is_followed:
            raise
        raise UsageError(
            f"{error}; the adapter {found} names it as its base: give {FLAG} to fetch it"
        ) from error
    return _merged(model, found), tokenizer


def _find_base(adapter: Path, named: str, source: SourceArguments) -> Path | str:
    """The folder or hub id of the base model: as asked, else as named, else a folder beside the adapter or above it."""
    if asked := source.base_model_name_or_path:
        path = local_path(asked)
        found = folder.find(choose_checkpoint(path, "best")) if path else asked
        if not found:
            raise UsageError(
                f"{FLAG} {asked} holds no Transformers model; python -m stylegen.export makes one"
            )
        return found
    above = adapter.absolute().parent
    is_hub_id = bool(named) and not Path(named).is_absolute() and ".." not in named and named.count("/") <= 1
    places = [Path(named).expanduser(), adapter / named, above / Path(named).name] if named else []
    if not is_hub_id and not is_run(above):  # of a run that may be the merged model
        places.append(above)
    if found := next(filter(None, map(folder.find, places)), None) or (named if is_hub_id else None):
        return found
    said = f"names {named}, which is not here" if named else "names none"
    raise UsageError(f"no base model for the adapter {adapter}: it {said}; give it with {FLAG}")


def _merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    try:
        weights: dict[str, Any] = load_peft_weights(str(adapter), device="cpu")
        embedding = next(name for name, part in model.named_modules() if part is model.get_input_embeddings())
        rows = [tensor.size(0) for name, tensor in weights.items() if name.endswith(f".{embedding}.weight")]
        if rows and rows[0] != embedding_rows(
            model
        ):  # words were added to the base, and the adapter has them all
            model.resize_token_embeddings(rows[0])
        embedded: Any = model.get_input_embeddings()
        output: Any = model.get_output_embeddings()
        if output is not None and output.weight is embedded.weight:
            head = next(name for name, part in model.named_modules() if part is output)
            if any(f".{head}.lora_" in name for name in weights):  # the embedding is not to change with it
                output.weight = nn.Parameter(output.weight.detach().clone())
        with warnings.catch_warnings(action="ignore"):
            adapted: Any = PeftModel.from_pretrained(model, str(adapter), torch_device="cpu")
        has_layers = any(name.endswith(".base_layer.weight") for name in weights)
        # Asked to find out by itself whether the embedding belongs to it, PEFT would look for the base on the hub.
        wanted = get_peft_model_state_dict(adapted, save_embedding_layers=bool(rows) or has_layers)
        if odd := sorted(wanted.keys() ^ weights.keys()):
            what = (
                f"it lacks {odd[0]}" if odd[0] in wanted else f"the base model has no place for its {odd[0]}"
            )
            raise ValueError(what)
        merged = adapted.merge_and_unload(safe_merge=True)
        output = merged.get_output_embeddings()
        if output is not None and output.weight is not merged.get_input_embeddings().weight:
            merged.config.tie_word_embeddings = False  # the adapter has an output layer of its own
        return merged
    except Exception as error:
        raise UsageError(f"{adapter} is no adapter of this base model: {first_line(error)}") from error
