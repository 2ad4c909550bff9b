"""The process: its precision, its threads, and the Accelerator that joins it to the others."""

import ctypes
import datetime
import gc
import os
import platform
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    patch_environment,
)
from transformers.integrations import unset_hf_deepspeed_config

from stylegen.config import UsageError, first_line
from stylegen.config.launcher import launcher_process, uses_cpu, uses_deepspeed, uses_fsdp
from stylegen.config.processes import local_rank, local_world_size, rank, world_size
from stylegen.optim import cpu_multiplies_bf16

RENDEZVOUS_SECONDS = 100


def build_accelerator(mixed_precision: str, timeout_seconds: int = 1800) -> Accelerator:
    """The Accelerator of this process, in the asked precision.

    timeout_seconds  how long a collective may wait for other ranks before it fails
    Raises UsageError if the launcher fixes another precision, started several processes that do not know each other,
    or more of them than this machine has GPUs, and if the first rank cannot be reached.
    """
    apply_speed_settings()
    precision = resolve_precision(mixed_precision)
    if uses_cpu() or not torch.cuda.is_available():
        # DeepSpeed warns that it found no GPU, even where it is merely installed.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        _share_threads()
    _check_devices()
    timeout = datetime.timedelta(seconds=timeout_seconds)
    if world_size() > 1:
        _meet(timeout)
    accelerator = _join(precision, timeout)
    if world_size() > 1:
        for kind, asked in (("FSDP", uses_fsdp()), ("DEEPSPEED", uses_deepspeed())):
            assert (accelerator.distributed_type == kind) == asked, accelerator.distributed_type
    if accelerator.distributed_type == DistributedType.FSDP and precision != "no":
        from torch.distributed.fsdp import MixedPrecisionPolicy

        # Accelerate's own would add gradients up, and hand out the loss, in 16 bits too.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if precision == "bf16" else torch.float16, reduce_dtype=torch.float32
        )
    return accelerator


def resolve_precision(asked: str) -> str:
    """ "auto" takes the launcher's precision, else bf16 where the hardware multiplies it, else no.

    A launcher's "no" counts as nothing said: that is what `accelerate launch` says where nobody asked it.
    """
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked != "auto":
        if launcher not in ("no", asked):
            raise UsageError(
                f"mixed_precision is {asked}, but the launcher's configuration says {launcher}; "
                f"take mixed_precision out of the launcher's configuration"
            )
        return asked
    if launcher != "no":
        return launcher
    return "bf16" if _multiplies_bf16() else "no"


def apply_speed_settings() -> None:
    """Settle the process, once the libraries are imported.

    glibc is told not to hand freed memory back to the kernel: page faults cost a third of a CPU step. Python no
    longer looks for garbage among the objects that the imports made, which took a fifth of preparing a text; while they
    are made it need not look at all.
    """
    gc.freeze()
    gc.enable()
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((-3, 2**31 - 1), (-1, 2**31 - 1), (-2, 64 << 20)):  # mmap, trim, top pad
            libc.mallopt(option, value)


