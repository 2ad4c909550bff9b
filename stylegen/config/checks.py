"""What cannot work is refused here, before anything heavy is imported; then open values get their defaults."""

import dataclasses
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stylegen.config import processes
from stylegen.config.commands import GenerateArguments, StyleArguments, TokenizerCommandArguments
from stylegen.config.errors import UsageError
from stylegen.config.fields import SHAKESPEARE, TRACKERS, TrainArguments
from stylegen.config.launcher import check_launcher
from stylegen.config.writing import check_writable, check_writing

DEFAULT_SPLIT_PERCENTAGE = 5.0
SCRATCH_RATES = {"adamw": 1e-3, "muon": 1e-2}  # peak learning rates from scratch; docs/experiments.md
# Names under which architectures keep the number of positions they can attend to.
POSITION_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")

_AT_LEAST_ONE = (
    "vocab_size", "block_size", "max_train_samples", "max_eval_samples", "preprocessing_num_workers",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "total_batch_size", "logging_steps", "eval_steps", "checkpointing_steps", "save_total_limit", "sample_steps",
    "sample_max_new_tokens", "early_stopping_patience", "num_return_sequences", "max_new_tokens", "num_beams",
    "batch_size", "max_completion_words", "ddp_timeout", "lora_r", "num_samples", "style_steps", "gpus",
    "gpus_per_node",
)  # fmt: skip
_NOT_NEGATIVE = (
    "max_train_steps", "num_warmup_steps", "weight_decay", "adam_epsilon", "max_grad_norm", "seed",
    "sample_temperature", "top_k", "min_frequency", "random_windows", "watchdog_seconds",
    "max_skipped_steps", "detect_desync_steps", "style_samples",
)  # fmt: skip
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{name: (lambda value: value >= 1, "at least 1") for name in _AT_LEAST_ONE},
    **{name: (lambda value: value >= 0, "0 or more") for name in _NOT_NEGATIVE},
    "num_train_epochs": (lambda value: value > 0, "above 0"),
    "max_train_hours": (lambda value: value > 0, "above 0"),
    "network_gbit": (lambda value: value > 0, "above 0"),
    "mfu": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "learning_rate": (lambda value: value > 0, "above 0"),
    "repetition_penalty": (lambda value: value > 0, "above 0"),
    "validation_split_percentage": (lambda value: 0 < value < 100, "between 0 and 100"),
    "adam_beta1": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "adam_beta2": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "lora_alpha": (lambda value: value > 0, "above 0"),
    "lora_dropout": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "min_p": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
}


def check_arguments(
    arguments: TrainArguments | GenerateArguments | TokenizerCommandArguments | StyleArguments,
) -> None:
    """Raise UsageError for values out of range and for combinations that cannot work."""
    for name, (is_valid, expected) in _RANGES.items():
        value = getattr(arguments, name, None)
        if value is not None and not isinstance(value, str) and not is_valid(value):
            raise UsageError(f"{name} is {value}, but must be {expected}")
    if isinstance(arguments, GenerateArguments):
        check_writing(arguments)
        return
    if isinstance(arguments, StyleArguments):
        _check_style(arguments)
        return
    _check_tokenizer(arguments)
    if isinstance(arguments, TrainArguments):
        _check_training(arguments)
    else:
        _check_tokenizer_command(arguments)


def _check_style(arguments: StyleArguments) -> None:
    if not (arguments.train and arguments.texts):
        raise UsageError("give the author's text with --train, and what to measure with --texts")
    if arguments.output:
        check_writable(Path(arguments.output).parent, "the folder of output")


def resolve_arguments(arguments: TrainArguments, world_size: int) -> TrainArguments:
    """Give open values their defaults, all but those that need the model or the hardware.

    Raises UsageError if the batch sizes do not agree with each other and with `world_size`.
    """
    scratch = arguments.model_name_or_path is None
    steps_of_batch, total = _batch_sizes(arguments, world_size)
    new_tokenizer = scratch and arguments.tokenizer_name is None
    return dataclasses.replace(
        arguments,
        model_type=(arguments.model_type or "gpt2") if scratch and not arguments.config_name else None,
        train_tokenizer=(arguments.train_tokenizer or "bpe") if new_tokenizer else None,
        validation_split_percentage=_split_percentage(arguments),
        packing=_packing(arguments),
        num_train_epochs=(arguments.num_train_epochs or 3.0) if arguments.max_train_steps is None else None,
        learning_rate=arguments.learning_rate or (SCRATCH_RATES[arguments.optim] if scratch else 5e-5),
        gradient_accumulation_steps=steps_of_batch,
        total_batch_size=total,
        report_to=_tracker_names(arguments.report_to),
        resume_from_checkpoint={"true": "auto", "false": "never"}.get(
            arguments.resume_from_checkpoint.lower(), arguments.resume_from_checkpoint
        ),
        run_name=arguments.run_name or arguments.output_path.resolve().name,
    )


