"""The run directory: what is ours in it, whether a run may go on there, and what it records at its start."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from stylegen.config import STOP_FILE, TrainArguments, UsageError, dump_arguments
from stylegen.config.checks import differences

SETTINGS = "config.yaml"
# Everything that a run writes into its directory; nothing else there is ever touched.
RECORDS = (
    SETTINGS,
    "environment.json",
    "metrics.jsonl",
    "wandb_run_id",
    "report.md",
    "report.html",
    "README.md",
)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_FILES = (
    "config.json", "generation_config.json", "model*.safetensors*", *ADAPTER_FILES,
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*",
    "additional_chat_templates",
)  # fmt: skip
DESCRIPTIONS = ("config.json", "adapter_config.json")  # of a model, or of an adapter
FOLDERS = (
    "checkpoint-*",
    "best",
    "best.tmp",
    "best.old",
    "samples",
    "figures",
    "tensorboard",
    "dvclive",
    "profile",
)


def check_directory(arguments: TrainArguments) -> None:
    """Raise UsageError if the output directory holds something that a run would write over."""
    if arguments.overwrite_output_dir or (arguments.output_path / SETTINGS).is_file():
        return
    if taken := _ours(arguments.output_path):
        raise UsageError(
            f"output_dir {arguments.output_dir} holds {taken[0].name}, but not from a run of stylegen; "
            f"choose another directory, or delete it with --overwrite_output_dir"
        )


def refuse_changes(previous: dict[str, Any], arguments: TrainArguments, checkpoint: Path) -> None:
    """Raise UsageError listing, key by key, what differs from a checkpoint's run and would have changed past steps."""
    if rows := differences(previous, arguments):
        before = previous.get("total_batch_size")
        keep = (
            f"give --total_batch_size {before} to go on with it, "
            if before != arguments.total_batch_size
            else ""
        )
        raise UsageError(
            f"{checkpoint} is of a run with other arguments ({'; '.join(rows)}); {keep}choose another --output_dir, "
            f"or start afresh with --overwrite_output_dir"
        )


def clear_directory(folder: Path) -> None:
    """Delete what an earlier run wrote, and nothing else."""
    for path in _ours(folder):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def clear_leftovers(folder: Path) -> None:
    """Delete what a killed run had begun to write under another name, and a request to stop that came too late."""
    from stylegen.checkpoint import (
        clear_unfinished,  # not above: this module is asked before torch is imported
    )

    clear_unfinished(folder)
    for path in folder.glob("best.tmp*"):
        shutil.rmtree(path, ignore_errors=True)
    (folder / STOP_FILE).unlink(missing_ok=True)  # to start is to want it to run


def model_files(folder: Path) -> list[Path]:
    """The files of the model and its tokenizer in a folder, those in folders of its own included."""
    paths = [path for name in MODEL_FILES for path in sorted(folder.glob(name))]
    return [
        file
        for path in paths
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.is_file()
    ]


def has_model(folder: Path) -> bool:
    """Whether a finished run left its model here."""
    return any((folder / name).is_file() for name in DESCRIPTIONS)


def record_start(arguments: TrainArguments, environment: dict[str, Any]) -> None:
    """Write config.yaml and environment.json."""
    folder = arguments.output_path
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "environment.json", json.dumps(environment, indent=1) + "\n")
    _replace(folder / SETTINGS, dump_arguments(arguments))


def promote_best(folder: Path) -> None:
    """Make the best model the final one: its files move up into the run directory."""
    best = folder / "best"
    if not best.is_dir():
        return
    from stylegen.checkpoint import MANIFEST

    (best / MANIFEST).unlink(missing_ok=True)
    # The one before may have been an adapter, or a whole model.
    for new, olds in (
        ("config.json", ADAPTER_FILES),
        ("adapter_config.json", ("config.json", "model*.safetensors*")),
    ):
        for path in [path for old in olds for path in folder.glob(old)] if (best / new).is_file() else ():
            path.unlink()
    # Weights first: a folder whose config.json is new has new weights too.
    for path in sorted(best.iterdir(), key=lambda path: path.name in DESCRIPTIONS):
        if path.is_dir():  # of chat templates
            shutil.rmtree(folder / path.name, ignore_errors=True)
        os.replace(path, folder / path.name)
    best.rmdir()


def _ours(folder: Path) -> list[Path]:
    return [path for name in (*RECORDS, *MODEL_FILES, *FOLDERS) for path in sorted(folder.glob(name))]


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
