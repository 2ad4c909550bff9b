"""Documents -> token cache on disk -> training and validation blocks -> batches.

`prepare_text` finds or builds the cache (`cache`): documents are read to a scratch file, split, tokenized whole and
written as one stream of ids per side. `cut_blocks` cuts the streams (`packing`): plain blocks, documents packed so that
none sees another, or one document a block. Which blocks a step takes is arithmetic on (seed, epoch, position)
(`batches`): nothing has to be read or skipped to resume. `python -m stylegen.blocks PRESET.yaml` shows what comes out.
A training begins with the text while torch is not imported yet (`ahead`).
"""

import importlib
from typing import TYPE_CHECKING, Any

from stylegen.blocks.batches import micro_batches, step_indices
from stylegen.blocks.cache import TextCounts, TokenCache, TokenStream
from stylegen.blocks.prepare import cache_folder, prepare_text

if TYPE_CHECKING:
    from stylegen.blocks.cut import cut_blocks, describe, describe_text, predicted_bytes
    from stylegen.blocks.origin import describe_block
    from stylegen.blocks.packing import IGNORED, Blocks, PackedBlocks, StreamBlocks

__all__ = [
    "IGNORED",
    "Blocks",
    "PackedBlocks",
    "StreamBlocks",
    "TextCounts",
    "TokenCache",
    "TokenStream",
    "cache_folder",
    "cut_blocks",
    "describe",
    "describe_block",
    "describe_text",
    "micro_batches",
    "predicted_bytes",
    "prepare_text",
    "step_indices",
]

HOMES = {
    **dict.fromkeys(("cut_blocks", "describe", "describe_text", "predicted_bytes"), "cut"),
    **dict.fromkeys(("IGNORED", "Blocks", "PackedBlocks", "StreamBlocks"), "packing"),
    "describe_block": "origin",
}


def __getattr__(name: str) -> Any:
    # What needs torch is imported when it is asked for: the text is prepared before.
    if name not in HOMES:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"stylegen.blocks.{HOMES[name]}"), name)
