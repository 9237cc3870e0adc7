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
from mllm_tailor.models.patches.attention_kernel import kernel_for
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
    with cpu_attention.attention_by(SharedPrefixAttention.of(prefixes)):
        yield


class SharedPrefixAttention:
    """Attention of rows over shared prefixes and their own cache."""

    def __init__(self, spans: Sequence[tuple[slice, Prefix]]) -> None:
        """`spans`: neighbouring rows and the prefix they share."""
        self.spans = spans

    @classmethod
    def of(cls, prefixes: Sequence[Prefix]) -> SharedPrefixAttention:
        """Row `n` attends to `prefixes[n]`."""
        spans: list[tuple[slice, Prefix]] = []
        for _, group in groupby(enumerate(prefixes), lambda item: id(item[1])):
            rows = [row for row, _ in group]
            spans.append((slice(rows[0], rows[-1] + 1), prefixes[rows[0]]))
        return cls(spans)

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **named: Any
    ) -> tuple[Tensor, None]:
        """As transformers calls an attention function; see `models.patches.cpu_attention` for the shapes."""
        _, heads, width, channels = query.shape
        scale = named.get("scaling") or channels**-0.5
        out = self.attend(int(module.layer_idx), query, key, value, _visible(mask, width, key), scale)  # type: ignore[arg-type]
        return out.unflatten(-1, (heads, channels)), None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, scale: float
    ) -> Tensor:
        """(rows, width, heads * channels) for a query (rows, heads, width, channels).

        `key` and `value` (rows, key heads, columns, channels) are the rows' own; `visible` (rows or 1, 1, width,
        columns) bool: which of them a token attends to, default all.

        Scores lie heads first, (key heads, rows * queries, keys), so that the rows of a prefix are one slice of them.
        """
        rows, heads, width, channels = query.shape
        kernel = kernel_for(query, key, value) if width == 1 else None
        if kernel is not None:
            prompts = [(span, prefix.keys[layer], prefix.values[layer]) for span, prefix in self.spans]
            seen = None if visible is None else visible[:, 0, 0]
            return kernel.step(prompts, query[:, :, 0], (key, value), scale, seen).view(rows, 1, heads * channels)
        key_heads, columns = key.shape[1:3]
        size = heads // key_heads * width  # queries of a row and key head
        queries = (query * scale).reshape(rows, key_heads, size, channels)
        own = queries @ key.transpose(-1, -2)
        if visible is not None:
            own.view(rows, key_heads, -1, width, columns).masked_fill_(~visible[:, :, None], float("-inf"))
        longest = max(prefix.values[layer].shape[1] for _, prefix in self.spans)
        scores = query.new_empty(key_heads, rows * size, longest + columns)
        scores.view(key_heads, rows, size, -1)[..., longest:] = own.transpose(0, 1)
        merged = queries.transpose(0, 1).reshape(key_heads, rows * size, channels)
        parts = [(slice(span.start * size, span.stop * size), prefix) for span, prefix in self.spans]
        for part, prefix in parts:
            keys = prefix.keys[layer]
            count = keys.shape[2]
            scores[:, part, :count] = torch.bmm(merged[:, part], keys)
            if count < longest:
                scores[:, part, count:longest] = float("-inf")
        shares = scores.softmax(-1)
        own_shares = shares.view(key_heads, rows, size, -1)[..., longest:].transpose(0, 1)
        out = (own_shares @ value).transpose(0, 1).reshape(key_heads, rows * size, channels)
        for part, prefix in parts:
            values = prefix.values[layer]
            out[:, part] += torch.bmm(shares[:, part, : values.shape[1]], values)
        split = out.view(key_heads, rows, heads // key_heads, width, channels)
        return split.permute(1, 3, 0, 2, 4).reshape(rows, width, heads * channels)


def _visible(mask: Tensor | None, width: int, key: Tensor) -> Tensor | None:
    """(rows or 1, 1, width, columns) bool: which of the rows' own columns each token attends to; None: all."""
    if mask is not None or width == 1:
        return mask
    columns = key.shape[2]
    return torch.ones(width, columns, dtype=torch.bool, device=key.device).tril(columns - width)[None, None]
