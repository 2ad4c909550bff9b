"""Weights and optimizer state as whole tensors by name, however the processes hold them: DDP, FSDP2 or ZeRO.

A checkpoint is written from whole tensors and read back by whatever topology comes next, each process taking its
piece. Every function here is a collective: all ranks go through the parameters in the same order.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from stylegen.lora import has_adapter, saved_parameters
from stylegen.optim import torch_optimizers
from stylegen.runtime import cuts_weights, zero_stage

STEP = "step"  # AdamW's own count of its steps, of each parameter
CHECKSUM_ELEMENTS = 1 << 18  # at a time, so that a processor's cache holds them: ten times as fast


class SavedState(Protocol):
    """The optimizer state of a checkpoint: whole tensors by parameter and key, on the CPU."""

    def keys(self, parameter: str) -> list[str]:
        """What there is of a parameter, such as exp_avg."""

    def tensor(self, parameter: str, key: str) -> torch.Tensor:
        """One of these."""


def holds_pieces(accelerator: Accelerator) -> bool:
    """Whether the first rank has to collect the fp32 weights from the others (or from the optimizer) to save them."""
    return cuts_weights(accelerator) or zero_stage(accelerator) > 0


@contextlib.contextmanager
def accumulating(accelerator: Accelerator, model: nn.Module, is_last: bool) -> Iterator[None]:
    """Around a forward and backward pass: gradients meet over the ranks in the last one of a step.

    FSDP reduces in every pass instead, since gradients that wait would be whole ones; ZeRO by its stage.
    """
    accelerator.sync_gradients = is_last  # DeepSpeed takes its optimizer step within the last backward pass
    waits = not is_last and accelerator.distributed_type in (
        DistributedType.MULTI_CPU,
        DistributedType.MULTI_GPU,
    )
    with accelerator.no_sync(model) if waits else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def callable_inside(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Within, the base model of a prepared one can be called by itself, on all ranks alike.

    FSDP's root group (embeddings, last norm, output layer) belongs to the outer module, and is whole in here.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        yield
        return
    model.unshard()  # type: ignore[operator]
    try:
        yield
    finally:
        model.reshard()  # type: ignore[operator]


def whole_norm(norm: Any, device: torch.device) -> torch.Tensor:
    """The gradient norm that `clip_grad_norm_` returns, as a float scalar on `device`.

    It is in pieces under FSDP, None where DeepSpeed met an overflow.
    """
    if norm is None:
        return torch.tensor(math.inf, device=device)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)
    return norm.to(device, torch.float32)


def whole_weights(accelerator: Accelerator, model: nn.Module, keep: bool) -> dict[str, torch.Tensor]:
    """Weights and persistent buffers by name, on the CPU, tied ones once; empty on ranks that do not `keep` them.

    Of a model with an adapter only those of the adapter.

    Under DeepSpeed in bf16 or fp16 these are the fp32 master weights.
    """
    weights = {}
    saved = _settled_names(accelerator, model)
    for name, parameter in saved_parameters(model):
        whole = _whole_weight(accelerator, parameter)
        if keep:
            weights[name] = whole.detach().to("cpu", copy=True)
    if has_adapter(model) or not keep:
        return weights
    return weights | {
        name: buffer.to("cpu", copy=True) for name, buffer in model.named_buffers() if name in saved
    }


@torch.no_grad()
def weight_checksums(model: nn.Module) -> torch.Tensor:
    """A number for the bits of each parameter and their order, int64 (parameters,); weights have to be whole here.

    Whole numbers that wrap around: the same whatever order a device adds them in.
    """
    sums, device = [], next(model.parameters()).device
    factors = torch.arange(1, 2 * CHECKSUM_ELEMENTS, 2, device=device)  # odd: no bit falls out
    for parameter in model.parameters():
        kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[parameter.element_size()]
        total = torch.zeros((), dtype=torch.int64, device=device)
        for part in parameter.detach().flatten().view(kind).split(CHECKSUM_ELEMENTS):
            total = 31 * total + (part * factors[: len(part)]).sum()
        sums.append(total)
    return torch.stack(sums)


def collected_weights(
    accelerator: Accelerator, model: nn.Module, keep: bool, copies: bool = False
) -> dict[str, torch.Tensor] | None:
    """`whole_weights` where no process has them whole, or where copies are wanted; else None: the model has them."""
    return whole_weights(accelerator, model, keep) if copies or holds_pieces(accelerator) else None


def optimizer_state(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield (parameter, key, whole tensor) for all of the optimizer's state; nothing before its first step."""
    if zero_stage(accelerator):
        yield from _zero_state(model, optimizer)
        return
    _settled_names(accelerator, model)
    states = {
        parameter: state for part in torch_optimizers(optimizer) for parameter, state in part.state.items()
    }
    for name, parameter in model.named_parameters():
        for key, value in sorted(states.get(parameter, {}).items()):
            yield name, key, value.full_tensor() if isinstance(value, DTensor) else value


