"""What may leave this machine: no secret, no folder's name, of the environment what is listed here."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stylegen.config.errors import UsageError
from stylegen.config.fields import SHAKESPEARE

# (shape, what it is, what to do instead): nothing else looks like these, so they are refused in prompts too.
_NOT_NEEDED = "leave it out, nothing here needs one"
SHAPES = tuple(
    (re.compile(rf"(?<![A-Za-z0-9_-]){shape}(?![A-Za-z0-9])"), kind, remedy)
    for shape, kind, remedy in (
        (r"hf_[A-Za-z0-9]{30,}", "a Hugging Face token", "set HF_TOKEN in the environment"),
        (r"wandb_v1_[A-Za-z0-9_]{20,}", "a W&B key", "set WANDB_API_KEY in the environment"),
        (r"(?:gh[opsur]_[A-Za-z0-9]{36,}|github_pat_\w{22,})", "a GitHub token", _NOT_NEEDED),
        (r"glpat-[\w-]{20,}", "a GitLab token", _NOT_NEEDED),
        (r"sk-(?:[A-Za-z0-9]{32,}|(?:proj|ant|svcacct)-[\w-]{20,})", "an API key", _NOT_NEEDED),
        (r"(?:AKIA|ASIA)[A-Z0-9]{16}", "an AWS key", _NOT_NEEDED),
    )
)
PASSWORD = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")
OLD_WANDB_KEY = re.compile(r"[0-9a-f]{40}")  # so are commits, which are fine where a commit or a text stands
TEXTS = ("prompt", "sample_prompts", "pair_separator", "document_separator", "special_tokens")

HUB_NAMES = (
    "model_name_or_path", "base_model_name_or_path", "config_name", "tokenizer_name", "dataset_name", "start_model",
)  # fmt: skip
# These may have a slash.
NO_PATHS = ("early_stopping_metric", "model_revision", "data_license", "hub_model_id")
# What trackers receive of the environment, where it is set; nothing else of it.
ENVIRONMENT = (
    "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT",
    "SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "SLURM_JOB_PARTITION", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip


def refuse_secrets(argv: Sequence[str]) -> None:
    """Raise UsageError for a command line that holds a secret. It names the flag and never shows the value."""
    flag = ""
    for word in argv:
        if word.startswith("--"):
            flag, _, word = word.partition("=")
        _refuse_secret(flag.lstrip("-").replace("-", "_"), word, flag or "a word", "on the command line")


def refuse_secrets_in_preset(values: dict[str, Any], source: str) -> None:
    """Raise UsageError for a preset that holds a secret, likewise."""
    for name, value in values.items():
        for text in _texts(value):
            _refuse_secret(name, text, name, f"in {source}")


def redacted(text: str) -> str:
    """`text` without what has the shape of a secret, for messages of other libraries."""
    for shape in (*(shape for shape, _, _ in SHAPES), PASSWORD):
        text = shape.sub("***", text)
    return text


def stay_local(arguments: Any) -> None:
    """Before the libraries are imported: keep them off the hub, unless an argument names something that is not here.

    A run whose model is to go there may reach it too; `train.publish` is the only one that does.
    """
    names = [getattr(arguments, name, None) for name in HUB_NAMES]
    names += getattr(arguments, "checkpoints", []) + getattr(arguments, "paths", [])[:1]
    # `datasets` would report the loading of every table to a counter.
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
    if all(_is_here(name) for name in names if name and name != SHAKESPEARE):
        os.environ["HF_DATASETS_OFFLINE"] = "1"
        if not getattr(arguments, "push_to_hub", False):
            os.environ["HF_HUB_OFFLINE"] = "1"


def for_trackers(values: dict[str, Any]) -> dict[str, Any]:
    """What trackers and the model card receive of the arguments: all of them, but of a path its last part only."""
    return {name: _without_folders(name, value) for name, value in values.items()}


def listed_environment() -> dict[str, str]:
    """What trackers receive of the environment."""
    return {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}


def _without_folders(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(name, part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_folders(name, part) for part in value]
    is_on_hub = (
        name in HUB_NAMES and isinstance(value, str) and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", value)
    )
    if not isinstance(value, str) or name in (*TEXTS, *NO_PATHS) or (is_on_hub and not _is_here(value)):
        return value
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1]


def _refuse_secret(name: str, text: str, shown: str, where: str) -> None:
    found = next(((kind, remedy) for shape, kind, remedy in SHAPES if shape.search(text)), None)
    if found is None and name not in TEXTS and PASSWORD.search(text):
        found = "a URL with a password", "leave that out"
    if found is None and name not in (*TEXTS, "model_revision") and OLD_WANDB_KEY.fullmatch(text):
        found = "a W&B key", "set WANDB_API_KEY in the environment, or lengthen what is just a name"
    if found:
        raise UsageError(f"{shown} {where} has the shape of {found[0]}, and would end up in logs; {found[1]}")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (text for part in value.values() for text in _texts(part))
    elif isinstance(value, list):
        yield from (text for part in value for text in _texts(part))
    else:
        yield str(value)


def _is_here(name: str) -> bool:
    return Path(name).expanduser().exists()
