"""Token by token: the tokens so far -> logits of the next, with what the model keeps of those before."""

import inspect
from collections.abc import Sequence

import torch
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

CACHE_NAMES = ("cache", "past_key_values")  # of the argument, in Transformers from 5.24 on and before
ROOM_TOKENS = 32  # that keys and values grow by at a time
KINDS = {
    DynamicLayer,
    DynamicSlidingWindowLayer,
}  # of what a layer keeps: keys and values, and no other state


class Decoder:
    """A model that goes on from several rows of tokens at once. `start`, then `go_on` as often as there are tokens.

    Prompts that are the same are read once, and keys and values are added in place.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int):
        self.model, self.pad_id = model, pad_id
        self.arguments = inspect.signature(model.forward).parameters
        self.cache = _new_cache(model)
        self.mask: torch.Tensor | None = None  # int64 (B, T), where rows are padded
        self.positions: torch.Tensor | None = None  # int64 (B, 1), of the last token

    @staticmethod
    def takes(model: PreTrainedModel) -> bool:
        """Whether the model is called as most are: with tokens, positions, and a cache of keys and values."""
        plain = GenerationMixin.prepare_inputs_for_generation
        return (
            getattr(type(model), plain.__name__) is plain
            and any(name in inspect.signature(model.forward).parameters for name in CACHE_NAMES)
            and {type(layer) for layer in DynamicCache(config=model.config).layers} <= KINDS
        )

    def start(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits (B, V) of what follows each row; rows may be of different lengths."""
        different = {tuple(row): place for place, row in enumerate(dict.fromkeys(map(tuple, rows)))}
        ids, mask = left_padded(list(different), self.pad_id, self.model.device)
        self.mask = None if bool(mask.all()) else mask
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self.positions = positions[:, -1:]
        logits = self._forward(ids, positions)
        if len(different) == len(rows):
            return logits
        places = [different[tuple(row)] for row in rows]
        self.keep(places)
        return logits[places]

    def go_on(self, tokens: Sequence[int]) -> torch.Tensor:
        """Logits (B, V) of what follows, after one more token in each row."""
        assert self.positions is not None
        self.positions = self.positions + 1
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        ids = torch.tensor(tokens, device=self.model.device)[:, None]
        return self._forward(ids, self.positions)

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these rows, in this order."""
        assert self.positions is not None
        index = torch.tensor(places, device=self.model.device)
        self.cache.batch_select_indices(index)
        self.positions = self.positions[index]
        self.mask = None if self.mask is None else self.mask[index]

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        options = {
            next(name for name in CACHE_NAMES if name in self.arguments): self.cache,
            "attention_mask": self.mask,
            "position_ids": positions,
            "logits_to_keep": 1,  # else a prompt has logits of each token
        }
        known = {name: value for name, value in options.items() if name in self.arguments}
        return self.model(input_ids=ids, use_cache=True, **known).logits[:, -1]


class _RoomyLayer(DynamicLayer):
    """Keys and values with room for those to come: what grows by copying costs more with every token."""

    room: tuple[torch.Tensor, torch.Tensor] | None = None  # of which `keys` and `values` are the beginning

    def update(self, key_states, value_states, *args, **kwargs):
        """Add keys and values (B, H, T, C) of new tokens; returns all that there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.room is None or end > self.room[0].shape[-2]:
            self.room = _larger(self.keys, key_states, end), _larger(self.values, value_states, end)
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start:end] = states
        self.keys, self.values = (room[:, :, :end] for room in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        super().batch_select_indices(indices)
        self.room = None


def left_padded(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, attention mask), int64 (B, T), short rows padded on the left so that all go on from the last column."""
    length = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (length - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _new_cache(model: PreTrainedModel) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _larger(old: torch.Tensor, new: torch.Tensor, length: int) -> torch.Tensor:
    """Room for more than `length` tokens, with the `old` ones in it, then zeros, and the shape that `new` ones have."""
    batch, heads, _, width = new.shape
    room = new.new_zeros(batch, heads, (length // ROOM_TOKENS + 1) * ROOM_TOKENS, width)
    if old.numel():
        room[:, :, : old.shape[-2]] = old
    return room