def load_optimizer_state(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, saved: SavedState
) -> None:
    """Give each rank its piece of the saved state."""
    if zero_stage(accelerator):
        _load_zero_state(model, optimizer, saved)
        return
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for part in torch_optimizers(optimizer):
        for group in part.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                part.state[parameter] = {
                    key: _piece(saved.tensor(name, key), key, parameter) for key in saved.keys(name)
                }


def undo_rounding(
    model: nn.Module, weights: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]
) -> None:
    """Bring back what DeepSpeed rounded to bf16 or fp16 with the model: its fp32 master weights, and the buffers.

    weights, buffers  by name, as they were before
    Of buffers the frequencies of rotary positions: rounded, they are off by whole turns after a thousand tokens. Others
    may have to be of the type of the weights.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            _set_zero(parameter, weights[name], None)
    for name, buffer in list(model.named_buffers()):
        module, _, leaf = name.rpartition(".")
        if "inv_freq" in leaf:
            setattr(model.get_submodule(module), leaf, buffers[name].to(buffer.device))


def _settled_names(accelerator: Accelerator, model: nn.Module) -> set[str]:
    """Names of what a model saves; and FSDP has its parameters in pieces again.

    After a forward pass without a backward pass its outermost group is still whole, and rounded in 16 bits. Making a
    state dict cuts it again.
    """
    names = set(model.state_dict())
    if accelerator.distributed_type == DistributedType.FSDP:
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return names


def _whole_weight(accelerator: Accelerator, parameter: nn.Parameter) -> torch.Tensor:
    if isinstance(parameter, DTensor):
        return parameter.full_tensor()
    if not zero_stage(accelerator):
        return parameter
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad:
        return safe_get_full_fp32_param(parameter)
    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def _piece(whole: torch.Tensor, key: str, parameter: torch.Tensor) -> torch.Tensor:
    whole = whole.to(parameter.device)
    if key == STEP or not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _zero_optimizers(optimizer: Any) -> tuple[Any, torch.optim.Optimizer, list[torch.Tensor]]:
    """(DeepSpeed's optimizer, the torch one inside, the flat fp32 pieces of this rank that the inner one knows)."""
    zero = optimizer.optimizer
    if type(zero).__name__ == "DeepSpeedZeroOptimizer_Stage3":
        return zero, zero.optimizer, zero.fp32_partitioned_groups_flat
    if type(zero).__name__ == "BF16_Optimizer":
        return zero, zero.optimizer, zero.fp32_groups_flat_partition
    return zero, zero.optimizer, zero.single_partition_of_fp32_groups


def _zero_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, str, torch.Tensor]]:
    from deepspeed.utils import safe_get_full_optimizer_state

    zero, inner, flats = _zero_optimizers(optimizer)
    if not inner.state:
        return
    _link(zero)
    state = inner.state[flats[0]]
    keys = sorted(
        key for key, value in state.items() if torch.is_tensor(value) and value.shape == flats[0].shape
    )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for key in keys:
                yield name, key, safe_get_full_optimizer_state(parameter, key)
            yield name, STEP, torch.tensor(float(state[STEP]))


def _load_zero_state(model: nn.Module, optimizer: torch.optim.Optimizer, saved: SavedState) -> None:
    zero, inner, flats = _zero_optimizers(optimizer)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    first = next(iter(parameters))
    keys = [key for key in saved.keys(first) if key != STEP]
    if not keys:
        return
    step = saved.tensor(first, STEP)
    for flat in flats:  # the inner optimizer makes its state at the first step only
        inner.state[flat] = {
            STEP: step.to(flat.device, copy=True),
            **{key: torch.zeros_like(flat) for key in keys},
        }
    _link(zero)
    for name, parameter in parameters.items():
        for key in keys:
            _set_zero(parameter, saved.tensor(name, key), key)


def _link(zero: Any) -> None:
    """Let stages 1 and 2 find the state of each parameter; DeepSpeed does so when only the first group has any."""
    if type(zero).__name__ == "DeepSpeedZeroOptimizer":
        zero._hp_optimizer_states_linked = False
    if type(zero).__name__ != "DeepSpeedZeroOptimizer_Stage3":
        zero._lazy_init_hp_params_optimizer_state()


def _set_zero(parameter: nn.Parameter, whole: torch.Tensor, key: str | None) -> None:
    """Set this rank's piece of the fp32 weight (no key), or of the optimizer's state under `key`."""
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    flat = whole.to(parameter.device, torch.float32)
    if not hasattr(parameter, "ds_tensor"):  # stages 1 and 2 keep the weights whole
        if key is None:
            safe_set_full_fp32_param(parameter, flat)
        else:
            safe_set_full_optimizer_state(parameter, flat, key)
        return
    # DeepSpeed's own "full" setter of stage 3 does not know that the last rank's piece is padded.
    size, number = parameter.ds_tensor.numel(), torch.distributed.get_rank()
    flat = nn.functional.pad(flat.flatten(), (0, size * torch.distributed.get_world_size() - flat.numel()))
    piece = flat.narrow(0, number * size, size)
    if key is None:
        safe_set_local_fp32_param(parameter, piece)
    else:
        safe_set_local_optimizer_state(parameter, piece, key)
