"""Keys and values of a batch whose rows come and go.

All rows share the columns; a mask marks the columns a row uses (1) and padding (0), so rows may be fed blocks of
different lengths. Positions are given to the model explicitly and never follow from the column.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from mllm_tailor.core.device import upload

NAMES = ("keys", "values")


class GrowingLayer(DynamicLayer):
    """A layer's keys and values in buffers with spare room: a step writes its tokens and copies nothing."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append a block (rows, heads, width, channels); returns all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = [key_states.new_empty(0), value_states.new_empty(0)]
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if start == 0 or end > self.buffers[0].shape[-2]:
            room = end + max(64, end // 4)
            larger = [
                states.new_empty(*states.shape[:2], room, states.shape[-1]) for states in (key_states, value_states)
            ]
            if start:
                for buffer, previous in zip(larger, self.buffers, strict=True):
                    buffer[:, :, :start] = previous[:, :, :start]
            self.buffers = larger
        self.buffers[0][:, :, start:end] = key_states
        self.buffers[1][:, :, start:end] = value_states
        keys, values = (buffer[:, :, :end] for buffer in self.buffers)
        self.keys, self.values = keys, values
        return keys, values

    def take(self, rows: Tensor) -> GrowingLayer:
        """A layer that holds these rows, some of them perhaps several times, with as much spare room."""
        taken = copy.copy(self)
        used = self.get_seq_length()
        taken.buffers = []
        for buffer in self.buffers:
            room = buffer.new_empty(len(rows), *buffer.shape[1:])
            index = upload(rows, buffer.device)
            torch.index_select(buffer[:, :, :used], 0, index, out=room[:, :, :used])
            taken.buffers.append(room)
        taken.keys, taken.values = (buffer[:, :, :used] for buffer in taken.buffers)
        return taken

    def overwrite(self, rows: Tensor, sources: Tensor) -> None:
        """Replace some rows by copies of others, none of which is replaced."""
        used = self.get_seq_length()
        for buffer in self.buffers:
            buffer[rows, :, :used] = buffer[sources, :, :used]


@dataclass
class KVCache:
    """The cache of a batch and its mask (rows, columns) int64, which is kept on the CPU: it decides shapes."""

    cache: Cache
    mask: Tensor
    cross: frozenset[int] = frozenset()  # cross-attention layers (Llama 3.2), which hold images instead of tokens

    @property
    def rows(self) -> int:
        """Rows, finished ones included."""
        return self.mask.shape[0]


def empty_cache() -> Cache:
    """A cache whose layers are created when the model first writes to them."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def no_cache(rows: int) -> KVCache:
    """A batch of rows without any columns."""
    return KVCache(empty_cache(), torch.zeros(rows, 0, dtype=torch.int64))


def compact(parts: Sequence[tuple[KVCache, Sequence[int]]]) -> KVCache:
    """One batch of the chosen rows of each part, in order; rows may be dropped, joined or repeated.

    Each row's columns are right-aligned without padding between them, so that new blocks follow them directly.
    """
    if len(parts) == 1 and list(parts[0][1]) == list(range(parts[0][0].rows)):
        return parts[0][0]
    if len(parts) == 1 and is_unpadded(parts[0][0]):
        return _take(*parts[0])
    columns = [(kv, row, _used_columns(kv.mask[row])) for kv, rows in parts for row in rows]
    counts = [int(kv.mask[row].sum()) for kv, row, _ in columns]
    longest = max(counts)
    if not longest:
        return no_cache(len(columns))
    first = columns[counts.index(longest)][0]
    mask = torch.zeros(len(columns), longest, dtype=torch.int64)
    for index, count in enumerate(counts):
        mask[index, longest - count :] = 1
    cache = empty_cache()
    for layer in range(len(first.cache.layers)):
        if layer in first.cross:
            widest = max(_states(kv, layer, "keys").shape[2] for kv, _ in parts)  # rows differ in number of images
            keys, values = (
                torch.cat([_pad_images(_states(kv, layer, name)[list(rows)], widest) for kv, rows in parts])
                for name in NAMES
            )
            cache.update(keys, values, layer)
            continue
        packed = []
        for name in NAMES:
            example = _states(first, layer, name)
            states = example.new_zeros(len(columns), example.shape[1], longest, example.shape[3])
            for index, (kv, row, used) in enumerate(columns):
                if counts[index]:
                    states[index, :, longest - counts[index] :] = _states(kv, layer, name)[row][:, used]
            packed.append(states)
        cache.update(packed[0], packed[1], layer)
    return KVCache(cache, mask, first.cross)


def rearrange(kv: KVCache, rows: Sequence[int]) -> KVCache:
    """The chosen rows of a batch in this order, as `compact` gives them; the batch itself may be used up.

    Where every row that is chosen also stays in its place, only the others are written to.
    """
    moves = [(row, source) for row, source in enumerate(rows) if row != source]
    in_place = len(rows) == kv.rows and is_unpadded(kv) and all(rows[source] == source for _, source in moves)
    if not in_place:
        return compact([(kv, rows)])
    if moves:
        targets, sources = torch.tensor(moves).T
        layers: list[Any] = kv.cache.layers
        for layer in layers:
            layer.overwrite(targets, sources)
    return kv


def is_unpadded(kv: KVCache) -> bool:
    """Whether every row uses every column, of which there are some."""
    return bool(not kv.cross and kv.mask.numel() and kv.mask.all())


def _take(kv: KVCache, rows: Sequence[int]) -> KVCache:
    """The chosen rows of a batch without padding, as beams are reordered at every step: one copy a layer."""
    index = torch.tensor(rows)
    cache = empty_cache()
    layers: list[Any] = kv.cache.layers
    cache.layers = [layer.take(index) for layer in layers]
    return KVCache(cache, kv.mask[index])


def cross_keys(kv: KVCache) -> int:
    """How many keys of images a row has in the cross-attention layers."""
    return _states(kv, min(kv.cross), "keys").shape[2]


def _states(kv: KVCache, layer: int, name: str) -> Tensor:
    """The keys or values of a layer (rows, heads, columns, channels)."""
    states: Tensor = getattr(kv.cache.layers[layer], name)
    return states


def _pad_images(states: Tensor, width: int) -> Tensor:
    """(rows, heads, width, channels): zeros after the last images, which the masks exclude."""
    return torch.nn.functional.pad(states, (0, 0, 0, width - states.shape[2]))


def _used_columns(mask: Tensor) -> Tensor | slice:
    """The columns that a row's mask (columns,) marks; a slice, which copies faster, where they are contiguous."""
    used = mask.nonzero().squeeze(1)
    if not len(used):
        return slice(0)
    first, last = int(used[0]), int(used[-1])
    return slice(first, last + 1) if last - first + 1 == len(used) else used


def positions_of(mask: Tensor) -> Tensor:
    """(rows, columns) positions of left-padded prompts: 0 at the first token."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def append_columns(kv: KVCache, block: Tensor) -> Tensor:
    """Extend the mask by that of a block (rows, width); returns the whole mask."""
    kv.mask = torch.cat([kv.mask, block], dim=1)
    return kv.mask
