"""Rows of a KV cache: dropped, repeated and put in another order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mllm_tailor.generation.kv_cache import KVCache, append_columns, compact, empty_cache, no_cache, rearrange


def filled(rows: int, columns: int) -> KVCache:
    """Two layers in which every row has numbers of its own."""
    generator = torch.Generator().manual_seed(0)
    kv = KVCache(empty_cache(), no_cache(rows).mask)
    append_columns(kv, torch.ones(rows, columns, dtype=torch.int64))
    for layer in range(2):
        kv.cache.update(*(torch.randn(rows, 3, columns, 4, generator=generator) for _ in range(2)), layer)
    return kv


def numbers(kv: KVCache) -> list[Tensor]:
    return [tensor.clone() for layer in kv.cache.layers for tensor in (layer.keys, layer.values)]


# In place: all stay, some are replaced. Copied: swapped, shifted, fewer, more.
@pytest.mark.parametrize(
    "rows", [[0, 1, 2, 3], [0, 0, 2, 2], [1, 1, 1, 1], [1, 0, 2, 3], [0, 0, 1, 2], [3, 1], [2] * 6]
)
def test_rearranged_rows_are_those_chosen_and_go_on(rows: Sequence[int]) -> None:
    before = numbers(filled(4, 5))
    kv = rearrange(filled(4, 5), rows)
    assert kv.rows == len(rows) and kv.mask.all()
    assert all(after.equal(tensor[list(rows)]) for after, tensor in zip(numbers(kv), before, strict=True))
    copied = compact([(filled(4, 5), rows)])
    for each in (kv, copied):
        append_columns(each, torch.ones(len(rows), 1, dtype=torch.int64))
        each.cache.update(torch.ones(len(rows), 3, 1, 4), torch.zeros(len(rows), 3, 1, 4), 0)
    assert all(left.equal(right) for left, right in zip(numbers(kv), numbers(copied), strict=True))
