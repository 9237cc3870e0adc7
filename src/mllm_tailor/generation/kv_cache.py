"""Keys and values of a batch whose rows come and go.

Columns are shared by all rows; a mask says which columns a row really holds (1) and which are padding (0), so rows may
be fed blocks of different lengths. Positions are given to the model explicitly and never follow from the column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

NAMES = ("keys", "values")


class GrowingLayer(DynamicLayer):
    """One layer's keys and values in buffers with room to spare: a step writes its tokens and copies nothing."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append a block (rows, heads, width, channels); returns everything held so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = (key_states.new_empty(0), value_states.new_empty(0))
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if start == 0 or end > self.buffers[0].shape[-2]:
            room = end + max(64, end // 4)
            self.buffers = tuple(
                states.new_empty(*states.shape[:2], room, states.shape[-1]) for states in (key_states, value_states)
            )
            if start:
                self.buffers[0][:, :, :start] = self.keys
                self.buffers[1][:, :, :start] = self.values
        self.buffers[0][:, :, start:end] = key_states
        self.buffers[1][:, :, start:end] = value_states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values


@dataclass
class KVCache:
    """The cache of a batch and what is real in it: mask (rows, columns), int64."""

    cache: Cache
    mask: Tensor
    cross: frozenset[int] = frozenset()  # layers that hold pictures instead of tokens (Llama 3.2), whole for each row

    @property
    def rows(self) -> int:
        """Rows, finished ones included."""
        return self.mask.shape[0]


def empty_cache() -> Cache:
    """A cache that makes its layers when the model first writes to them."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def no_cache(rows: int) -> KVCache:
    """A batch of rows that hold nothing yet."""
    return KVCache(empty_cache(), torch.zeros(rows, 0, dtype=torch.int64))


def compact(parts: Sequence[tuple[KVCache, Sequence[int]]]) -> KVCache:
    """One batch of the chosen rows of each part, in order: rows are dropped, joined or repeated, and holes vanish.

    Each row's real columns are pushed to the right, in their order, so that new blocks follow them directly.
    """
    if len(parts) == 1 and list(parts[0][1]) == list(range(parts[0][0].rows)):
        return parts[0][0]
    columns = [(held, row, _real(held.mask[row])) for held, rows in parts for row in rows]
    counts = [int(held.mask[row].sum()) for held, row, _ in columns]
    longest = max(counts)
    if not longest:
        return no_cache(len(columns))
    first = columns[counts.index(longest)][0]
    mask = first.mask.new_zeros(len(columns), longest)
    for line, count in enumerate(counts):
        mask[line, longest - count :] = 1
    cache = empty_cache()
    for layer in range(len(first.cache.layers)):
        if layer in first.cross:
            layers = [(held.cache.layers[layer], list(rows)) for held, rows in parts]
            cache.update(*(torch.cat([getattr(one, name)[rows] for one, rows in layers]) for name in NAMES), layer)
            continue
        packed = []
        for name in NAMES:
            example = getattr(first.cache.layers[layer], name)
            states = example.new_zeros(len(columns), example.shape[1], longest, example.shape[3])
            for line, (held, row, real) in enumerate(columns):
                if not counts[line]:
                    continue
                states[line, :, longest - counts[line] :] = getattr(held.cache.layers[layer], name)[row][:, real]
            packed.append(states)
        cache.update(packed[0], packed[1], layer)
    return KVCache(cache, mask, first.cross)


def _real(mask: Tensor) -> Tensor | slice:
    """The columns (columns,) says are real; a slice, which copies faster, where they lie side by side."""
    real = mask.nonzero().squeeze(1)
    if not len(real):
        return slice(0)
    first, last = int(real[0]), int(real[-1])
    return slice(first, last + 1) if last - first + 1 == len(real) else real


def positions_of(mask: Tensor) -> Tensor:
    """(rows, columns) positions of left-padded prompts: 0 at the first real token."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def append_columns(held: KVCache, block: Tensor) -> Tensor:
    """Extend the mask by a block's own mask (rows, width); returns the whole mask."""
    held.mask = torch.cat([held.mask, block], dim=1)
    return held.mask
