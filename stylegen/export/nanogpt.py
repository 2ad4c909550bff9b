"""`ckpt.pt` of nanoGPT, with the characters of its `meta.pkl` or the words of GPT-2.

nanoGPT knows no end of a text: its own sampling starts at a line break and goes on. A model of characters gets one more
token, `<|endoftext|>`: to it what a line break is, and never written. Characters that meta.pkl lacks become it.
"""

import contextlib
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stylegen.config import END_OF_TEXT, UsageError
from stylegen.config.commands import SourceArguments
from stylegen.export.gpt2 import explained, gpt2_model, tokenizer_of
from stylegen.tokenizer import load_tokenizer
from stylegen.trust import unpickle

GPT2_WORDS = range(50257, 50304 + 1)  # nanoGPT rounds up to a multiple of 64
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
BIASED = (*TRANSPOSED, "ln_1.weight", "ln_2.weight", "ln_f.weight")
EMBEDDINGS = {"transformer.wte.weight", "lm_head.weight"}  # one tensor by two names


def find(path: Path) -> Path | None:
    """A .pt file itself, or ckpt.pt in a folder."""
    file = path / "ckpt.pt" if path.is_dir() else path
    return file if file.is_file() and file.suffix == ".pt" else None


def load(found: Path, source: SourceArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model and its tokenizer: --tokenizer_name, else meta.pkl, else GPT-2's where there are as many words."""
    content = _read(found)
    with explained(f"no model in {found}", "a checkpoint of nanoGPT has model_args and model"):
        args = content["model_args"]
        sizes = {name: int(args[name]) for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
        sizes["n_positions"] = int(args["block_size"])
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), float(args.get("dropout", 0)))
        weights = _weights(content["model"], args.get("bias", True))
        words = sizes["vocab_size"]
        if meta := _find_meta(found, content.get("config"), source.tokenizer_name):
            tokenizer = _character_tokenizer(meta, words)
            sizes["vocab_size"] += 1
            for name in EMBEDDINGS & weights.keys():
                start = tokenizer.get_vocab().get("\n", 0)
                weights[name] = torch.cat([weights[name], weights[name][start : start + 1]])
        else:
            tokenizer = _word_tokenizer(found, words, source.tokenizer_name)
        model = gpt2_model(found, weights, tokenizer, activation_function="gelu", **sizes, **dropout)
    if meta and model.generation_config:
        model.generation_config.suppress_tokens = [words]
    return model, tokenizer


def _read(found: Path) -> dict[str, Any]:
    try:
        return torch.load(found, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch's own advice is to trust the file
        reason = "it is damaged, or a pickle of more than tensors, which could run code"
        raise UsageError(f"no model in {found}: {reason}; get it anew from where you trained it") from error


def _weights(tensors: dict[str, torch.Tensor], has_biases: bool) -> dict[str, torch.Tensor]:
    """The tensors as Transformers names and turns them; biases of 0 where there are none."""
    weights = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("_orig_mod.")  # of a compiled model
        weights[name] = tensor.transpose(0, -1) if name.endswith(TRANSPOSED) else tensor
        if not has_biases and name.endswith(BIASED):
            weights[name.removesuffix("weight") + "bias"] = torch.zeros(weights[name].shape[-1:])
    return weights


def _find_meta(found: Path, config: Any, tokenizer_name: str | None) -> Path | None:
    if tokenizer_name:
        return path if (path := Path(tokenizer_name).expanduser()).is_file() else None
    out = found.resolve().parent
    dataset = config.get("dataset") if isinstance(config, dict) else None
    places = [out, *(folder / "data" / str(dataset) for folder in (out, *out.parents[:2]))]
    return next((path for place in places if (path := place / "meta.pkl").is_file()), None)


def _character_tokenizer(meta: Path, num_words: int) -> PreTrainedTokenizerFast:
    """The tokenizer of the characters in meta.pkl; its `<|endoftext|>` comes after the words of the model."""
    with explained(f"{meta} does not give the model's characters", "give its own with --tokenizer_name"):
        stoi = dict(unpickle(meta, {})["stoi"])
        if not all(len(character) == 1 and 0 <= id_ < num_words for character, id_ in stoi.items()):
            raise ValueError(f"not all of stoi are single characters with ids below {num_words}")
        backend = Tokenizer(models.BPE({**stoi, END_OF_TEXT: num_words}, [], unk_token=END_OF_TEXT))
    return tokenizer_of(backend, decoders.Fuse())


def _word_tokenizer(found: Path, num_words: int, name: str | None) -> PreTrainedTokenizerFast:
    if name:
        return load_tokenizer(name)
    with contextlib.suppress(UsageError):
        if num_words in GPT2_WORDS:
            return load_tokenizer("gpt2")
    raise UsageError(
        f"no tokenizer for {found} with {num_words:,} words: no meta.pkl is beside it or in data/, and GPT-2's is not "
        f"its own or not here; give meta.pkl, a folder, or gpt2 from the hub with --tokenizer_name"
    )
