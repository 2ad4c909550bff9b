"""Where the processes of a job are, whether they are the same, and what can be said of them in a line."""

import contextlib
import hashlib
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object

import stylegen
from stylegen.config import UsageError
from stylegen.config.processes import local_world_size

VISIBLE_SECONDS = 10
T = TypeVar("T")


def zero_stage(accelerator: Accelerator) -> int:
    """How much DeepSpeed cuts apart: 1 the optimizer's state, 2 gradients too, 3 weights too; 0 without it."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return 0
    return int(accelerator.state.deepspeed_plugin.zero_stage)


def cuts_weights(accelerator: Accelerator) -> bool:
    """Whether no process holds all weights, so that every forward pass is a collective: FSDP and ZeRO-3."""
    return accelerator.distributed_type == DistributedType.FSDP or zero_stage(accelerator) == 3


def describe_topology(accelerator: Accelerator) -> str:
    """As "2 x 4 processes (ZeRO-3 over nccl) on cuda" for two machines with four each."""
    if accelerator.num_processes == 1:
        return f"1 process on {accelerator.device}, {torch.get_num_threads()} threads"
    stage = zero_stage(accelerator)
    kind = f"ZeRO-{stage}" if stage else "FSDP2" if cuts_weights(accelerator) else "DDP"
    machines = accelerator.num_processes // local_world_size()
    threads = f", {torch.get_num_threads()} threads each" if accelerator.device.type == "cpu" else ""
    return (
        f"{f'{machines} x ' if machines > 1 else ''}{local_world_size()} processes ({kind} over "
        f"{torch.distributed.get_backend()}) on {accelerator.device.type}{threads}"
    )


def check_machines(accelerator: Accelerator) -> None:
    """Raise UsageError, on every rank, if the machines of the job have different numbers of processes."""
    if accelerator.num_processes == 1:
        return
    machine = os.environ.get("GROUP_RANK") or os.environ.get("SLURM_NODEID") or platform.node()
    counts = dict(gather_object([(machine, (platform.node(), local_world_size()))]))
    if len({count for _, count in counts.values()}) > 1:
        each = ", ".join(f"{count} on {host}" for host, count in counts.values())
        raise UsageError(
            f"the machines have different numbers of processes ({each}), which the share of each rank is not made "
            f"for; start as many on each, or leave the smaller ones out"
        )


def check_same(accelerator: Accelerator, what: str, values: dict[str, Any]) -> None:
    """Raise UsageError, on every rank, naming what is not the same on all of them.

    what    what `values` are, for the message, such as "arguments"
    values  names with anything that can be printed
    """
    if accelerator.num_processes == 1:
        return
    texts = {name: repr(value) for name, value in values.items()}
    everyone: list[dict[str, str]] = gather_object([texts])
    for number, theirs in enumerate(everyone):
        for name in sorted(set(everyone[0]) | set(theirs)):
            first, other = everyone[0].get(name), theirs.get(name)
            if first != other:
                raise UsageError(
                    f"the processes have different {what}: {name} is {first} on rank 0 and {other} on rank {number}; "
                    f"give all of them the same"
                )


def asked_once(accelerator: Accelerator, question: Callable[[], T]) -> T:
    """The first rank's answer, or its UsageError, on all ranks; a collective."""
    answer: Any = None
    error: UsageError | None = None
    if accelerator.is_main_process:
        try:
            answer = question()
        except UsageError as refusal:
            error = refusal
    if accelerator.num_processes > 1:
        answer, error = broadcast_object_list([answer, error])
    if error is not None:
        raise error
    return answer


def code_fingerprint() -> dict[str, str]:
    """The versions of what the numbers depend on, and a digest of our own source."""
    root = Path(stylegen.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    packages = ("torch", "transformers", "accelerate", "numpy")
    return {"stylegen": digest.hexdigest()[:12], **{name: version(name) for name in packages}}


def check_shared(accelerator: Accelerator, folder: Path) -> None:
    """Raise UsageError, on every rank, if some do not see what the first one writes into `folder`.

    Leaves nothing behind.
    """
    if accelerator.num_processes == 1:
        return
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    probe = folder / ".seen-by-all"
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
    accelerator.wait_for_everyone()
    answers: list[tuple[str, bool]] = gather_object([(platform.node(), _appears(probe))])
    if accelerator.is_main_process:
        probe.unlink()
        for path in missing:
            path.rmdir()
    if blind := sorted({host for host, sees in answers if not sees}):
        raise UsageError(
            f"what rank 0 writes into output_dir {folder} cannot be seen on {', '.join(blind)}; put it on a file "
            f"system that all machines share, or give --save_on_each_node to keep checkpoints on each"
        )


def _appears(path: Path) -> bool:
    """Whether a file that another machine wrote is seen here; a network file system may take its time."""
    end = time.monotonic() + VISIBLE_SECONDS
    while True:
        with contextlib.suppress(OSError):
            if path.name in os.listdir(path.parent):  # reading the folder renews what is cached of it
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
