"""What DeepSpeed wrote under ZeRO 1, 2 or 3, by Accelerate or by Transformers' Trainer: no DeepSpeed is needed.

Each rank's file holds its part of the fp32 weights, flat and end to end; names and shapes are in a file of the model.
Under ZeRO-1 and 2 a group of parameters is one long vector that is cut into equal parts, under ZeRO-3 each parameter
is. Nothing is unpickled but tensors and plain values; DeepSpeed's classes in between are stood in for.
"""

import math
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stylegen.config import UsageError
from stylegen.config.commands import SourceArguments
from stylegen.export.accelerate_state import described, read_tensors
from stylegen.trust import check_files

LATEST, MODEL, OPTIMIZER = "latest", "mp_rank_00_model_states.pt", "mp_rank_00_optim_states.pt"


class _Unused:
    """Stands in for a class of DeepSpeed whose values are of no use here."""

    def __init__(self, *_: Any) -> None:
        pass


CLASSES = tuple(
    (_Unused, f"deepspeed.{name}")
    for name in (
        "utils.tensor_fragment.fragment_address", "runtime.zero.config.ZeroStageEnum",
        "runtime.fp16.loss_scaler.LossScaler", "runtime.fp16.loss_scaler.DynamicLossScaler",
    )
)  # fmt: skip


def find(path: Path) -> Path | None:
    """The folder with the files of the ranks: `path` itself, or the one in it that `latest` names."""
    path = path.absolute().parent if path.name.endswith("_states.pt") else path.absolute()
    state = path.parent if any(path.glob("*_states.pt")) else path
    if not any(state.glob("*/*_states.pt")):
        return None
    if not (state / LATEST).is_file():
        raise UsageError(f"{state} has no file {LATEST}: DeepSpeed did not finish it, use another checkpoint")
    named = PurePath((state / LATEST).read_text(encoding="utf-8", errors="replace").strip()).name
    return path if path != state else state / named


def load(found: Path, source: SourceArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model with the fp32 weights of the optimizer, and the tokenizer; both described beside or above the state."""
    return described(found.parent, lambda: _read(found), source)


def _read(folder: Path) -> dict[str, torch.Tensor]:
    is_cut = not (folder / MODEL).is_file()  # ZeRO-3 has such a file of each rank
    first = _file(folder, f"zero_pp_rank_0_{MODEL}" if is_cut else MODEL)
    ranks = range(first["dp_world_size"])
    models = [_file(folder, f"zero_pp_rank_{rank}_{MODEL}") for rank in ranks] if is_cut else [first]
    prefix = "bf16_" if (folder / f"bf16_zero_pp_rank_0_{OPTIMIZER}").is_file() else ""
    names = [f"{prefix}zero_pp_rank_{rank}_{OPTIMIZER}" for rank in ranks]
    parts = [_file(folder, name)["optimizer_state_dict"] for name in names]
    buffers = {name: tensor for name, tensor in first["module"].items() if name in first["buffer_names"]}
    frozen = {  # not trained, so not in the optimizer
        name: _joined([model["frozen_param_fragments"][name] for model in models], shape)
        for name, shape in (first["frozen_param_shapes"] or {}).items()
    }
    trained = _merge_cut if is_cut else _merge_whole
    return buffers | frozen | dict(trained(first["param_shapes"], parts))


def _file(folder: Path, name: str) -> Any:
    check_files(folder, (folder / name,))
    return read_tensors(folder / name, CLASSES, mmap=True)


def _merge_whole(groups: list[dict], parts: list[dict]) -> Iterator[tuple[str, torch.Tensor]]:
    padding = parts[0].get("param_alignment_paddings")
    for number, shapes in enumerate(groups):
        flat = torch.cat([part["single_partition_of_fp32_groups"][number] for part in parts])
        start = 0
        for (name, shape), gap in zip(
            shapes.items(), padding[number] if padding else [0] * len(shapes), strict=True
        ):
            yield name, flat[start : start + math.prod(shape)].view(shape)
            start += math.prod(shape) + gap


def _merge_cut(groups: list[dict], parts: list[dict]) -> Iterator[tuple[str, torch.Tensor]]:
    flats = [torch.cat(list(part["fp32_flat_groups"])) for part in parts]
    start = 0
    for name, shape in [pair for shapes in groups for pair in shapes.items()]:
        size = math.ceil(math.prod(shape) / len(parts))
        yield name, _joined([flat[start : start + size] for flat in flats], shape)
        start += size


def _joined(pieces: list[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    return torch.cat([piece.flatten() for piece in pieces])[: math.prod(shape)].view(shape)
