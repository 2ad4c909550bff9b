"""The process and its launcher: the Accelerator, precision, stop signals, logging, speed settings."""

import ctypes
import gc
import logging
import os
import platform
import random
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm

import stylegen
from stylegen.config import UsageError

logger = logging.getLogger("stylegen")
SECOND_INTERRUPT_SECONDS = 2.0  # launchers deliver the first Ctrl-C twice


class _ConsoleHandler(logging.Handler):
    """Log lines on stderr that do not cut through a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class StopRequest:
    """Remembers SIGINT, SIGTERM or SIGUSR1 until the next step boundary; a second Ctrl-C leaves at once."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._since = 0.0
        self._old = {number: signal.signal(number, self._on_signal) for number in
                     (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}  # fmt: skip

    def _on_signal(self, number: int, frame: Any) -> None:
        if (
            self.reason
            and number == signal.SIGINT
            and time.monotonic() - self._since > SECOND_INTERRUPT_SECONDS
        ):
            raise KeyboardInterrupt
        if self.reason is None:
            self.reason, self._since = signal.Signals(number).name, time.monotonic()

    def agreed(self, accelerator: Accelerator) -> str | None:
        """Why to stop, or None; the same answer on every rank (a collective with several processes)."""
        if accelerator.num_processes == 1:
            return self.reason
        asked = torch.tensor([int(self.reason is not None)], device=accelerator.device)
        return (self.reason or "another rank") if accelerator.reduce(asked).item() else None

    def restore(self) -> None:
        """Give the signals back to their handlers of before."""
        for number, handler in self._old.items():
            signal.signal(number, handler)


def build_accelerator(mixed_precision: str) -> Accelerator:
    """The Accelerator of this process, in the asked precision.

    Raises UsageError if the launcher fixes another precision, or started several processes that do not know
    each other.
    """
    apply_speed_settings()
    accelerator = Accelerator(mixed_precision=resolve_precision(mixed_precision))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != world_size:
        raise UsageError(
            f"the launcher says {world_size} processes, but each of them trains alone; on a machine without GPUs "
            f"set ACCELERATE_USE_CPU=true, or start one process"
        )
    return accelerator


def resolve_precision(asked: str) -> str:
    """ "auto" takes the launcher's precision, else bf16 where the hardware multiplies it, else no."""
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if asked != "auto":
        if launcher not in (None, "no", asked):
            raise UsageError(
                f"mixed_precision is {asked}, but the launcher's configuration says {launcher}; "
                f"take mixed_precision out of the launcher's configuration"
            )
        return asked
    return launcher or ("bf16" if _multiplies_bf16() else "no")


def apply_speed_settings() -> None:
    """Settle the process, once the libraries are imported.

    glibc is told not to hand freed memory back to the kernel: page faults cost a third of a CPU step. Python no
    longer looks for garbage among the objects that the imports made, which took a fifth of preparing a text.
    """
    gc.freeze()
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((-3, 2**31 - 1), (-1, 2**31 - 1), (-2, 64 << 20)):  # mmap, trim, top pad
            libc.mallopt(option, value)


def start_logging(is_main: bool) -> None:
    """Our messages on stderr from the first rank only; the libraries' chatter and bars off."""
    logger.handlers = [_ConsoleHandler()]
    logger.setLevel(logging.INFO if is_main else logging.ERROR)
    logger.propagate = False
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    import datasets

    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch on all devices."""
    set_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of every generator that training draws from: plain values and tensors."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo everything drawn since `random_state`."""
    version_, internal, gauss = state["python"]
    random.setstate((version_, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


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


def max_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: of the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _multiplies_bf16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability()[0] >= 8
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


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
