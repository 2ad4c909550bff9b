"""Documents that share a block against the same documents alone: the largest difference of a logit, per architecture.

Random models of two layers in fp32, blocks of 128 packed by `PackedBlocks` from documents of 1 to 300 tokens, against
a forward pass for each piece of a document. Also prints how full best fit makes the blocks, beside one document each.
"""

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stylegen.blocks import PackedBlocks, TextCounts, TokenStream
from stylegen.config import UsageError
from stylegen.model import check_isolation

ARCHITECTURES = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 64},
    "llama": {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 64,
              "intermediate_size": 128},
    "qwen2": {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 64,
              "intermediate_size": 128},
    "gpt_neox": {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 128},
    "opt": {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "ffn_dim": 128,
            "word_embed_proj_dim": 64},
    "bloom": {"n_layer": 2, "n_head": 2, "hidden_size": 64},
    "mamba": {"num_hidden_layers": 2, "hidden_size": 64},
}  # fmt: skip
VOCABULARY, BLOCK_SIZE, NUM_DOCUMENTS = 500, 128, 60


def largest_difference(model, blocks: PackedBlocks) -> float:
    """Largest difference of a logit between packed blocks and a forward pass for each segment alone."""
    difference = 0.0
    for index in range(len(blocks)):
        batch = blocks.batch(np.array([index]))
        packed = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits[0]
        start = 0
        for ids, _ in blocks.segments(index, epoch=0):
            alone = model(input_ids=torch.tensor(ids[:-1].astype(np.int64))[None], use_cache=False).logits[0]
            difference = max(difference, (packed[start : start + len(alone)] - alone).abs().max().item())
            start += len(alone)
    return difference


@torch.no_grad()
def main() -> None:
    """Print a line an architecture."""
    stream = _random_stream()
    blocks = PackedBlocks(stream, BLOCK_SIZE, pad_id=0)
    padded = PackedBlocks(stream, BLOCK_SIZE, pad_id=0, truncate=True)
    for name, how in ((f"{'packed':12}", blocks), (f"{'padded':12}", padded)):
        labels = how.num_labels(np.arange(len(how)))
        print(f"{name}{len(how):>4} blocks, {labels / (len(how) * BLOCK_SIZE):7.2%} of their labels count, "
              f"{labels / (len(stream.framed) - 1):7.2%} of the tokens predicted")  # fmt: skip
    for name, overrides in ARCHITECTURES.items():
        config = AutoConfig.for_model(name, vocab_size=VOCABULARY, **overrides)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        try:
            check_isolation(model)
            print(f"{name:12}largest difference {largest_difference(model, blocks):.1e}")
        except UsageError as error:
            print(f"{name:12}refused: {error}")


def _random_stream() -> TokenStream:
    draw = np.random.default_rng(0)
    documents = [draw.integers(1, VOCABULARY, draw.integers(1, 300)).tolist() for _ in range(NUM_DOCUMENTS)]
    framed = np.array([0, *(id_ for document in documents for id_ in (*document, 0))], dtype=np.uint16)
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)])
    return TokenStream(framed, starts, None, TextCounts(NUM_DOCUMENTS, 0, 0, len(framed) - 2))


if __name__ == "__main__":
    main()
