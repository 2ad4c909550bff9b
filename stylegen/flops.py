"""What a model costs to train, in floating-point operations: any architecture, by its own weights.

Of a model that exists, or of one whose weights do not: only their shapes are looked at.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from stylegen.config import TrainArguments
from stylegen.metrics import flops_per_token, peak_flops, product_precision

NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def training_flops_per_token(model: PreTrainedModel, block_size: int) -> float:
    """FLOPs of a training step for each of its tokens, as `metrics.flops_per_token` counts them.

    model       whole, as it is before FSDP or ZeRO take it to pieces; frozen weights are seen as such
    block_size  tokens that attend to each other
    """
    config = model.config.get_text_config()
    trained, frozen = matmul_parameters(model)
    heads = getattr(config, "num_attention_heads", None) or 0
    width = heads * (getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0))
    return flops_per_token(trained + frozen, config.num_hidden_layers, width, block_size, frozen)


def device_peak_flops(device: torch.device, arguments: TrainArguments) -> float | None:
    """Peak of the device in the precision of the run, in FLOPs a second; None if it is not known, as of all CPUs."""
    if device.type != "cuda":
        return None
    precision = product_precision(arguments.mixed_precision, arguments.dtype, arguments.tf32)
    return peak_flops(torch.cuda.get_device_name(device), precision)


def matmul_parameters(model: PreTrainedModel) -> tuple[float, float]:
    """(trained, frozen) weights that each token is multiplied with.

    A tied output layer counts once, an embedding that is only looked up, norms and biases not. Of experts those count
    which a token is sent to.
    """
    config = model.config.get_text_config()
    per_token = getattr(config, "num_experts_per_tok", None) or 0
    numbers_of_experts = {getattr(config, name, None) for name in NUM_EXPERTS if per_token}
    output = model.get_output_embeddings()
    head = None if output is None else output.weight
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)} - {id(head)}
    sums = [0.0, 0.0]
    for parameter in model.parameters():
        if parameter.ndim < 2 or id(parameter) in tables:
            continue
        is_expert = parameter.ndim == 3 and parameter.size(0) in numbers_of_experts
        part = per_token / parameter.size(0) if is_expert else 1.0
        sums[not parameter.requires_grad] += part * parameter.numel()
    return sums[0], sums[1]
