"""The model of a run without its weights: its tensors have a shape and a type, but no memory."""

import logging
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stylegen.config import TrainArguments
from stylegen.flops import training_flops_per_token
from stylegen.lora import add_adapter
from stylegen.loss import chunk_rows
from stylegen.model import build_model, config_for, num_parameters, num_trained
from stylegen.plan.estimate import Model
from stylegen.tokenizer import load_tokenizer, num_ids

LARGEST_VOCABULARY = {"bpe": 32768, "char": 1024}  # of a trained tokenizer whose size the text decides
# Bytes that a layer keeps of a token for each unit of its width (Korthikanti et al., 2022, dropout included), where
# they cannot be counted.
LAYER_BYTES = 34
SHORT = 64  # tokens, enough to count what grows with their number alone


def vocabulary(arguments: TrainArguments) -> tuple[int, bool]:
    """(words that the run's tokenizer will have, whether that is only a bound, since the text decides it)."""
    if kind := arguments.train_tokenizer:
        known = arguments.vocab_size if kind == "bpe" else None
        return known or LARGEST_VOCABULARY[kind], not known
    if arguments.tokenizer_name:
        return num_ids(load_tokenizer(arguments.tokenizer_name)), False
    assert arguments.model_name_or_path
    where = arguments.model_name_or_path, arguments.model_revision, arguments.gguf_file
    return num_ids(load_tokenizer(*where)), False


def shape_of(arguments: TrainArguments, num_words: int, compute_type: str) -> Model:
    """What a plan has to know of the run's model and its step.

    num_words     of the tokenizer
    compute_type  in which weights are multiplied: "float32", "bfloat16" or "float16"
    Raises UsageError for a model that cannot be built.
    """
    config, block_size = config_for(arguments)
    if arguments.model_name_or_path:
        num_words = max(num_words, config.get_text_config().vocab_size)
    stored, computed = (getattr(torch, name).itemsize for name in (arguments.dtype, compute_type))
    with FakeTensorMode():
        model = _build(arguments, config, num_words)
        per_block, cast = _saved_bytes(model, block_size, computed < stored)
    head, text = model.get_output_embeddings(), model.config.get_text_config()
    layers = [num_parameters(part) for part in model.modules() if _is_layer(model, part)]
    return Model(
        num_parameters=num_parameters(model), num_trained=num_trained(model), largest_layer=max(layers, default=0),
        other_parameters=num_parameters(model) - sum(layers), vocab_size=num_words, hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers, flops_per_token=training_flops_per_token(model, block_size),
        weight_bytes=stored, compute_bytes=computed, block_size=block_size,
        micro_batch=arguments.per_device_train_batch_size, passes=arguments.gradient_accumulation_steps or 1,
        block_activations=per_block, cast_bytes=cast, checkpointing=arguments.gradient_checkpointing,
        chunk_rows=chunk_rows(num_words, torch.device("cuda")) if getattr(head, "bias", head) is None else None,
    )  # fmt: skip


def _build(arguments: TrainArguments, config: Any, num_words: int) -> PreTrainedModel:
    words = models.WordLevel({str(number): number for number in range(num_words)}, unk_token="0")
    stand_in = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="0", pad_token="0")
    # Other kernels than eager ones may be missing here, and keep what torch's own does.
    attention = arguments.attn_implementation if arguments.attn_implementation == "eager" else None
    model = build_model(config, stand_in, dtype=arguments.dtype, attn_implementation=attention)
    if arguments.lora_r:
        add_adapter(model, arguments, None)
    return model.eval()  # the masks of dropout are left out: on a CPU attention would then keep T x T


def _is_layer(model: PreTrainedModel, part: torch.nn.Module) -> bool:
    return type(part).__name__ in (model._no_split_modules or ())


def _saved_bytes(model: PreTrainedModel, block_size: int, is_mixed: bool) -> tuple[float, float]:
    """(bytes that the layers keep of a block for the backward pass, bytes of cast weights that they keep)."""
    text = model.config.get_text_config()
    tokens = block_size if getattr(text, "num_attention_heads", None) else min(block_size, SHORT)
    logging.disable()  # of a failure torch logs every frame
    try:
        one, two = (_count_saved(model, blocks, tokens, is_mixed) for blocks in (1, 2))
    except Exception:  # what cannot be traced on shapes alone, such as experts
        cast = 2 * sum(parameter.numel() for parameter in model.parameters()) if is_mixed else 0
        return LAYER_BYTES * block_size * text.hidden_size * text.num_hidden_layers, cast
    finally:
        logging.disable(logging.NOTSET)
    return (two - one) * block_size / tokens, max(2 * one - two, 0)


def _count_saved(model: PreTrainedModel, blocks: int, tokens: int, is_mixed: bool) -> int:
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}  # a tensor of each storage, which keeps its number its own

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (number := tensor.untyped_storage()._cdata) not in weights:
            saved[number] = tensor
        return tensor

    ids = torch.zeros(blocks, tokens, dtype=torch.long)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=is_mixed)
    with saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        result = model.base_model(input_ids=ids, use_cache=False)  # its graph is alive until all is counted
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del result
    return total
