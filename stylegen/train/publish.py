"""The final model on the Hugging Face Hub: what `push_to_hub` asks for, when all else is done and saved.

What leaves is what somebody else needs to write with the model: its files, its tokenizer's, the card, and the figure
that the card shows. No checkpoint, no log, no arguments beside those in the card, no name of a folder. The token is
the business of the hub's own library, which takes it from the environment or from `hf auth login`.
"""

import fnmatch
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from stylegen import __version__
from stylegen.config import RankError, TrainArguments, UsageError, first_line
from stylegen.config.privacy import redacted
from stylegen.config.processes import rank
from stylegen.train.directory import MODEL_FILES, model_files

CARD, ADAPTER = "README.md", "adapter_config.json"


def check_login(arguments: TrainArguments) -> None:
    """Raise UsageError before the training begins, if what comes at its end cannot work here. Asks nobody."""
    if not arguments.push_to_hub or rank() > 0:
        return
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        raise UsageError(
            "push_to_hub needs the hub, which HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids; unset it, or leave "
            "push_to_hub out now: given to the same command later, it pushes the finished run"
        )
    if not get_token():
        raise UsageError(
            "push_to_hub needs a token that may write; log in with hf auth login, or set HF_TOKEN in the environment"
        )


def publish(arguments: TrainArguments) -> str:
    """Put the final model of a run on the hub, in one commit; returns its address there.

    Raises RankError, with the way to do it later, if that went wrong: the model here is unharmed.
    """
    folder = arguments.output_path
    name = arguments.hub_model_id or folder.resolve().name
    try:
        address = _push(folder, name, arguments.hub_private_repo)
    except Exception as error:
        by_hand = "" if isinstance(error, UsageError) else _by_hand(folder, name, arguments.hub_private_repo)
        raise RankError(
            f"the finished model is in {folder}, but not on the hub as {name}: {_reason(error)}. When that is put "
            f"right: the same command again{by_hand}"
        ) from error
    if (folder / ADAPTER).is_file() and (base := _base_folder(folder / ADAPTER)):
        print(
            f"warning: the adapter needs its base model, {base}, which is not on the hub; the same command with "
            f"--merge_lora pushes a whole model in its place",
            file=sys.stderr,
        )
    return address


def _push(folder: Path, name: str, is_private: bool) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    from stylegen.report.card import write_card
    from stylegen.report.record import RunRecord

    api = HfApi(library_name="stylegen", library_version=__version__)
    address = api.create_repo(name, private=is_private, exist_ok=True)
    there = api.model_info(address.repo_id)
    if is_private and not there.private:
        raise UsageError(
            "everybody can see what is there; give --hub_private_repo false too, or another --hub_model_id"
        )
    write_card(RunRecord.read(folder), address.repo_id)
    files = [path.relative_to(folder).as_posix() for path in _files(folder)]
    # Of a model with more pieces, or of an adapter where there is a whole model now: it would be loaded in its place.
    old = {file.rfilename for file in there.siblings or ()}.difference(files)
    operations: list[Any] = [CommitOperationAdd(path, _content(folder / path)) for path in files]
    operations += [CommitOperationDelete(path) for path in sorted(old) if _is_of_model(path)]
    api.create_commit(
        address.repo_id, operations, commit_message=f"Model trained with stylegen {__version__}"
    )
    return str(address)


def _files(folder: Path) -> list[Path]:
    from stylegen.report.card import FIGURE

    return [*model_files(folder), *(folder / name for name in (CARD, FIGURE) if (folder / name).is_file())]


def _content(path: Path) -> str | bytes:
    """What to send of a file: the file, but of an adapter's description without the folder of its base model."""
    if path.name != ADAPTER or not (base := _base_folder(path)):
        return str(path)
    described = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": base.name}
    return (json.dumps(described, indent=2, sort_keys=True) + "\n").encode()


def _base_folder(description: Path) -> Path | None:
    """The folder of an adapter's base model, if that is one of this machine."""
    base = Path(str(json.loads(description.read_text(encoding="utf-8")).get("base_model_name_or_path") or ""))
    return base if base.is_absolute() else None


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the hub does not take the token; log in again with hf auth login, or set HF_TOKEN in the environment"
    if status == 403:
        return "the token may not write there; take one that may, or another --hub_model_id"
    if isinstance(error, ValueError):  # ours, or what is wrong with the card, a line each
        return redacted(" ".join(str(error).split())).rstrip(".")
    return redacted(first_line(error) if status else f"{type(error).__name__}: {first_line(error)}")


def _by_hand(folder: Path, name: str, is_private: bool) -> str:
    """The hub's own command for the same files; not where one of them may not leave as it is."""
    if (folder / ADAPTER).is_file() and _base_folder(folder / ADAPTER):
        return ""
    files = {path.relative_to(folder).as_posix() for path in _files(folder)}
    patterns = [pattern for pattern in MODEL_FILES if fnmatch.filter(files, pattern)]
    patterns += sorted(file for file in files if not _is_of_model(file))
    words = ["hf", "upload", name, str(folder), ".", "--private" if is_private else "--no-private"]
    words += [word for pattern in patterns for word in ("--include", pattern)]
    return f", or {shlex.join(words)}"


def _is_of_model(file: str) -> bool:
    return any(fnmatch.fnmatchcase(file, pattern) for pattern in MODEL_FILES)
