"""Documents -> token cache on disk -> training and validation blocks -> batches.

`prepare_text` finds or builds the cache (`cache`): documents are read to a scratch file, split, tokenized whole and
written as one stream of ids per side. `cut_blocks` cuts the streams (`packing`): plain blocks, documents packed so that
none sees another, or one document a block. Which blocks a step takes is arithmetic on (seed, epoch, position)
(`batches`): nothing has to be read or skipped to resume. `python -m stylegen.blocks PRESET.yaml` shows what comes out.
"""

from stylegen.blocks.batches import micro_batches, step_indices
from stylegen.blocks.cache import TextCounts, TokenCache, TokenStream
from stylegen.blocks.origin import describe_block
from stylegen.blocks.packing import Blocks, PackedBlocks, StreamBlocks
from stylegen.blocks.prepare import cut_blocks, describe, describe_text, predicted_bytes, prepare_text
from stylegen.loss import IGNORED

__all__ = [
    "IGNORED",
    "Blocks",
    "PackedBlocks",
    "StreamBlocks",
    "TextCounts",
    "TokenCache",
    "TokenStream",
    "cut_blocks",
    "describe",
    "describe_block",
    "describe_text",
    "micro_batches",
    "predicted_bytes",
    "prepare_text",
    "step_indices",
]