def deciding(arguments: TrainArguments) -> dict[str, Any]:
    """The arguments that decide what past steps were, and may not change when a run goes on."""
    return {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(arguments)
        if not field.metadata["free"]
    }


def differences(old: dict[str, Any], new: TrainArguments) -> list[str]:
    """`name: old -> new` for each argument that decides what past steps were and is not the same now."""
    rows = []
    for field in dataclasses.fields(new):
        before, after = (old.get(field.name) or None, getattr(new, field.name) or None)
        if field.name in old and not field.metadata["free"] and before != after:
            rows.append(f"{field.name}: {before} -> {after}")
        elif field.name not in old and not field.metadata["free"] and after not in (None, field.default):
            rows.append(f"{field.name}: not set -> {after}")
    return rows


def has_pairs(arguments: TrainArguments) -> bool:
    """Whether the documents are pairs of prompt and completion."""
    return bool(arguments.prompt_file or arguments.prompt_column)


def positions_of(config: dict[str, Any]) -> int | None:
    """How many positions a model can attend to, from the keys of its configuration; None if it does not say."""
    return next((int(config[key]) for key in POSITION_KEYS if isinstance(config.get(key), int)), None)


def is_repository(name: str) -> bool:
    """Whether a model on the hub may have this name, by the rules that its library checks before it asks."""
    parts = r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}"
    refused = r"--|\.\.|\.git\Z|(?:^|/)[.-]|[.-](?:/|\Z)"
    return bool(re.fullmatch(parts, name, re.ASCII)) and not re.search(refused, name)


def profile_range(steps: str) -> tuple[int, int]:
    """(first, last) of profile_steps "A:B". Raises UsageError where it is not two numbers from 1 up, in this order."""
    first, _, last = steps.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UsageError(
            f"profile_steps is {steps}, but must be A:B, the first and the last optimizer step, counted from 1; in a "
            f"preset with quotes, as '10:12'"
        )
    return int(first), int(last)


def _packing(arguments: TrainArguments) -> str:
    return arguments.packing or ("pad" if has_pairs(arguments) else "stream")


def _split_percentage(arguments: TrainArguments) -> float | None:
    """Percent of the text to keep for validation, or None if there is, or may be, a text of its own for that."""
    if arguments.validation_file or arguments.validation_prompt_file:
        return None
    # A dataset may have a validation split, which only reading it tells.
    if arguments.dataset_name not in (None, SHAKESPEARE):
        return arguments.validation_split_percentage
    return arguments.validation_split_percentage or DEFAULT_SPLIT_PERCENTAGE


def _check_text(arguments: TrainArguments) -> None:
    if not (arguments.train_file or arguments.dataset_name or arguments.prompt_file):
        raise UsageError(
            "no text to train on; give --train_file FILE (or a folder or glob) or --dataset_name NAME"
        )
    for left, right in (
        ("prompt_file", "completion_file"),
        ("prompt_column", "completion_column"),
        ("validation_prompt_file", "validation_completion_file"),
    ):
        first, second = getattr(arguments, left), getattr(arguments, right)
        if (first is None) != (second is None):
            given, missing = (left, right) if first else (right, left)
            raise UsageError(f"{given} needs {missing} as well: a pair has two sides")
    if arguments.completion_only_loss and (not has_pairs(arguments) or _packing(arguments) == "stream"):
        raise UsageError(
            "completion_only_loss needs pairs (--prompt_file and --completion_file, or --prompt_column and "
            "--completion_column) and --packing pad or document"
        )
    for name in ("detokenize", "max_completion_words"):
        if getattr(arguments, name) and not has_pairs(arguments):
            raise UsageError(f"{name} is for pairs of prompt and completion; give pairs, or leave it out")
    if arguments.validation_prompt_file and not has_pairs(arguments):
        raise UsageError(
            "validation_prompt_file is for pairs; give --validation_file, or pairs to train on too"
        )
    if arguments.prompt_file and arguments.validation_file:
        raise UsageError(
            "validation_file is no pairs; give --validation_prompt_file and --validation_completion_file, or neither"
        )
    if arguments.random_windows and arguments.max_train_samples:
        raise UsageError(
            "random_windows draws from the whole text, which max_train_samples would make smaller; leave one out"
        )
    if arguments.random_windows and _packing(arguments) != "stream":
        raise UsageError(
            "random_windows adds windows to a stream of text; leave it out, or use --packing stream"
        )
    if arguments.streaming and arguments.dataset_name in (None, SHAKESPEARE):
        raise UsageError(
            "streaming is for hub datasets; give --dataset_name, or leave it out (files are always streamed)"
        )