def _join(precision: str, timeout: datetime.timedelta) -> Accelerator:
    options: dict[str, Any] = {"timeout": timeout}
    environment = {}
    if uses_deepspeed():
        # It compiles, with the ninja that pip has put beside a Python which nobody may have put on the PATH.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if uses_cpu() and world_size() > 1:
        options["backend"] = "gloo"
        # Accelerate shards on GPUs only: on CPUs it would train plain DDP without a word.
        if uses_fsdp():
            PartialState(cpu=True, **options)
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        if uses_deepspeed():
            environment = {"ACCELERATE_USE_CPU": "false", "ACCELERATE_TORCH_DEVICE": "cpu"}
    handlers: Any = None
    if world_size() > 1:
        # Gradients live in what is sent, and not a second time beside it.
        handlers = [
            InitProcessGroupKwargs(**options),
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        ]
    with patch_environment(**environment):
        accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=handlers)
    if accelerator.num_processes != world_size():
        raise UsageError(
            f"the launcher says {world_size()} processes, but each of them trains alone; on a machine without GPUs "
            f"set ACCELERATE_USE_CPU=true, or start one process"
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # Else Transformers builds and loads every model cut to pieces: other weights from the same seed, and a
        # collective where one rank alone reads a finished model.
        unset_hf_deepspeed_config()
        accelerator.state.deepspeed_plugin.dschf = None
    return accelerator


def _meet(timeout: datetime.timedelta) -> None:
    """Join the other processes where no torchrun has done it: at MASTER_ADDR and MASTER_PORT, or say who is missing."""
    if "TORCHELASTIC_RUN_ID" in os.environ or torch.distributed.is_initialized():
        return
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not (address and port):
        raise UsageError(
            f"WORLD_SIZE is {world_size()}, but MASTER_ADDR or MASTER_PORT is not set; start with accelerate launch, "
            f"or set both to the host of rank 0 and a free port there"
        )
    try:
        if rank() > 0:
            _wait_for_port(address, int(port))
        store = torch.distributed.TCPStore(
            address, int(port), world_size(), rank() == 0, datetime.timedelta(seconds=RENDEZVOUS_SECONDS)
        )
    except (RuntimeError, ValueError, OSError) as error:
        what = "the other ranks did not come" if rank() == 0 else "rank 0 cannot be reached"
        raise UsageError(
            f"no rendezvous at {address} port {port}: {what} within {RENDEZVOUS_SECONDS} s (this is rank {rank()} of "
            f"{world_size()}; {first_line(error)}); check that all were started, and that nothing blocks that port"
        ) from None
    torch.distributed.init_process_group(
        "gloo" if uses_cpu() else None, store=store, rank=rank(), world_size=world_size(), timeout=timeout
    )


def _wait_for_port(address: str, port: int) -> None:
    """Return when something listens there. Raises OSError after RENDEZVOUS_SECONDS; torch would try twice as long."""
    deadline = time.monotonic() + RENDEZVOUS_SECONDS
    while True:
        try:
            socket.create_connection((address, port), timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def _check_devices() -> None:
    if uses_cpu() or not torch.cuda.is_available() or world_size() == 1:
        return
    number, there = local_rank(), torch.cuda.device_count()
    if number >= there:
        raise UsageError(
            f"{platform.node()} has {there} GPUs for {local_world_size()} processes; every node needs the same "
            f"number of GPUs as processes: lower --num_processes, or leave that node out"
        )


def _share_threads() -> None:
    """Give the processes of one machine its cores in equal parts.

    A launcher sets one thread a process where nobody said anything, which leaves most cores idle; a number that the
    user set stays.
    """
    if local_world_size() == 1 or ("OMP_NUM_THREADS" in os.environ and not _is_launchers_choice()):
        return
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    task = os.environ.get("SLURM_CPUS_PER_TASK")
    if task and "TORCHELASTIC_RUN_ID" not in os.environ:  # srun has started each process as a task
        share = min(cores, int(task))
    else:
        share = min(cores, int(task or os.environ.get("SLURM_CPUS_ON_NODE") or cores)) // local_world_size()
    torch.set_num_threads(max(1, share))


def _is_launchers_choice() -> bool:
    """Whether OMP_NUM_THREADS is what torchrun sets when its own environment has none."""
    parent = launcher_process()
    if "TORCHELASTIC_RUN_ID" not in os.environ or parent is None:
        return False
    import psutil

    try:
        said = any(word.startswith("--num_cpu_threads_per_process") for word in parent.cmdline())
        return not said and "OMP_NUM_THREADS" not in parent.environ()
    except psutil.Error:
        return False


def _multiplies_bf16() -> bool:
    if torch.cuda.is_available() and not uses_cpu():
        return torch.cuda.get_device_capability()[0] >= 8
    return cpu_multiplies_bf16()
