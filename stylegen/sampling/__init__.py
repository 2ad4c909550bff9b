"""Prompts -> text. No accelerate, no tracker: a model, a tokenizer, settings.

Every text has its own stream of random numbers, a function of (seed, its number, token), so it does not depend on
what else is in the batch, and drawing leaves torch's global generator alone. Beyond the model's context a window
slides: the last half of the context is kept and writing goes on. Stop strings and bad words are looked for in the
text and not in the tokens, of which many sequences spell the same text.

`write` is the way of a batch from prompts to texts, `draw` of logits to tokens, `decode` of tokens to logits, `kernels`
what makes that fast on a CPU.
"""

from stylegen.sampling.kernels import can_pack, pack_weights
from stylegen.sampling.rows import SamplingSettings, prompt_ids
from stylegen.sampling.write import warn_of_long_prompts, write_batch, write_texts

__all__ = [
    "SamplingSettings",
    "can_pack",
    "pack_weights",
    "prompt_ids",
    "warn_of_long_prompts",
    "write_batch",
    "write_texts",
]