def _check_tokenizer(arguments: TrainArguments | TokenizerCommandArguments) -> None:
    if (
        arguments.vocab_size is not None
        and arguments.vocab_size < 257
        and arguments.train_tokenizer != "char"
    ):
        raise UsageError(
            f"vocab_size is {arguments.vocab_size}, but byte-level BPE needs 257 or more (256 bytes, <|endoftext|>)"
        )


def _check_tokenizer_command(arguments: TokenizerCommandArguments) -> None:
    if arguments.train_tokenizer == "char" and arguments.vocab_size:
        raise UsageError("vocab_size is for bpe: characters are as many as the text has; leave it out")
    if arguments.tokenizer_name and arguments.output_dir:
        raise UsageError("tokenizer_name is measured as it is; leave out output_dir, or train one")
    if arguments.output_dir:
        check_writable(Path(arguments.output_dir), "output_dir")


def _check_training(arguments: TrainArguments) -> None:
    _check_text(arguments)
    if arguments.gguf_file and not arguments.model_name_or_path:
        raise UsageError(
            "gguf_file names a file in a folder or hub repository; give that with --model_name_or_path"
        )
    if arguments.gguf_file and not importlib.util.find_spec("gguf"):
        raise UsageError("gguf_file needs the package gguf, which is not installed; pip install gguf")
    if "/" in (arguments.attn_implementation or ""):
        raise UsageError(
            f"attn_implementation {arguments.attn_implementation} is code on the hub, which is never run; give one "
            f"that Transformers has, such as sdpa"
        )
    _check_lora(arguments)
    _check_stopping(arguments)
    _check_positions(arguments)
    trackers = _tracker_names(arguments.report_to)
    if arguments.wandb_log_model and "wandb" not in trackers:
        raise UsageError(
            "wandb_log_model keeps the model on wandb; give --report_to wandb too, or leave it out"
        )
    _check_hub(arguments)
    if arguments.profile_steps:
        profile_range(arguments.profile_steps)
    check_writable(arguments.output_path, "output_dir")
    check_launcher(arguments)
    # A plan is for GPUs elsewhere.
    _batch_sizes(arguments, getattr(arguments, "gpus", processes.world_size()))


def _check_hub(arguments: TrainArguments) -> None:
    if arguments.data_license is not None and not arguments.data_license.strip():
        raise UsageError("data_license is empty; give the name of the licence, or leave it out")
    if not arguments.push_to_hub:
        if arguments.hub_model_id or not arguments.hub_private_repo:
            given = "hub_model_id" if arguments.hub_model_id else "hub_private_repo"
            raise UsageError(f"{given} is for models on the hub; give --push_to_hub too, or leave it out")
        return
    name, source = arguments.hub_model_id, "hub_model_id"
    if name is None:
        name, source = arguments.output_path.resolve().name, "the name of output_dir"
    if not is_repository(name):
        raise UsageError(
            f"{source}, {name!r}, cannot be that of a model on the hub: NAME or OWNER/NAME, each of letters, digits, "
            f"-, _ and single dots; give another --hub_model_id"
        )


