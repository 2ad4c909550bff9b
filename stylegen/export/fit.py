"""Weights by name -> the model that a configuration describes, where no library wrote the two together."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from stylegen.config import UsageError, first_line

# Parts of a name that wrapping adds anywhere: torch.compile, FSDP, activation checkpointing.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# What older versions of Transformers saved, and every version computes.
COMPUTED = ("attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias", "inv_freq")


def fit_weights(config: Any, weights: dict[str, torch.Tensor], where: Path) -> PreTrainedModel:
    """A model with exactly these weights, fp32.

    weights  by names that may all have one more prefix, such as `module.`; tied ones once or twice. Where those are not
             the same, sharding has cut the tie in training, and so it is cut here.
    Raises UsageError naming a tensor that is missing, has another shape, or is none of this architecture.
    """
    try:
        with no_init_weights():  # every one of them is written over
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        model.tie_weights()
    except Exception as error:
        raise UsageError(
            f"no model can be built by the configuration of {where}: {first_line(error)}"
        ) from error
    wanted, tied = model.state_dict(), defaultdict(list)
    weights = _named_as(wanted, weights)
    for name, tensor in wanted.items():
        tied[tensor.data_ptr()].append(name)
    shapes = {name: [*tensor.shape] for name, tensor in wanted.items()}
    for name in [name for name in weights if not (name.endswith(COMPUTED) and name not in wanted)]:
        if (shape := [*weights[name].shape]) != (by_config := shapes.get(name, "none of this architecture")):
            raise UsageError(
                f"no model in {where}: its {name} is {shape}, but by its configuration {by_config}; give the right one "
                f"with --config_name"
            )
    for names in tied.values():
        there = [name for name in names if name in weights]
        if not there:
            raise UsageError(f"no model in {where}: it lacks the tensor {names[0]}")
        if any(not torch.equal(weights[there[0]], weights[name]) for name in there[1:]):
            config.tie_word_embeddings = False
            return fit_weights(config, weights, where)
        wanted[names[0]].copy_(weights[there[0]])  # the model's own memory
    return model


def _named_as(wanted: dict[str, Any], weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights under the prefix that most of the wanted names have among them, without it."""
    plain = {
        ".".join(part for part in name.split(".") if part not in WRAPPERS): weights[name] for name in weights
    }
    prefixes = Counter(name.removesuffix(end) for name in plain for end in _ends(name) if end in wanted)
    prefix = prefixes.most_common(1)[0][0] if prefixes else ""
    return {name.removeprefix(prefix): plain[name] for name in plain if name.startswith(prefix)}


def _ends(name: str) -> Iterator[str]:
    return accumulate(reversed(name.split(".")), lambda end, part: f"{part}.{end}")
