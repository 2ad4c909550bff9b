"""What the launcher says, read from its environment before anything heavy is imported.

`configs/accelerate/` owns the number of processes and how the model is sharded, the run's arguments own what changes
the numbers. Where a launcher did not do what it was asked to, or fixes what the run owns, it is refused here.
"""

import dataclasses
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import yaml

from stylegen.config.errors import UsageError
from stylegen.config.fields import TrainArguments
from stylegen.config.processes import world_size

ON_CPUS = "ACCELERATE_USE_CPU=true accelerate launch --config_file configs/accelerate/ddp.yaml"
# Keys of a DeepSpeed configuration that change the numbers, and the argument of the run that decides each.
OWNED_BY_THE_RUN = {
    "train_batch_size": "total_batch_size",
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
}
REPLACED_BY_THE_RUN = {"optimizer": "optim", "scheduler": "lr_scheduler_type"}


def trial_of_sweep(arguments: TrainArguments) -> TrainArguments:
    """Under the agent of a wandb sweep, each trial gets a folder of its own below `output_dir`, named by its run id.

    In the folder of another trial it would go on with that one's run, or be refused.
    """
    run_id = os.environ.get("WANDB_RUN_ID")
    if "WANDB_SWEEP_ID" not in os.environ or not run_id or arguments.output_path.name == run_id:
        return arguments
    return dataclasses.replace(arguments, output_dir=str(arguments.output_path / run_id))


def uses_deepspeed() -> bool:
    """Whether the launcher asks for DeepSpeed."""
    return _is_set("ACCELERATE_USE_DEEPSPEED")


def uses_fsdp() -> bool:
    """Whether the launcher asks for FSDP."""
    return _is_set("ACCELERATE_USE_FSDP")


def uses_cpu() -> bool:
    """Whether the launcher wants CPUs even where there are GPUs."""
    return _is_set("ACCELERATE_USE_CPU")


def launcher_process() -> Any | None:
    """The process that started this one, as psutil sees it; None where that cannot be told."""
    import psutil

    try:
        return psutil.Process().parent()
    except psutil.Error:
        return None


def is_launched() -> bool:
    """Whether `accelerate launch` or torchrun started this process, and is still there."""
    if os.getppid() == 1 or not {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & set(os.environ):
        return False
    parent = launcher_process()
    words = " ".join(parent.cmdline()) if parent else ""
    return any(word in words for word in ("accelerate", "torchrun", "torch.distributed"))


def check_launcher(arguments: TrainArguments) -> None:
    """Raise UsageError if the launcher started something else than asked, or fixes what the run owns."""
    _refuse_a_lonely_process()
    if uses_fsdp() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError(
            "the launcher asks for FSDP version 1, which is not supported; set fsdp_version: 2 as "
            "configs/accelerate/fsdp.yaml does"
        )
    if uses_deepspeed():
        _check_deepspeed(arguments)


def _check_deepspeed(arguments: TrainArguments) -> None:
    if not importlib.util.find_spec("deepspeed"):
        raise UsageError("the launcher asks for DeepSpeed, which is not installed; pip install deepspeed")
    if arguments.optim == "muon":
        raise UsageError(
            "optim muon needs whole weight matrices, which DeepSpeed ZeRO cuts into flat pieces; use --optim adamw, "
            "or configs/accelerate/ddp.yaml or fsdp.yaml"
        )
    if (clipping := os.environ.get("ACCELERATE_GRADIENT_CLIPPING", "auto")) not in ("auto", "none"):
        raise UsageError(
            f"the launcher's configuration sets gradient_clipping to {clipping}, which belongs to the run; take it "
            f"out, and give --max_grad_norm"
        )
    name = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if name == "none":
        return
    path = Path(name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"the launcher's deepspeed_config_file {path} does not exist; start from the folder it is given from"
        ) from None
    except ValueError as error:
        raise UsageError(f"the launcher's deepspeed_config_file {path} is not valid JSON: {error}") from None
    for key, argument in OWNED_BY_THE_RUN.items():
        if config.get(key, "auto") != "auto":
            raise UsageError(
                f'{path} sets {key} to {config[key]}, which belongs to the run; write "auto" there, and give '
                f"--{argument}"
            )
    for key in ("bf16", "fp16"):
        if config.get(key, {}).get("enabled", "auto") != "auto":
            raise UsageError(
                f"{path} sets {key}.enabled to {json.dumps(config[key]['enabled'])}, which belongs to the run; "
                f'write "auto" there, and give --mixed_precision'
            )
    for key, argument in REPLACED_BY_THE_RUN.items():
        if key in config:
            raise UsageError(
                f"{path} has a section {key}, which belongs to the run; delete it, and give --{argument}"
            )
    if not config.get("zero_optimization", {}).get("stage"):
        raise UsageError(
            f"{path} cuts nothing (zero_optimization.stage is 0 or missing); use configs/accelerate/ddp.yaml for that"
        )


def _refuse_a_lonely_process() -> None:
    """`accelerate launch --cpu --num_processes 2` and distributed_type MULTI_CPU start one process without a word."""
    if world_size() > 1 or "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return
    parent = launcher_process()
    words = parent.cmdline() if parent else []
    if "launch" not in words:
        return
    asked = _asked_processes(words)
    if asked > 1:
        raise UsageError(
            f"accelerate launch was asked for {asked} processes and started one, as it does with --cpu and with "
            f"distributed_type MULTI_CPU; several processes on CPUs: {ON_CPUS} --num_processes {asked} run_clm.py ..."
        )


def _asked_processes(words: list[str]) -> int:
    """The number of processes that a command line of `accelerate launch` asks for, itself or in its configuration."""
    options = words[words.index("launch") + 1 :]
    ours = next((i for i, word in enumerate(options) if word.endswith(".py")), len(options))
    given: dict[str, str] = {}
    for word, following in zip(options[:ours], [*options[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        given[name.lstrip("-").replace("-", "_")] = value if equals else following
    if "num_processes" in given:
        return int(given["num_processes"])
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    path = Path(given.get("config_file", f"{home}/accelerate/default_config.yaml")).expanduser()
    try:
        return int(yaml.safe_load(path.read_text(encoding="utf-8"))["num_processes"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return 1


def _is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")
