"""Attention of one sample inside a fused layer: forward and backward pass as functions, without a graph.

Queries, keys and values are (tokens, heads, width); the shares are computed again in the backward pass
(FlashAttention: Dao et al. 2022, 2205.14135).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from mllm_tailor.models.patches import cpu_attention
from mllm_tailor.models.patches.attention_kernel import kernel as built_kernel
from mllm_tailor.models.patches.attention_kernel import kernel_for

KERNEL_SUMS = 2  # dimensions: torch's have one for the batch too
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001 - has the sums that the backward pass needs
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001


class Kind(NamedTuple):
    """What attention does beside its inputs."""

    scale: float
    causal: bool  # the queries are the last positions, and none sees later ones


def supports_attention(config: PreTrainedConfig) -> bool:
    """Whether a layer of this configuration attends as here."""
    return config._attn_implementation in ("sdpa", cpu_attention.NAME)


def attention(query: Tensor, key: Tensor, value: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """The output (queries, heads, width), and the logarithms of the sums of each query's exponentials."""
    kernel = kernel_for(query, key, value) if cpu_attention.is_enabled() else None
    if kernel is not None:
        return kernel.forward(query, key, value, kind.scale, causal=kind.causal)
    causal, mask = _masking(query, key, kind)
    sides = (_as_batch(query), *_repeated(query, key, value))
    output, sums = _forward(*sides, 0.0, causal, attn_mask=mask, scale=kind.scale)
    return output[0].transpose(0, 1), sums


def attention_backward(
    gradient: Tensor, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor, sums: Tensor, kind: Kind
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from that of the output."""
    query, key, value = inputs
    if sums.ndim == KERNEL_SUMS:
        kernel = built_kernel()
        assert kernel is not None
        return kernel.backward(gradient.contiguous(), inputs, output, sums, kind.scale, causal=kind.causal)
    causal, mask = _masking(query, key, kind)
    sides = (_as_batch(query), *_repeated(query, key, value))
    found = _backward(
        _as_batch(gradient), *sides, _as_batch(output), sums, 0.0, causal, attn_mask=mask, scale=kind.scale
    )
    to_query, to_key, to_value = (side[0].transpose(0, 1) for side in found)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        to_key, to_value = (side.unflatten(1, (-1, groups)).sum(2) for side in (to_key, to_value))
    return to_query, to_key, to_value


def _masking(query: Tensor, key: Tensor, kind: Kind) -> tuple[bool, Tensor | None]:
    """Whether torch masks later keys itself, and the mask to add where there are more keys than queries."""
    mask = _mask(len(query), len(key)) if kind.causal and len(query) < len(key) else None
    return kind.causal and mask is None, mask


def _as_batch(side: Tensor) -> Tensor:
    """(1, heads, tokens, width)."""
    return side.transpose(0, 1)[None]


def _repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values for each head of the queries."""
    groups = query.shape[1] // key.shape[1]
    pair = (side.repeat_interleave(groups, 1) if groups > 1 else side for side in (key, value))
    first, second = map(_as_batch, pair)
    return first, second


@functools.lru_cache(maxsize=4)
def _mask(queries: int, total: int) -> Tensor:
    """Added to the scores of the last `queries` positions: -inf where a key is later."""
    return torch.full((queries, total), float("-inf")).triu_(total - queries + 1)[None, None]
