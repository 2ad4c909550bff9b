"""Files, folders, tables and datasets -> documents: clean text, whole.

`find_sources` says what there is before anything heavy is imported; `read_pieces` reads it, piece by piece, so that no
text has to fit into memory; `store.TextStore` keeps the documents on disk while they are split and tokenized.
"""

from stylegen.corpus.files import Source, find_files, find_sources, same_content
from stylegen.corpus.read import Findings, Piece, TextOptions, dataset_splits, read_pieces, read_text

__all__ = [
    "Findings",
    "Piece",
    "Source",
    "TextOptions",
    "dataset_splits",
    "find_files",
    "find_sources",
    "read_pieces",
    "read_text",
    "same_content",
]
