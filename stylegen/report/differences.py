"""What sets several runs apart: arguments that differ, repetitions with another seed; arguments as flags."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

Settings = dict[str, Any]
# Arguments that say where a run lies, where it is told of, where its model goes and what it is called: they change
# nothing in it.
ELSEWHERE = (
    "output_dir", "cache_dir", "run_name", "project", "group", "report_to", "wandb_log_model", "push_to_hub",
    "hub_model_id", "hub_private_repo", "data_license", "debug",
)  # fmt: skip


def differing(settings: Sequence[Settings]) -> list[str]:
    """The arguments that are not the same in all runs, in the order of their presets."""
    names = dict.fromkeys(name for each in settings for name in each if name not in ELSEWHERE)
    return [name for name in names if any(each.get(name) != settings[0].get(name) for each in settings)]


def shared(settings: Sequence[Settings]) -> Settings:
    """The arguments that are the same in all runs."""
    apart = {*differing(settings), *ELSEWHERE}
    return {name: value for name, value in settings[0].items() if name not in apart}


def repetitions(settings: Sequence[Settings]) -> list[list[int]]:
    """The places of runs that differ in nothing but the seed, group by group; empty if there are no two such runs."""
    kinds = [name for name in differing(settings) if name != "seed"]
    groups: dict[str, list[int]] = {}
    for place, each in enumerate(settings):
        groups.setdefault(repr([each.get(name) for name in kinds]), []).append(place)
    return list(groups.values()) if len(groups) < len(settings) else []


def as_flags(settings: Settings) -> str:
    """Arguments as flags on a command line."""
    words: list[str] = []
    for name, value in settings.items():
        if isinstance(value, list):
            words += [f"--{name}", *map(as_text, value)]
        elif value is not None:
            words.append(f"--{name}={as_text(value)}")
    return shlex.join(words)


def as_text(value: Any) -> str:
    """A value as a command line takes it; of a list, its items."""
    if isinstance(value, list):
        return ", ".join(map(as_text, value))
    if isinstance(value, dict) and not any(isinstance(part, (dict, list, str)) for part in value.values()):
        return ",".join(f"{name}={as_text(part)}" for name, part in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
