"""LoRA (E. Hu et al., 2021, arXiv:2106.09685): the pretrained model is frozen, small matrices beside its layers learn.

The layers are PEFT's, put into the model in place: it stays a Transformers model, and what is saved of it is an adapter
that PEFT loads on top of the same base model. Transformers' own bridge to PEFT is left aside: it refuses all but the
newest.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from stylegen.config import TrainArguments, UsageError, first_line

ADAPTER = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
NAME = "default"  # PEFT's own name for a single adapter
PREFIX = "base_model.model."  # of names in its files: where the model is in its own wrapper


def add_adapter(model: PreTrainedModel, arguments: TrainArguments, checkpoint: Path | None) -> None:
    """Freeze `model` and put an adapter into it: the one of a checkpoint, or a new one that changes nothing yet.

    Raises UsageError if its layers are not there.
    """
    from peft import LoraConfig, inject_adapter_in_model

    assert arguments.lora_r and arguments.model_name_or_path
    # "all-linear" is PEFT's word for all of them but the output layer.
    targets = arguments.lora_target_modules or "all-linear"
    head = model.get_output_embeddings()
    output = next((name for name, part in model.named_modules() if part is head), "")
    if output.rpartition(".")[2] in arguments.lora_target_modules:
        raise UsageError(
            f"lora_target_modules names the output layer, {output}, which an adapter leaves as it is; leave it out"
        )
    config = LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha or 2 * arguments.lora_r,  # type: ignore[arg-type]
        lora_dropout=arguments.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # it turns GPT-2's transposed layers round by itself, and says so
            inject_adapter_in_model(config, model, NAME)
    except ValueError as error:
        linear = {name.rpartition(".")[2] for name, part in model.named_modules() if hasattr(part, "weight")}
        raise UsageError(
            f"lora_target_modules {' '.join(arguments.lora_target_modules)}: {first_line(error)}; layers of this "
            f"model: {', '.join(sorted(linear))}"
        ) from error
    base = Path(arguments.model_name_or_path)
    # A folder is found again from everywhere on this machine.
    config.base_model_name_or_path = str(base.resolve()) if base.is_dir() else arguments.model_name_or_path
    config.revision = arguments.model_revision
    if checkpoint:
        _load_weights(model, checkpoint / WEIGHTS)


def has_adapter(model: nn.Module) -> bool:
    """Whether an adapter is in the model, and only that is trained and saved."""
    return hasattr(model, "peft_config")


def saved_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of all that a checkpoint keeps of a model, tied ones once: of one with an adapter only that."""
    whole = not has_adapter(model)
    return ((name, value) for name, value in model.named_parameters() if whole or value.requires_grad)


def save_adapter(model: PreTrainedModel, folder: Path, weights: dict[str, torch.Tensor] | None) -> None:
    """Write adapter_config.json and adapter_model.safetensors; `weights` as for `model.save_model`."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    model.peft_config[NAME].save_pretrained(str(folder))
    state = get_peft_model_state_dict(model, weights, NAME, save_embedding_layers=False)
    written = {PREFIX + name: value.detach().to("cpu").contiguous() for name, value in state.items()}
    save_file(written, str(folder / WEIGHTS), metadata={"format": "pt"})


def _load_weights(model: PreTrainedModel, path: Path) -> None:
    from peft import set_peft_model_state_dict

    weights = {name.removeprefix(PREFIX): value for name, value in load_file(str(path)).items()}
    result: Any = set_peft_model_state_dict(model, weights, adapter_name=NAME)
    lacking = [name for name in result.missing_keys if f".{NAME}." in name]
    if lacking or result.unexpected_keys:
        raise UsageError(
            f"{path} is not of this adapter: {(lacking + result.unexpected_keys)[0]}; restore it"
        )
