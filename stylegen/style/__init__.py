"""Is it the style, and is it copied? Generated texts beside the author's training and validation text, in numbers.

A `StyleReference` is built once from the author's text and then asked about any number of texts. docs/style.md defines
every measure. Nothing here needs torch but the perplexity under a start model, which only the command computes:

    python -m stylegen.style --train TEXT --texts A.jsonl B.jsonl
"""

from stylegen.style.reference import StyleMeasures, StyleReference, Written

__all__ = ["StyleMeasures", "StyleReference", "Written"]
