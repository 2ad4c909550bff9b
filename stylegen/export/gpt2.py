"""What formats of other programs share: reading without a traceback, a GPT-2 by its sizes, a tokenizer by its words."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders
from transformers import GPT2Config, PreTrainedModel, PreTrainedTokenizerFast

from stylegen.config import END_OF_TEXT, UsageError, first_line
from stylegen.export.fit import fit_weights


@contextlib.contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Whatever a damaged file, or one of something else, makes a library raise becomes one line for the user."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{what}: {first_line(error)}; {remedy}") from error


def gpt2_model(
    where: Path, weights: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerFast, **sizes: Any
) -> PreTrainedModel:
    """A GPT-2 of weights by their names in Transformers, that starts and ends texts as its tokenizer does."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return fit_weights(GPT2Config(**ids, **sizes), weights, where).eval()


def tokenizer_of(backend: Tokenizer, decoder: decoders.Decoder) -> PreTrainedTokenizerFast:
    """A tokenizer whose `<|endoftext|>` starts a text, ends it, pads, and stands for what it does not know."""
    backend.decoder = decoder
    roles = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **roles)
