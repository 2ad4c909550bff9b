"""What the process runs on: devices, memory, versions."""

import contextlib
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

import stylegen
from stylegen.config import UsageError


def describe_environment(accelerator: Accelerator, precision: str) -> dict[str, Any]:
    """What ran, for environment.json: versions, commit, processes, device, precision."""
    packages = (
        "torch",
        "transformers",
        "accelerate",
        "datasets",
        "tokenizers",
        "numpy",
        "deepspeed",
        "wandb",
    )
    device = accelerator.device
    return {
        "stylegen": stylegen.__version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages if _version(name)},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu_threads": torch.get_num_threads(),
        "world_size": accelerator.num_processes,
        "distributed_type": str(accelerator.distributed_type.value),
        "mixed_precision": precision,
    }


def pick_device(name: str) -> torch.device:
    """ "auto" is a GPU if there is one. Raises UsageError for a device that this machine does not have."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        raise UsageError(f"device {name} is not available here; use --device auto")
    return torch.device(name)


def free_memory_bytes() -> int:
    """Memory left for other things: of this machine, or of what a scheduler or container allows the process."""
    import psutil

    return min([psutil.virtual_memory().available, *_cgroup_memory()])


def max_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: of the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cgroup_memory() -> Iterator[int]:
    """What each control group around this process has left, where it sets a limit (Linux, cgroup v2)."""
    try:
        name = Path("/proc/self/cgroup").read_text().strip().rpartition("0::/")[2]
    except OSError:
        return
    for group in (Path("/sys/fs/cgroup") / name, *(Path("/sys/fs/cgroup") / name).parents):
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            limit, used = (int((group / f"memory.{kind}").read_text()) for kind in ("max", "current"))
            yield max(limit - used, 0)


def _git_commit() -> str | None:
    root = Path(stylegen.__file__).parent.parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
