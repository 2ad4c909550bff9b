"""Where in the text a block comes from, in words that a reader can look up."""

import numpy as np

from stylegen.blocks.packing import Blocks

MOST_DOCUMENTS = 3
SHOWN_TOKENS = 32
SHOWN_CHARACTERS = 40


def describe_block(blocks: Blocks, index: int, epoch: int, tokenizer) -> str:
    """As "document 3 of 38, tokens 1024 to 1152: 'first words'": documents from 1, their tokens from 0."""
    starts, places = blocks.stream.starts, []
    spans = blocks.spans(index, epoch)
    for begin, end, _ in spans:
        first, last = np.searchsorted(starts, (begin, end - 1), side="right") - 1
        for document in range(first, min(last + 1, len(starts) - 1)):
            start = int(starts[document]) + 1  # behind its <|endoftext|>
            tokens = range(max(begin - start, 0), min(end, int(starts[document + 1])) - start)
            if tokens:
                places.append((document + 1, tokens[0], tokens[-1]))
    shown = [f"document {number} of {len(starts) - 1}, tokens {a} to {b}" for number, a, b in places]
    text = " and ".join(shown[:MOST_DOCUMENTS])
    if len(shown) > MOST_DOCUMENTS:
        text += f" and {len(shown) - MOST_DOCUMENTS} more documents"
    begin, end, _ = spans[0]
    ids = blocks.stream.framed[begin : min(end, begin + SHOWN_TOKENS)]
    words = " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())
    return f"{text}: {words[:SHOWN_CHARACTERS]!r}"
