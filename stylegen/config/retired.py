"""Names of `run_clm.py`, `run_clm_no_trainer.py` and `TrainingArguments` that we spell otherwise.

An old command line keeps working: each name here is translated with a warning, or said to be unnecessary, or
refused with the way to do it. `docs/migrating.md` lists them.
"""

import sys
from collections.abc import Callable
from typing import Any

from stylegen.config.errors import UsageError

Values = dict[str, Any]


def _renamed(new: str) -> Callable[[Any], Values]:
    return lambda value: {new: value}


def _precision(name: str) -> Callable[[Any], Values]:
    return lambda value: {"mixed_precision": name} if _is_true(value) else {}


def _strategy(steps_name: str, never: str) -> Callable[[Any], Values]:
    """`epoch` and `no` become the value of `steps_name`; `steps` leaves the number that goes with it."""
    return lambda value: {} if value == "steps" else {steps_name: "epoch" if value == "epoch" else never}


def _max_steps(value: Any) -> Values:
    return {} if str(value) == "-1" else {"max_train_steps": value}


def _refused(remedy: str) -> Callable[[Any], Values]:
    def refuse(value: Any) -> Values:
        raise UsageError(remedy)

    return refuse


def _ignored(value: Any) -> Values:
    return {}


_TOKEN = "is not taken, so that no secret lands in a log; set HF_TOKEN or WANDB_API_KEY in the environment"
_LAUNCHER = (
    "belongs to the launcher: accelerate launch --config_file configs/accelerate/X.yaml run_clm.py ..."
)

# name: (translation, what the warning says; "" for no warning)
RETIRED: dict[str, tuple[Callable[[Any], Values], str]] = {
    "do_train": (_ignored, ""),
    "do_eval": (_ignored, ""),
    "with_tracking": (lambda value: {"report_to": "all"} if _is_true(value) else {}, "is now --report_to"),
    "max_steps": (_max_steps, "is now --max_train_steps"),
    "warmup_steps": (_renamed("num_warmup_steps"), "is now --num_warmup_steps"),
    "warmup_ratio": (_renamed("num_warmup_steps"), "is now --num_warmup_steps, below 1 a fraction"),
    "save_steps": (_renamed("checkpointing_steps"), "is now --checkpointing_steps"),
    "save_strategy": (_strategy("checkpointing_steps", "end"), "is now --checkpointing_steps"),
    "eval_strategy": (_strategy("eval_steps", "epoch"), "is now --eval_steps"),
    "evaluation_strategy": (_strategy("eval_steps", "epoch"), "is now --eval_steps"),
    "logging_strategy": (_ignored, "is not needed; see --logging_steps"),
    "logging_first_step": (_ignored, "is not needed; see --eval_on_start"),
    "logging_dir": (_ignored, "is not needed; logs lie in --output_dir"),
    "bf16": (_precision("bf16"), "is now --mixed_precision bf16"),
    "fp16": (_precision("fp16"), "is now --mixed_precision fp16"),
    "torch_dtype": (_renamed("dtype"), "is now --dtype"),
    "per_gpu_train_batch_size": (_renamed("per_device_train_batch_size"), "is now --per_device_train_batch_size"),
    "per_gpu_eval_batch_size": (_renamed("per_device_eval_batch_size"), "is now --per_device_eval_batch_size"),
    "dataset_config": (_renamed("dataset_config_name"), "is now --dataset_config_name"),
    "load_best_model_at_end": (_ignored, "is not needed: the best model is always the final one"),
    "metric_for_best_model": (_ignored, "is not needed: the best model is the one with the lowest eval/loss"),
    "greater_is_better": (_ignored, "is not needed: the best model is the one with the lowest eval/loss"),
    "save_safetensors": (_ignored, "is not needed: weights are always safetensors"),
    "use_fast_tokenizer": (_ignored, "is not needed: tokenizers are always the fast ones"),
    "use_slow_tokenizer": (_ignored, "is not needed: tokenizers are always the fast ones"),
    "low_cpu_mem_usage": (_ignored, "is not needed"),
    "keep_linebreaks": (_ignored, "is not needed: line breaks are always kept"),
    "dataloader_num_workers": (_ignored, "is not needed: batches come from a memory-mapped file"),
    "dataloader_drop_last": (_ignored, "is not needed: no token is dropped"),
    "disable_tqdm": (_ignored, "is not needed: without a terminal there are plain lines"),
    "ddp_find_unused_parameters": (_ignored, "is not needed"),
    "remove_unused_columns": (_ignored, "is not needed"),
    "optim_args": (_ignored, "is not needed; see --adam_beta1, --adam_beta2, --adam_epsilon"),
    "local_rank": (_ignored, "is not needed: the launcher says it in the environment"),
    "fsdp": (_refused(f"--fsdp {_LAUNCHER}"), ""),
    "deepspeed": (_refused(f"--deepspeed {_LAUNCHER}"), ""),
    "use_cpu": (_refused("--use_cpu belongs to the launcher: set ACCELERATE_USE_CPU=true"), ""),
    "no_cuda": (_refused("--no_cuda belongs to the launcher: set ACCELERATE_USE_CPU=true"), ""),
    "token": (_refused(f"--token {_TOKEN}"), ""),
    "hub_token": (_refused(f"--hub_token {_TOKEN}"), ""),
    "use_auth_token": (_refused(f"--use_auth_token {_TOKEN}"), ""),
    "wandb_api_key": (_refused(f"--wandb_api_key {_TOKEN}"), ""),
}  # fmt: skip


def translate_retired(values: Values, source: str) -> Values:
    """Replace retired names by ours, with one warning a name on stderr; ours win where both are given."""
    result: Values = {}
    for name in values:
        if name in RETIRED:
            translate, warning = RETIRED[name]
            result |= translate(_single(values[name]))
            if warning:
                print(f"warning: {name} in {source} {warning}", file=sys.stderr)
    if "do_eval" in values and "do_train" not in values and _is_true(_single(values["do_eval"])):
        result["max_train_steps"] = 0
        print(f"warning: do_eval without do_train in {source} is now --max_train_steps 0", file=sys.stderr)
    ours = {name: value for name, value in values.items() if name not in RETIRED}
    if str(ours.get("optim", "")).startswith("adamw_"):
        print(f"warning: optim {ours['optim']} in {source} is now --optim adamw", file=sys.stderr)
        ours["optim"] = "adamw"
    return {**result, **ours}


def _single(value: Any) -> Any:
    """The command line hands on a list of words: none is a bare switch, one is the value."""
    if not isinstance(value, list):
        return value
    return True if not value else value[0] if len(value) == 1 else value


def _is_true(value: Any) -> bool:
    return str(value).lower() not in ("false", "no", "0")