def _check_stopping(arguments: TrainArguments) -> None:
    metric = arguments.early_stopping_metric
    never = arguments.style_steps == "never" or not arguments.style_samples
    if metric == "eval/loss" and arguments.early_stopping_threshold is not None:
        raise UsageError(
            "early_stopping_threshold is a limit for style/copy_rate or style/distance, above which a run stops; name "
            "one with --early_stopping_metric, or give --early_stopping_patience alone"
        )
    if metric != "eval/loss" and never:
        raise UsageError(
            f"early_stopping_metric {metric} is never measured; give --style_steps and --style_samples"
        )
    if (
        metric != "eval/loss"
        and arguments.early_stopping_patience is arguments.early_stopping_threshold is None
    ):
        raise UsageError(
            f"early_stopping_metric {metric} needs --early_stopping_threshold or --early_stopping_patience"
        )


def _check_lora(arguments: TrainArguments) -> None:
    given = [
        name
        for name in ("lora_alpha", "lora_dropout", "lora_target_modules", "merge_lora")
        if getattr(arguments, name)
    ]
    if given and not arguments.lora_r:
        raise UsageError(f"{given[0]} is for LoRA; give its rank with --lora_r too, or leave it out")
    if not arguments.lora_r:
        return
    if not arguments.model_name_or_path:
        raise UsageError(
            "lora_r trains an adapter for a pretrained model; give that with --model_name_or_path"
        )
    base, out = Path(arguments.model_name_or_path).resolve(), arguments.output_path.resolve()
    if arguments.overwrite_output_dir and base.is_relative_to(out):
        raise UsageError(
            f"overwrite_output_dir would delete {arguments.model_name_or_path}, which the adapter needs; choose "
            f"another --output_dir"
        )
    if arguments.gguf_file:
        raise UsageError(
            "lora_r needs a base model that every library can load again; make a plain folder of the GGUF file with "
            "python -m stylegen.export, and give that with --model_name_or_path"
        )
    if not importlib.util.find_spec("peft"):
        raise UsageError("lora_r needs the package peft, which is not installed; pip install peft")


def _check_positions(arguments: TrainArguments) -> None:
    config, source = arguments.config_overrides, "config_overrides"
    if (
        arguments.model_name_or_path
        and (path := Path(arguments.model_name_or_path) / "config.json").is_file()
    ):
        try:
            config, source = dict(json.loads(path.read_text(encoding="utf-8"))), str(path)
        except (ValueError, TypeError, RecursionError):
            raise UsageError(f"{path} is not valid JSON; the model folder is damaged") from None
    positions = positions_of(config)
    if positions and arguments.block_size and arguments.block_size > positions:
        raise UsageError(
            f"block_size is {arguments.block_size}, but the model has {positions} positions ({source}); "
            f"use --block_size {positions} or less"
        )


def _batch_sizes(arguments: TrainArguments, world_size: int) -> tuple[int, int]:
    """(gradient_accumulation_steps, total_batch_size), each derived from the other if need be."""
    per_pass = arguments.per_device_train_batch_size * world_size
    accumulation, total = arguments.gradient_accumulation_steps, arguments.total_batch_size
    if total is None:
        return accumulation or 1, per_pass * (accumulation or 1)
    sizes = f"per_device_train_batch_size {arguments.per_device_train_batch_size} x {world_size} processes"
    if accumulation is not None and accumulation * per_pass != total:
        raise UsageError(
            f"total_batch_size is {total}, but {sizes} x gradient_accumulation_steps {accumulation} = "
            f"{accumulation * per_pass}; leave one of them out"
        )
    if total % per_pass:
        below, above = total // per_pass * per_pass, (total // per_pass + 1) * per_pass
        nearest = f"{below} or {above}" if below else f"{above}"
        raise UsageError(
            f"total_batch_size {total} is not a multiple of {sizes} = {per_pass}; the nearest that work: {nearest}"
        )
    return total // per_pass, total


def _tracker_names(names: list[str]) -> list[str]:
    """Trackers to start. Raises UsageError for one that is unknown or not installed."""
    if names in ([], ["none"]):
        return []
    if names == ["all"]:
        return [name for name in TRACKERS if importlib.util.find_spec(name)]
    for name in names:
        if name not in TRACKERS:
            raise UsageError(
                f"report_to is '{name}', but must be none, all, or some of {', '.join(TRACKERS)}"
            )
        if not importlib.util.find_spec(name):
            raise UsageError(f"report_to asks for {name}, which is not installed; pip install {name}")
    return names
