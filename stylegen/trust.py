"""A model folder of somebody else's is data: what would make a library run, fetch or leave something is refused.

Transformers runs no code of a folder without `trust_remote_code`, which we never give, and unpickles with
`weights_only=True`. But a folder can name other places to load from: another model, a kernel on the hub, a file
elsewhere on this machine. `check_source` comes before every `from_pretrained`. What is on the hub, the libraries judge.
"""

import json
import os
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

from stylegen.config import UsageError, first_line

# Whatever their value, no honest folder needs these here: code on the hub, or a kernel past the check of its name.
REFUSED_KEYS = ("auto_map", "_attn_implementation_internal", "_experts_implementation_internal")
# Names of functions in Transformers; with a slash, of kernels on the hub.
KERNEL_KEYS = (
    "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation",
)  # fmt: skip
FILE_KEYS = ("transformers_weights", "configuration_files", "fast_tokenizer_files", "weight_map")
CONFIGS = ("*config*.json", "*.index.json")
# What is read of a folder, by us or by the libraries; other things in it may be links to anywhere.
READ = (
    "*.json", "*.safetensors", "*.bin", "*.pt", "*.model", "*.gguf", "*.jinja", "*.tiktoken", "merges.txt", "vocab.*",
    "additional_chat_templates/*",
)  # fmt: skip


def check_source(name_or_path: str | Path, gguf_file: str | None = None, *, adapter: bool = False) -> None:
    """Raise UsageError if a folder of a model or tokenizer is not only data; a name on the hub passes.

    adapter  it may be one: what it names as its base is not followed by a library
    """
    folder = Path(name_or_path)
    if folder.is_file():
        raise UsageError(f"{folder} is a file; give the folder that it lies in")
    if gguf_file:
        _check_gguf(folder, gguf_file)
    if not folder.is_dir():
        return
    # It names another model, which would be loaded in its place.
    if not adapter and (folder / "adapter_config.json").exists():
        raise UsageError(
            f"{folder} holds an adapter; merge it into its base model with python -m stylegen.export, and give the "
            f"result"
        )
    if any(folder.glob("shard-*-model-*.safetensors")):  # another reader, which does not say what is missing
        raise UsageError(
            f"no model in {folder}: it holds pieces of a distributed checkpoint; consolidate it first"
        )
    check_files(folder, (path for pattern in READ for path in folder.glob(pattern)))
    for pattern in CONFIGS:
        for path in filter(Path.is_file, folder.glob(pattern)):
            _check_values(path)


def check_files(folder: Path, paths: Iterable[Path]) -> None:
    """Raise UsageError if one of the files does not lie in `folder` itself, links followed."""
    for path in paths:
        _check_link(path, folder)


def unpickle(path: Path, allowed: dict[str, Any]) -> Any:
    """The content of a pickle that may name nothing but `allowed`, {module.name: what stands for it}; imports nothing.

    Raises UsageError for any other one, and for what is no pickle.
    """

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            try:
                return allowed[f"{module}.{name}"]
            except KeyError:
                raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code") from None

    try:
        with open(path, "rb") as file:
            return Reader(file).load()
    except Exception as error:  # whatever bytes that are no pickle make of it
        raise UsageError(f"{path} is not read: {first_line(error)}; use another checkpoint") from error


def forget_code(config: Any) -> None:
    """Take out of a configuration of the hub where its code would be, which never ran: no folder of ours names it."""
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        getattr(part, "__dict__", {}).pop("auto_map", None)


def _check_gguf(folder: Path, name: str) -> None:
    is_plain = _is_plain(name) if folder.is_dir() else ".." not in PurePath(name).parts
    if not is_plain or PurePath(name).is_absolute():
        raise UsageError(f"gguf_file is {name}, but must be the name of a file in {folder}")
    # Transformers would take the weights from there, and all else from the folder.
    if Path(name).is_file() and not (folder / name).exists():
        raise UsageError(f"gguf_file {name} is not in {folder}, but here; give its own folder")
    if Path(name).is_file() and not Path(name).samefile(folder / name):
        raise UsageError(f"gguf_file {name} is in {folder} and here; start from another folder")


def _check_link(path: Path, folder: Path) -> None:
    """A file must lie in its folder, links followed; those of the hub's cache lead to where it keeps all contents."""
    home, target = folder.resolve(), Path(os.path.realpath(path))  # unlike `resolve`, at ease with a loop
    homes = [home]
    for parent in home.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            homes += [
                parent.parent / "blobs",
                parent.parent.parent / "blobs",
            ]  # of the model, and of the whole cache
    if not any(target.is_relative_to(each) for each in homes):
        raise UsageError(f"{path} is a link out of its folder, to {target}; put the file itself there")


def _check_values(path: Path) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise UsageError(f"no model in {path.parent}: {path.name} is not valid JSON; restore it") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    for key, value in _entries(content):
        if key in REFUSED_KEYS:
            raise UsageError(
                f"{path} has the key {key}, which asks for code from elsewhere, and that is never run; take it out if "
                f"Transformers knows the architecture itself"
            )
        if key in KERNEL_KEYS and any("/" in name for name in _strings(value)):
            raise UsageError(f"{path} asks for a kernel on the hub with {key}; take it out")
        if key in FILE_KEYS and not all(_is_plain(name) for name in _strings(value)):
            raise UsageError(f"{path} names files outside its folder with {key}; do not use this model")


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of every mapping in a JSON value, however deep."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
        if isinstance(value, (dict, list)):
            waiting += value.values() if isinstance(value, dict) else value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _is_plain(name: str) -> bool:
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\\0")
