"""What makes writing fast on a CPU, where each token waits for the memory that the weights come from.

Two things, neither of which changes what is computed: weights lie in the order in which they are multiplied, and the
attention of a single token is two plain products, since the kernel that torch takes in 16 bits is made for many.
"""

import contextlib
import platform
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.pytorch_utils import Conv1D

from stylegen.optim import cpu_multiplies_bf16

ATTENTION = "stylegen_decoding"
FEW_ROWS = 8  # that the order of the weights is best for; it hardly matters which few


def can_pack(model: PreTrainedModel) -> bool:
    """Whether `pack_weights` has an order to offer: for fp32 and bf16, on x86 processors that multiply it."""
    is_here = model.device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64")
    multiplies = {torch.float32: True, torch.bfloat16: cpu_multiplies_bf16()}
    return is_here and torch.backends.mkldnn.is_available() and multiplies.get(model.dtype, False)


def pack_weights(model: PreTrainedModel) -> None:
    """Keep a copy of the weights of linear layers in oneDNN's own order, in which it multiplies few rows.

    Otherwise it brings them into that order anew at every token. The copy takes as much memory again, and the weights
    must not change afterwards. Only for a model for which `can_pack` holds.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D)) and type(module) in (nn.Linear, Conv1D):
            weight = module.weight if type(module) is nn.Linear else module.weight.t()
            setattr(module, "forward", _packed(weight, module.bias))  # noqa: B010  (mypy knows it as a method)


def _packed(weight: torch.Tensor, bias: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """A linear layer's forward pass; what torch.compile makes of one whose weights are frozen."""
    order = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), FEW_ROWS)
    fixed = None if bias is None else bias.detach()
    return lambda hidden: torch.ops.mkldnn._linear_pointwise(hidden, order, fixed, "none", [], "")


@contextlib.contextmanager
def decoding_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within, a model on a CPU that uses torch's attention takes ours for single tokens in 16 bits."""
    own = model.config._attn_implementation
    if own != "sdpa" or model.device.type != "cpu":
        yield
        return
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As Transformers calls it: query (B, H, T, C), key and value (B, H or fewer, S, C), mask bool (B, 1, T, S)."""
    is_plain = attention_mask is None or (attention_mask.dtype == torch.bool and attention_mask.shape[1] == 1)
    if query.shape[2] > 1 or query.dtype == torch.float32 or dropout or not is_plain or _has_bias(options):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    batch, heads, _, width = query.shape
    # Heads that share a key are rows of one product.
    rows = query.reshape(batch, key.shape[1], heads // key.shape[1], width)
    scores = torch.matmul(rows, _with_room(key).transpose(-1, -2)).float()
    scores *= width**-0.5 if scaling is None else scaling
    scores[..., key.shape[2] :] = -torch.inf
    if attention_mask is not None:
        scores[..., : key.shape[2]].masked_fill_(~attention_mask, -torch.inf)
    output = torch.matmul(scores.softmax(-1).to(value.dtype), _with_room(value))
    return output.reshape(batch, 1, heads, value.shape[-1]), None


def _with_room(states: torch.Tensor) -> torch.Tensor:
    """Keys or values (B, H, T, C) with the room behind them, if there is any.

    oneDNN would copy a part of a tensor before it multiplies, and prepare itself anew for each length.
    """
    batch, heads, length, width = states.shape
    room = states.stride(1) // width
    dense = (heads * room * width, room * width, width, 1)
    if room > length and states.stride() == dense:
        return states.as_strided((batch, heads, room, width), dense)
    return states


def _has_bias(options: dict[str, Any]) -> bool:
    return any(options.get(name) is not None for name in ("position_bias", "s_aux", "softcap"))


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
