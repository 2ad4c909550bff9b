"""Checkpoints of the original GPT-2 and of gpt-2-simple, read without TensorFlow.

The index (model-N.index) is a table as LevelDB writes it (google/leveldb, doc/table_format.md), with for each tensor a
BundleEntryProto (tensorflow/core/protobuf/tensor_bundle.proto): where its bytes are. Checksums would take minutes.
"""

import glob
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stylegen.config.commands import SourceArguments
from stylegen.export.gpt2 import explained, gpt2_model, tokenizer_of
from stylegen.tokenizer import load_tokenizer

MAGIC, FOOTER_BYTES = 0xDB4775248B80FB57.to_bytes(8, "little"), 48
FLOAT = 1  # of DataType in tensorflow/core/framework/types.proto
NAMED = re.compile(r'^model_checkpoint_path: "(?:.*[/\\])?([^/\\"]+)"', re.M)
NAME = re.compile(r"model/(?:h(\d+)/)?([a-z_/0-9]+?)(/[wgb])?")  # with more behind it is an optimizer's


def find(path: Path) -> Path | None:
    """The index that a file belongs to; of a folder the one that its file `checkpoint` names, else the newest."""
    folder = path if path.is_dir() else path.parent
    found = [each for each in folder.glob("*.index") if any(folder.glob(f"{glob.escape(each.stem)}.data-*"))]
    if path.is_file():
        return next((index for index in found if index.stem == path.stem), None)
    latest = folder / "checkpoint"
    last = NAMED.findall(latest.read_text("utf-8", "replace"))[:1] if latest.is_file() else []
    return max(found, key=lambda it: (it.stem in last, int("0" + re.split(r"\D", it.stem)[-1])), default=None)


def load(found: Path, source: SourceArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model of an index, by hparams.json; the tokenizer of encoder.json and vocab.bpe."""
    folder = found.parent
    if source.tokenizer_name:
        tokenizer = load_tokenizer(source.tokenizer_name)
    else:
        with explained(f"no tokenizer in {folder}", "needs encoder.json and vocab.bpe, or --tokenizer_name"):
            backend = Tokenizer(models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe")))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer = tokenizer_of(backend, decoders.ByteLevel())
    with explained(f"no model in {folder}", "it needs the hparams.json that it was written with"):
        hparams = json.loads((folder / "hparams.json").read_text(encoding="utf-8"))
        sizes = {name: hparams[name] for name in ("n_layer", "n_head", "n_embd")}
        sizes |= {"n_positions": hparams["n_ctx"], "vocab_size": hparams["n_vocab"]}
        model = gpt2_model(found, _weights(found), tokenizer, activation_function="gelu_new", **sizes)
    return model, tokenizer


def _weights(index: Path) -> dict[str, torch.Tensor]:
    weights = {}
    with explained(f"no model in {index}", "it is damaged, or not of TensorFlow; copy it again"):
        entries = dict(_table(index.read_bytes()))
        num_shards = _message(entries[b""])[1][0]
        for key, entry in entries.items():
            if parts := NAME.fullmatch(key.decode("utf-8", "replace")):
                layer = f"h.{parts[1]}." if parts[1] else ""
                name = f"transformer.{layer}{parts[2].replace('/', '.')}.{'bias' if parts[3] == '/b' else 'weight'}"
                weights[name] = _tensor(index, num_shards, name, _message(entry))
    return weights


def _tensor(index: Path, num_shards: int, name: str, entry: dict[int, list[Any]]) -> torch.Tensor:
    """A tensor from its data file, by its BundleEntryProto."""
    shape = [_message(size).get(1, [0])[0] for size in _message(entry.get(2, [b""])[0]).get(2, [])]
    shard, start, num_bytes = (entry.get(number, [0])[0] for number in (3, 4, 5))
    if entry[1][0] != FLOAT or num_bytes != 4 * math.prod(shape):
        raise ValueError(f"its tensor {name} is not {shape} numbers of 32 bits")
    path = index.with_name(f"{index.stem}.data-{shard:05d}-of-{num_shards:05d}")
    if start + num_bytes > path.stat().st_size:
        raise ValueError(f"{path.name} ends before its tensor {name} does")
    shape = shape[1:] if len(shape) == 3 else shape  # matrices are kept as convolutions over one token
    return torch.from_numpy(np.fromfile(path, "<f4", math.prod(shape), offset=start).reshape(shape))


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each entry of a table."""
    if data[-len(MAGIC) :] != MAGIC:
        raise ValueError("its last bytes are not those of a table")
    places, _ = _varints(data[-FOOTER_BYTES:], 4)
    for _, place in _block(data, *places[2:]):
        yield from _block(data, *_varints(place, 2)[0])


def _block(data: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each entry of a block; a key leaves out what it shares with the one before."""
    if data[start + size]:
        raise ValueError("it is compressed")
    block, key, at = data[start : start + size], b"", 0
    end = size - 4 * (1 + int.from_bytes(block[-4:], "little"))  # behind it are places to start from
    while at < end:
        (shared, rest, length), at = _varints(block, 3, at)
        if shared > len(key) or at + rest + length > end:
            raise ValueError("an entry is longer than its block")
        key, at = key[:shared] + block[at : at + rest], at + rest + length
        yield key, block[at - length : at]


def _varints(data: bytes, count: int, at: int = 0) -> tuple[list[int], int]:
    """`count` numbers, the lowest 7 bits of each first, and where they end."""
    values = [0] * count
    for number in range(count):
        for shift in range(0, 70, 7):
            values[number] |= (data[at] & 127) << shift
            at += 1
            if data[at - 1] < 128:
                break
    return values, at


def _message(data: bytes) -> dict[int, list[Any]]:
    """The values of each field of a protocol buffer: numbers, or bytes where they have a length or 32 bits."""
    fields: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        (tag,), at = _varints(data, 1, at)
        value: Any = 4
        if tag & 7 != 5:
            (value,), at = _varints(data, 1, at)
        if tag & 7 != 0:
            value, at = data[at : at + value], at + value
        fields.setdefault(tag >> 3, []).append(value)
    return fields
