"""Build or load the model: any causal language model of Transformers."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.activations import FastGELUActivation, NewGELUActivation

from stylegen.config import TrainArguments, UsageError, first_line
from stylegen.config.checks import POSITION_KEYS, positions_of
from stylegen.lora import has_adapter, save_adapter
from stylegen.tokenizer import num_ids
from stylegen.trust import check_source, forget_code

LARGEST_DEFAULT_BLOCK = 1024


def check_isolation(model: PreTrainedModel) -> None:
    """Raise UsageError if documents that share a block would see each other, or not be numbered from 0.

    Two short documents in a block, in two rows whose border is not the same: the second must not change with the
    first, and have the logits that it has alone. Transformers isolates documents by their position ids where it builds
    the attention mask; not every architecture asks it to, and some kernels do only for one row.
    """
    longest = min(context_length(model) or 7, 7)
    lengths = (min(5, longest), longest)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            leaks = any(_leak(model, *pair) for pair in (lengths, lengths[::-1]))
    except TypeError:  # it takes no position ids
        leaks = True
    model.train(was_training)
    if leaks:
        raise UsageError(
            f"packing document would leak: the architecture {model.config.model_type} lets documents that share a "
            f"block see each other; use --packing stream, or pad"
        )


def _leak(model: PreTrainedModel, first: int, second: int) -> bool:
    """Whether a document of `second` tokens is not the same behind one of `first` as alone."""
    count = embedding_rows(model) - 1
    positions = torch.cat([torch.arange(first), torch.arange(second)])
    other_border = torch.cat([torch.arange(second), torch.arange(first)])
    ids = torch.arange(1, first + second + 1) % count
    changed = torch.cat([(ids[:first] + 3) % count, ids[first:]])
    rows = torch.stack([positions, other_border]).to(model.device)
    behind = [
        compute_logits(model, row.expand(2, -1).to(model.device), rows)[0, first:].float()
        for row in (ids, changed)
    ]
    alone = compute_logits(model, ids[None, first:].to(model.device), None)[0].float()
    scale = float(alone.abs().max())
    same = torch.allclose(behind[0], behind[1], rtol=0, atol=1e-6 * scale)
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.1
    return not same or not torch.allclose(behind[0], alone, rtol=tolerance, atol=tolerance * scale)


def config_for(arguments: TrainArguments) -> tuple[Any, int]:
    """(configuration of the model to train, tokens in a block)."""
    if arguments.model_name_or_path:
        config = load_config(arguments.model_name_or_path, arguments.model_revision, arguments.gguf_file)
    else:
        config = scratch_config(
            arguments.model_type, arguments.config_name, arguments.config_overrides, arguments.block_size
        )
    positions = positions_of(config.get_text_config().to_dict())
    return config, default_block_size(positions, arguments.block_size)


def load_config(name_or_path: str, revision: str | None = None, gguf_file: str | None = None):
    """The configuration of a pretrained model, from a folder, the hub, or a GGUF file in one of them."""
    check_source(name_or_path, gguf_file)
    try:
        config = AutoConfig.from_pretrained(
            name_or_path, revision=revision, trust_remote_code=False, **_gguf(gguf_file)
        )
    except Exception as error:  # whatever a folder of somebody else's makes the libraries raise
        raise UsageError(
            f"no model configuration in {name_or_path} ({first_line(error)}); "
            f"give a folder with config.json and weights, or a hub id"
        ) from error
    forget_code(config)
    if gguf_file and hasattr(
        config, "n_ctx"
    ):  # Transformers reads the positions of a GPT-2 there under an old name
        config.n_positions = config.n_ctx
    return config


def load_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    dtype: str,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """A pretrained model with weights of `dtype`, whatever type the file has."""
    check_source(name_or_path, gguf_file)
    options: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": False,
        "weights_only": True,
        "dtype": getattr(torch, dtype),
        "attn_implementation": attn_implementation,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are reported, and refused below
        **_gguf(gguf_file),
    }
    if gguf_file:
        options["config"] = load_config(name_or_path, revision, gguf_file)
    loaded: Any
    try:
        loaded = AutoModelForCausalLM.from_pretrained(name_or_path, **options)
    except Exception as error:
        reason = first_line(error)
        if "weights_only" in reason:  # torch's own advice is to trust the file
            reason = (
                "its weights are a pickle of more than tensors, which could run code; get them as safetensors"
            )
        raise UsageError(f"no model in {name_or_path}: {reason}") from error
    model, report = loaded
    forget_code(model.config)
    if missing := report["missing_keys"]:  # transformers would fill them with random numbers
        raise UsageError(
            f"no model in {name_or_path}: it lacks {len(missing)} tensors, such as {min(missing)}"
        )
    if wrong := sorted(report["mismatched_keys"]):
        name, there, wanted = wrong[0]
        raise UsageError(
            f"no model in {name_or_path}: its {name} is {[*there]}, by its configuration {[*wanted]}"
        )
    if gguf_file:  # the weights are plain ones now
        model.hf_quantizer = None
        del model.config.quantization_config
    fuse_activations(model)
    # Where <|endoftext|> also pads, this would keep it from being learnt; padding itself never counts in our loss.
    model.get_input_embeddings().padding_idx = None
    return model


def scratch_config(
    model_type: str | None, config_name: str | None, overrides: dict[str, Any], block_size: int | None
):
    """The configuration of a new model: an architecture's defaults, then `overrides`.

    Positions not asked for are as many as a block has: a model cannot learn those that it never sees.
    """
    if config_name:
        config = load_config(config_name)
    else:
        assert model_type
        if model_type not in CONFIG_MAPPING:
            raise UsageError(
                f"model_type {model_type} is not known to transformers; for example gpt2, llama, qwen2, gpt_neox"
            )
        config = CONFIG_MAPPING[model_type]()
    for key in overrides:
        if not hasattr(config, key) or key.startswith("_"):
            raise UsageError(
                f"config_overrides names {key}, which a {config.model_type} configuration does not have"
            )
    try:
        if config_name:
            for key, value in overrides.items():
                setattr(config, key, value)
            return config
        position_key = _position_key(config)
        if block_size and position_key and not any(name in overrides for name in POSITION_KEYS):
            overrides = {**overrides, position_key: block_size}
        return type(config)(**overrides)  # anew, so that what it derives follows the overrides
    except Exception as error:
        raise UsageError(
            f"config_overrides do not make a {config.model_type} configuration: {first_line(error)}"
        ) from error


def build_model(
    config, tokenizer: PreTrainedTokenizerFast, *, dtype: str, attn_implementation: str | None
) -> PreTrainedModel:
    """A new model whose embedding has exactly the rows that the tokenizer needs."""
    config.vocab_size = num_ids(tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    # A padding id of its own only: some architectures never train the embedding of the padding id.
    config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id != tokenizer.eos_token_id else None
    heads = getattr(config, "num_attention_heads", 1)
    shared = getattr(config, "num_key_value_heads", None) or 1
    if heads % shared:
        raise UsageError(
            f"a {config.model_type} model of {heads} attention heads cannot share num_key_value_heads {shared}; "
            f"set num_key_value_heads in config_overrides"
        )
    try:
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            trust_remote_code=False,
        )
    except Exception as error:
        raise UsageError(f"a {config.model_type} model cannot be built so: {first_line(error)}") from error
    fuse_activations(model)
    return model


def fuse_activations(model: nn.Module) -> None:
    """Put torch's own GELU in the place of those that Transformers writes out in eight operations, GPT-2's among them.

    The same formula (D. Hendrycks, K. Gimpel, 2016, with the tanh) to rounding; the model's configuration stays.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation | FastGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def fit_embedding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Add embedding rows if the tokenizer has words that the model does not; never takes rows away."""
    if num_ids(tokenizer) > embedding_rows(model):
        model.resize_token_embeddings(num_ids(tokenizer))


