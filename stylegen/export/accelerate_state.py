"""What `accelerator.save_state` wrote of a model under DDP and FSDP, or weights without their config.json.

It is read by one process, whatever number of them wrote it. Of its many pickles only those with the weights are read,
by torch's reader of tensors alone, and the `.metadata` of a sharded one by a list of what may be in it.
"""

import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stylegen.config import UsageError, first_line
from stylegen.config.commands import SourceArguments
from stylegen.export.find import CONFIG, WEIGHTS, tokenizer_for
from stylegen.export.fit import fit_weights
from stylegen.model import load_config
from stylegen.trust import check_files, check_source, unpickle

SHARDED, WHOLE, METADATA = "pytorch_model_fsdp_0", "pytorch_model_fsdp.bin", ".metadata"
MARK = (
    "random_states_0.pkl"  # of a state: the weights may have the names of a wrapped model, config.json or not
)
CLASSES: dict[str, Any] = {
    **{f"{each.__module__}.{each.__name__}": each for each in (
        metadata.Metadata, metadata.MetadataIndex, metadata.TensorStorageMetadata, metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata, metadata.TensorProperties, metadata._MEM_FORMAT_ENCODING, metadata.StorageMeta,
        filesystem._StorageInfo, torch.Size, OrderedDict, torch.serialization._get_layout,
    )},
    **{f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    **dict.fromkeys(("pathlib.PosixPath", "pathlib._local.PosixPath"), PurePosixPath),  # of Python 3.13
}  # fmt: skip


def find(path: Path) -> Path | None:
    """The file or folder with the weights; `path` is the state's folder, or itself what is looked for."""
    if path.name in (SHARDED, WHOLE, *WEIGHTS):
        return find(path.parent)
    for name in (SHARDED, WHOLE):
        if (path / name).exists():
            return path / name
    if (path / CONFIG).is_file() and not (path / MARK).is_file():
        return None
    return next((path / name for name in WEIGHTS if (path / name).is_file()), None)


def load(found: Path, source: SourceArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model by the configuration beside or above it, and the tokenizer that lies there."""
    check_source(found.parent)
    return described(found.parent, lambda: _read_sharded(found) if found.is_dir() else _read(found), source)


def described(
    state: Path, read: Callable[[], dict[str, torch.Tensor]], source: SourceArguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model and tokenizer of a state, which holds weights alone: what describes them lies there or above, or is given.

    Raises UsageError if that is not so, and if `read` fails in whatever way.
    """
    places = (state, state.absolute().parent)
    config = source.config_name or next((str(each) for each in places if (each / CONFIG).is_file()), None)
    if config is None:
        raise UsageError(
            f"no {CONFIG} in {state} or above it; give the folder or hub id of one with --config_name"
        )
    tokenizer = tokenizer_for(source, *places)
    try:
        weights = read()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{state} is damaged ({first_line(error)}); use another checkpoint") from error
    return fit_weights(load_config(config), weights, state), tokenizer


def read_tensors(path: Path, classes: Any = (), mmap: bool = False) -> Any:
    """What `torch.save` wrote: tensors and plain values, and `classes`, pairs of what stands for a name and that name.

    Raises UsageError for anything else.
    """
    try:
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise UsageError(f"{path} is missing; the checkpoint is not whole, use another one") from None
    except Exception as error:  # whatever a damaged file makes torch raise
        reason = "is a pickle of more than tensors, which could run code, or damaged"
        raise UsageError(f"{path} {reason}; use another checkpoint") from error


def _read(found: Path) -> dict[str, torch.Tensor]:
    if found.suffix == ".json":
        shards = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
        return {name: tensor for shard in shards for name, tensor in _read(found.parent / shard).items()}
    weights = load_file(found) if found.suffix == ".safetensors" else read_tensors(found)
    if not isinstance(weights, dict) or not all(isinstance(each, torch.Tensor) for each in weights.values()):
        raise UsageError(f"{found} does not hold tensors by name; use another checkpoint")
    return weights


def _read_sharded(folder: Path) -> dict[str, torch.Tensor]:
    """A folder of torch.distributed.checkpoint, by its own reader with the metadata that we have read."""
    if not (folder / METADATA).is_file():
        raise UsageError(f"{folder} has no {METADATA}: it was not written to its end, use another checkpoint")
    check_files(folder, (folder / METADATA,))
    content = unpickle(folder / METADATA, CLASSES)
    check_files(folder, [folder / info.relative_path for info in content.storage_data.values()])
    weights = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in content.state_dict_metadata.items()
        if isinstance(entry, metadata.TensorStorageMetadata)
    }
    reader = dcp.FileSystemReader(folder)
    reader.read_metadata = lambda *_, **__: content  # type: ignore[method-assign]
    try:
        with warnings.catch_warnings(action="ignore"):
            dcp.load(weights, storage_reader=reader, no_dist=True)
    except CheckpointException as error:  # which is none of Python's Exceptions
        raise ValueError(first_line(error.failures[0][0])) from error
    return weights
