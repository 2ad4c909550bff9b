"""Optimizers and learning rates. The learning rate is a function of the step alone."""

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from transformers import get_scheduler

from stylegen.config import UsageError

DECAY_FRACTION = (
    0.2  # of all steps, the last part of warmup_stable_decay unless num_decay_steps says otherwise
)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the weight matrices, AdamW for the rest, behind the interface of one optimizer.

    Muon orthogonalizes the momentum of a matrix (K. Jordan et al., 2024). Its update is scaled to the root mean
    square of AdamW's, so one learning rate serves both.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, **adamw: Any):
        self.parts: tuple[torch.optim.Optimizer, ...] = ()
        super().__init__(groups, {"lr": lr, **adamw})
        matrices, others = _split_matrices(groups)
        if not matrices:
            raise UsageError("optim muon is for weight matrices, and this model has none; use --optim adamw")
        kind = torch.optim.Muon if cpu_multiplies_bf16() else _MuonInFloat32
        muon = kind(_plain(matrices), lr=lr, adjust_lr_fn="match_rms_adamw")
        self.parts = (muon, torch.optim.AdamW(_plain(others), lr=lr, **adamw)) if others else (muon,)
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


class _MuonInFloat32(torch.optim.Muon):
    """torch's Muon with its products in the type of the weights, for CPUs that have to emulate bf16."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if weight.device.type != "cpu":
                    return super().step(closure)
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight.grad)
                momentum = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                update = _orthogonalized(weight.grad.lerp(momentum, group["momentum"]), group)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                # The length that AdamW's update has, whose entries are about 0.2.
                weight.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(weight.shape)))
        return None


def cpu_multiplies_bf16() -> bool:
    """Whether this machine's processor has instructions for it."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def build_optimizer(
    name: str, groups: list[dict[str, Any]], learning_rate: float, betas: tuple[float, float], epsilon: float
) -> torch.optim.Optimizer:
    """`groups` as `model.parameter_groups` makes them; `name` is "adamw" or "muon"."""
    options: dict[str, Any] = {"betas": betas, "eps": epsilon, "fused": True}
    if name == "muon":
        return MuonWithAdamW(groups, learning_rate, **options)
    return torch.optim.AdamW(_plain(groups), lr=learning_rate, **options)


def torch_optimizers(optimizer: Any) -> tuple[torch.optim.Optimizer, ...]:
    """The plain torch optimizers inside, whose `state` is by parameter."""
    inner = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    return inner.parts if isinstance(inner, MuonWithAdamW) else (inner,)


def build_schedule(
    name: str, peak: float, num_warmup_steps: float, num_steps: int, options: dict[str, Any]
) -> Callable[[int], float]:
    """The learning rate of each optimizer step (0 is the first), as Transformers' `get_scheduler` defines it.

    num_warmup_steps  steps, or below 1 the fraction of `num_steps`
    options           the schedule's own, such as min_lr_rate
    Raises UsageError for options that the schedule does not have.
    """
    warmup = round(num_warmup_steps * num_steps) if num_warmup_steps < 1 else int(num_warmup_steps)
    if name == "warmup_stable_decay":
        options = {"num_decay_steps": round(DECAY_FRACTION * num_steps), **options}
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    try:
        if name.startswith("constant") and options:
            raise ValueError("it has no options")  # get_scheduler would drop them without a word
        # get_scheduler would drop the warm-up of "constant" without a word.
        kind = "constant_with_warmup" if name == "constant" and warmup else name
        factor = get_scheduler(kind, optimizer, warmup, max(num_steps, 1), options).lr_lambdas[0]
        probes = {0, warmup, (warmup + num_steps) // 2, num_steps - 1}
        for step in probes.intersection(range(num_steps)):  # a bad option shows only where it is used
            float(factor(step))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(f"lr_scheduler_type {name} with lr_scheduler_kwargs {options}: {error}") from error
    return lambda step: peak * factor(step)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """The learning rate of the next step, for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = value


def _split_matrices(groups: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(2-D weights of "matrices", everything else); embeddings stay AdamW's although they are 2-D."""
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for group in groups:
        for side, wanted in zip(sides, (True, False), strict=True):
            is_muon = group["name"] == "matrices"
            if chosen := [p for p in group["params"] if (is_muon and p.ndim == 2) == wanted]:
                side.append({**group, "params": chosen})
    return sides


def _orthogonalized(matrix: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    """About U V^T of a matrix U S V^T, by the Newton-Schulz iteration of Muon with the group's coefficients."""
    a, b, c = group["ns_coefficients"]
    wide = matrix.T if matrix.size(0) > matrix.size(1) else matrix
    wide = wide / wide.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.size(0) > matrix.size(1) else wide


def _plain(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in groups]
