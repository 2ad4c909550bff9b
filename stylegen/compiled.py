"""torch.compile for the layers that a model repeats: one of them is compiled, and serves for all.

Only training steps run compiled. Evaluations and samples have shapes of their own, and each would be compiled anew.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from stylegen.config import UsageError, first_line

FOLDER = "compiled"  # in the cache directory


def compile_layers(model: PreTrainedModel, cache_dir: Path, device: torch.device) -> None:
    """Compile each layer in place, when it is first called; names of modules and weights stay as they are.

    What the compiler makes is kept in `cache_dir`, unless TORCHINDUCTOR_CACHE_DIR says where, and a restart finds it.
    Raises UsageError where there is no compiler, or a model does not tell its layers.
    """
    _keep_cache(cache_dir / FOLDER)
    _check_compiler(device)
    kinds = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise UsageError(
            f"torch_compile is for the layers of a model, and a {model.config.model_type} does not tell which they "
            f"are; leave it out"
        )
    for layer in layers:
        # A short last group is compiled for itself, and the usual one stays fast.
        layer.compile(dynamic=False)


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Layers run as they are written for a while."""
    return torch.compiler.set_stance("force_eager")


def _keep_cache(folder: Path) -> None:
    """Not in the folder for temporary files, which torch takes and notes in the environment when it is imported."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder.absolute())


def _check_compiler(device: torch.device) -> None:
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UsageError("torch_compile needs Triton, which is not installed for this GPU; leave it out")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        raise UsageError(
            f"torch_compile needs a C++ compiler, and none works here ({first_line(error)}); install g++, or leave it "
            f"out"
        ) from error