def embedding_rows(model: PreTrainedModel) -> int:
    """Words the model has an embedding for; some models have more than their tokenizer."""
    return model.get_input_embeddings().weight.size(0)  # type: ignore[operator]


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a plain Transformers folder: config.json, model.safetensors, tokenizer.json and their like.

    Of a model with an adapter: adapter_config.json and adapter_model.safetensors in place of the first two.

    weights  whole fp32 weights by name where the model itself holds pieces of them; tied ones once
    """
    # Who calls this writes; Transformers would let the first rank alone, and each machine may keep a copy.
    model.should_save_on_this_rank = lambda is_main_process: True  # type: ignore[method-assign]
    if has_adapter(model):
        save_adapter(model, folder, weights)
    elif weights is None:
        model.save_pretrained(str(folder))
    else:
        written, trains = next(iter(weights.values())).dtype, model.config.dtype
        model.save_pretrained(str(folder), state_dict=weights)  # takes the weights out of the dictionary
        model.config.dtype = written
        model.config.save_pretrained(str(folder))
        model.config.dtype = trains
    tokenizer.save_pretrained(str(folder))


def save_description(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write what `save_model` does beside the weights."""
    model.config.save_pretrained(str(folder))
    if model.can_generate():
        model.generation_config.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def default_block_size(positions: int | None, asked: int | None) -> int:
    """Tokens in a block: as asked, else what the model attends to, at most 1,024."""
    if asked and positions and asked > positions:
        raise UsageError(
            f"block_size is {asked}, but the model has {positions} positions; use --block_size {positions} or less"
        )
    return asked or min(positions or LARGEST_DEFAULT_BLOCK, LARGEST_DEFAULT_BLOCK)


def context_length(model: PreTrainedModel) -> int | None:
    """Tokens the model can attend to, or None if its configuration sets no limit."""
    return positions_of(model.config.get_text_config().to_dict())


def compute_logits(
    model: PreTrainedModel, input_ids: torch.Tensor, position_ids: torch.Tensor | None
) -> torch.Tensor:
    """(B, T, V). Without a cache and without an attention mask: only so are documents told apart by their positions."""
    positions = {} if position_ids is None else {"position_ids": position_ids}
    return model(input_ids=input_ids, use_cache=False, **positions).logits


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay; norms, biases and embeddings (tied output layer included) without.

    Each group is named: "matrices", "embeddings", "vectors".
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    if isinstance(model, PreTrainedModel) and (output := model.get_output_embeddings()) is not None:
        embeddings.add(id(output.weight))
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "embeddings": [], "vectors": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            kind = (
                "embeddings"
                if id(parameter) in embeddings
                else "matrices"
                if parameter.ndim >= 2
                else "vectors"
            )
            groups[kind].append(parameter)
    decay = {"matrices": weight_decay, "embeddings": 0.0, "vectors": 0.0}
    return [
        {"name": name, "params": params, "weight_decay": decay[name]}
        for name, params in groups.items()
        if params
    ]


def num_parameters(model: nn.Module) -> int:
    """Parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def num_trained(model: nn.Module) -> int:
    """Parameters that are trained: fewer where an adapter is."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _position_key(config) -> str | None:
    return next((config.attribute_map.get(key, key) for key in POSITION_KEYS if hasattr(config, key)), None)


def _gguf(name: str | None) -> dict[str, str]:
    return {"gguf_file": name} if name else {}
