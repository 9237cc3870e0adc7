"""Prompts that stay where they were read: all replies about one document look at the same keys and values.

On a processor a decode step waits for memory more than for sums, and a document is most of what it reads. So the cache
of the rows holds only what each of them wrote itself; what they have in common is read once a step for all of them,
with their queries side by side, and is never copied when rows come and go. One softmax runs over both (bifurcated
attention, Athiwaratkun et al. 2024, arXiv 2403.08845, section 4.2), so a reply differs by rounding alone.
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
    """What a prompt left in each layer."""

    keys: tuple[Tensor, ...]  # (heads, channels, tokens) each, as products with queries read them
    values: tuple[Tensor, ...]  # (heads, tokens, channels) each

    @classmethod
    def of(cls, held: KVCache, row: int) -> Prefix:
        """The cache of one row without padding, in memory of its own."""
        layers = held.cache.layers
        return cls(
            tuple(layer.keys[row].transpose(-1, -2).contiguous() for layer in layers),
            tuple(layer.values[row].clone() for layer in layers),
        )


def keeps_prefixes(model: LoadedModel) -> bool:
    """Whether this model's layers attend as assumed here. A GPU has the bandwidth, and minds many small products."""
    layers = getattr(model.model.get_decoder(), "layers", None)
    return bool(
        model.device.type == "cpu"
        and model.family.tiled  # prompts read without padding, positions counted alike
        and layers
        and all(type(layer).__name__ in KINDS for layer in layers)
        and layers[0].self_attn.config._attn_implementation == cpu_attention.NAME
        and not getattr(model.model.config.get_text_config(), "sliding_window", None)
    )


@contextmanager
def attend_to_prefixes(prefixes: Sequence[Prefix]) -> Iterator[None]:
    """Within, row `n` of a batch attends to `prefixes[n]` and, behind it, to its own keys and values."""
    spans: list[tuple[slice, Prefix]] = []
    for _, group in groupby(enumerate(prefixes), lambda item: id(item[1])):
        lines = [line for line, _ in group]
        spans.append((slice(lines[0], lines[-1] + 1), prefixes[lines[0]]))
    with cpu_attention.attention_by(_Look(spans)):
        yield


class _Look:
    """Attention of rows over shared prefixes and their own cache; see `models.attention.attend` for the shapes."""

    def __init__(self, spans: Sequence[tuple[slice, Prefix]]) -> None:
        """`spans`: neighbouring rows and the prefix they share."""
        self.spans = spans

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **named: Any
    ) -> tuple[Tensor, None]:
        rows, heads, width, channels = query.shape
        kept, layer = key.shape[1], int(module.layer_idx)  # type: ignore[arg-type]
        scale = named.get("scaling") or channels**-0.5
        asked = (query * scale).reshape(rows, kept, -1, channels)  # query heads that share a key lie side by side
        longest = max(prefix.values[layer].shape[1] for _, prefix in self.spans)
        scores = asked.new_full((rows, kept, asked.shape[2], longest + key.shape[2]), float("-inf"))
        own = scores[..., longest:].view(rows, kept, heads // kept, width, -1)
        own.copy_((asked @ key.transpose(-1, -2)).view(own.shape))
        own.masked_fill_(~_seen(mask, width, key)[:, :, None], float("-inf"))
        for lines, prefix in self.spans:
            found = _together(asked[lines]) @ prefix.keys[layer]
            scores[lines, ..., : found.shape[-1]] = _apart(found, asked[lines])
        shares = scores.softmax(-1)
        out = shares[..., longest:] @ value
        for lines, prefix in self.spans:
            values = prefix.values[layer]
            out[lines] += _apart(_together(shares[lines, ..., : values.shape[1]]) @ values, asked[lines])
        return out.view(rows, heads, width, channels).transpose(1, 2).contiguous(), None


def _seen(mask: Tensor | None, width: int, key: Tensor) -> Tensor:
    """(rows or 1, 1, width, columns) bool: which of the rows' own columns each token sees."""
    if mask is not None:
        return mask
    columns = key.shape[2]
    return torch.ones(width, columns, dtype=torch.bool, device=key.device).tril(columns - width)[None, None]


def _together(rows: Tensor) -> Tensor:
    """(rows, heads, queries, n) -> (heads, rows * queries, n)."""
    return rows.transpose(0, 1).flatten(1, 2)


def _apart(found: Tensor, like: Tensor) -> Tensor:
    """(heads, rows * queries, n) -> (rows, heads, queries, n), with the rows and queries of `like`."""
    return found.unflatten(1, (like.shape[0], like.shape[2])).transpose(0, 1)
