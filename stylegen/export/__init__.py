"""Any checkpoint on disk or on the hub -> a Transformers model and tokenizer, ready to write.

Each format is a module with `find(path)`, which says by content whether it is there, and `load(found, source)`. The
first that finds something loads it (`load.FORMATS`). No pickle is read freely. `python -m stylegen.export CHECKPOINT
OUT` writes what was loaded as a plain Transformers folder.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stylegen.export.load import Found, export, find_model, load_for_writing

__all__ = ["BEST", "Found", "export", "find_model", "load_for_writing"]

BEST = "best"  # the folder of the best model of a run that has not ended


def __getattr__(name: str) -> Any:
    # The command imports this first, but torch and the rest only once it has read its arguments.
    if name not in __all__:
        raise AttributeError(name)
    return getattr(importlib.import_module("stylegen.export.load"), name)
