"""Bifurcated attention: sequences with one prompt share its keys and values instead of copying them.

On a CPU a decoding step is bound by memory bandwidth, and a document is most of what it reads. So the KV cache of the
batch holds only what each sequence generated itself; the shared prefix is read once per step for all of them, with
their queries side by side, and is never copied when rows come and go. One softmax runs over both parts (Athiwaratkun et
al. 2024, arXiv 2403.08845, section 4.2), so a reply differs from the plain computation by rounding alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from mllm_tailor.generation.kv_cache import KVCache
from mllm_tailor.models import LoadedModel
from mllm_tailor.models.patches import cpu_attention
from mllm_tailor.models.patches.last_layer import KINDS


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of a prompt in every layer."""

    keys: tuple[Tensor, ...]  # (heads, channels, tokens) each, the layout products with queries need
    values: tuple[Tensor, ...]  # (heads, tokens, channels) each

    @classmethod
    def of(cls, kv: KVCache, row: int) -> Prefix:
        """A copy of one row of a cache without padding."""
        layers: Any = kv.cache.layers
        return cls(
            tuple(layer.keys[row].transpose(-1, -2).contiguous() for layer in layers),
            tuple(layer.values[row].clone() for layer in layers),
        )


def shares_prefixes(model: LoadedModel) -> bool:
    """Whether a model's layers attend as assumed here. A GPU has the bandwidth, and many small products slow it."""
    layers = getattr(model.model.get_decoder(), "layers", None)
    return bool(
        model.device.type == "cpu"
        and model.family.tiled  # prompts are read without padding, and positions count tokens
        and layers
        and all(type(layer).__name__ in KINDS for layer in layers)
        and layers[0].self_attn.config._attn_implementation == cpu_attention.NAME
        and not getattr(model.model.config.get_text_config(), "sliding_window", None)
    )


@contextmanager
def attend_to_prefixes(prefixes: Sequence[Prefix]) -> Iterator[None]:
    """Within, row `n` of a batch attends to `prefixes[n]` and then to its own keys and values."""
    spans: list[tuple[slice, Prefix]] = []
    for _, group in groupby(enumerate(prefixes), lambda item: id(item[1])):
        rows = [row for row, _ in group]
        spans.append((slice(rows[0], rows[-1] + 1), prefixes[rows[0]]))
    with cpu_attention.attention_by(_SharedPrefixAttention(spans)):
        yield


class _SharedPrefixAttention:
    """Attention of rows over shared prefixes and their own cache; see `models.patches.cpu_attention` for the shapes."""

    def __init__(self, spans: Sequence[tuple[slice, Prefix]]) -> None:
        """`spans`: neighbouring rows and the prefix they share."""
        self.spans = spans

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **named: Any
    ) -> tuple[Tensor, None]:
        rows, heads, width, channels = query.shape
        key_heads, layer = key.shape[1], int(module.layer_idx)  # type: ignore[arg-type]
        scale = named.get("scaling") or channels**-0.5
        queries = (query * scale).reshape(rows, key_heads, -1, channels)  # query heads of one key side by side
        longest = max(prefix.values[layer].shape[1] for _, prefix in self.spans)
        scores = queries.new_full((rows, key_heads, queries.shape[2], longest + key.shape[2]), float("-inf"))
        own = scores[..., longest:].view(rows, key_heads, heads // key_heads, width, -1)
        own.copy_((queries @ key.transpose(-1, -2)).view(own.shape))
        own.masked_fill_(~_visible(mask, width, key)[:, :, None], float("-inf"))
        for span, prefix in self.spans:
            products = _merge_rows(queries[span]) @ prefix.keys[layer]
            scores[span, ..., : products.shape[-1]] = _split_rows(products, queries[span])
        shares = scores.softmax(-1)
        out = shares[..., longest:] @ value
        for span, prefix in self.spans:
            values = prefix.values[layer]
            out[span] += _split_rows(_merge_rows(shares[span, ..., : values.shape[1]]) @ values, queries[span])
        return out.view(rows, heads, width, channels).transpose(1, 2).contiguous(), None


def _visible(mask: Tensor | None, width: int, key: Tensor) -> Tensor:
    """(rows or 1, 1, width, columns) bool: which of the rows' own columns each token attends to."""
    if mask is not None:
        return mask
    columns = key.shape[2]
    return torch.ones(width, columns, dtype=torch.bool, device=key.device).tril(columns - width)[None, None]


def _merge_rows(rows: Tensor) -> Tensor:
    """(rows, heads, queries, n) -> (heads, rows * queries, n)."""
    return rows.transpose(0, 1).flatten(1, 2)


def _split_rows(merged: Tensor, like: Tensor) -> Tensor:
    """(heads, rows * queries, n) -> (rows, heads, queries, n), with the rows and queries of `like`."""
    split: Tensor = merged.unflatten(1, (like.shape[0], like.shape[2]))
    return split.transpose(0, 1)
