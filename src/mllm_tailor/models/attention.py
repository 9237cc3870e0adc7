"""Causal attention of training passes on a CPU where bf16 products run in hardware: about twice as quick as torch's.

torch's kernel for processors spends its time between small products. Here a block of queries meets all keys before its
end in one product, as large as the cache holds, and the shares are worked out again in the backward pass rather than
kept, as FlashAttention does (Dao et al. 2022, 2205.14135, section 3.1). Scores are rounded to bf16, as eager attention
under autocast rounds them. Everything else (float32, GPUs, masks, dropout, passes without gradients) goes to torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

BLOCK = 128  # queries
LEAST = 256  # tokens; below, one product holds all there is

_allowed: ContextVar[bool] = ContextVar("blocks of queries", default=True)


class BlockedAttention(torch.autograd.Function):
    """softmax(q kᵀ · scale, each token seeing itself and those before) v; all are [batch, heads, tokens, width]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        query, keys = query * scale, key.transpose(-1, -2).contiguous()
        out = torch.empty_like(query)
        later = _later(query)
        for start, end in _blocks(query):
            out[:, :, start:end] = _shares(query, keys, start, end, later) @ value[:, :, :end]
        ctx.save_for_backward(query, keys, value)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, keys, value = ctx.saved_tensors
        key, values, gradient = keys.transpose(-1, -2), value.transpose(-1, -2).contiguous(), gradients[0].contiguous()
        of_query = torch.empty_like(query)
        # Every block adds to these, so they are not rounded to bf16 in between.
        of_key, of_value = (torch.zeros(key.shape, dtype=torch.float32, device=key.device) for _ in range(2))
        later = _later(query)
        for start, end in _blocks(query):
            shares, coming = _shares(query, keys, start, end, later), gradient[:, :, start:end]
            of_value[:, :, :end] += shares.transpose(-1, -2) @ coming
            of_scores = torch._softmax_backward_data(coming @ values[..., :end], shares, -1, shares.dtype)
            of_query[:, :, start:end] = of_scores @ key[:, :, :end]
            of_key[:, :, :end] += of_scores.transpose(-1, -2) @ query[:, :, start:end]
        return of_query * ctx.scale, of_key.to(query.dtype), of_value.to(query.dtype), None


def _blocks(query: Tensor) -> Iterator[tuple[int, int]]:
    length = query.shape[2]
    return ((start, min(length, start + BLOCK)) for start in range(0, length, BLOCK))


def _later(query: Tensor) -> Tensor:
    """What is added to the scores of a block with itself: nothing may look at what comes after it."""
    return torch.full((BLOCK, BLOCK), float("-inf"), dtype=query.dtype, device=query.device).triu(1)


def _shares(query: Tensor, keys: Tensor, start: int, end: int, later: Tensor) -> Tensor:
    scores = query[:, :, start:end] @ keys[..., :end]
    scores[..., start:end] += later[: end - start, : end - start]
    return scores.softmax(-1)


@contextmanager
def torch_attention() -> Iterator[None]:
    """Within, every pass uses torch's own attention: to count its operations, or to compare with."""
    before = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(before)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **named: Any
) -> tuple[Tensor, None]:
    """transformers' `sdpa`, but for the passes this module is for. Shapes as there: [batch, heads, tokens, width]."""
    if attention_mask is not None or not _fits(module, query, key, value, named):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **named)
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, 1) if groups > 1 else one for one in (key, value))
    query, key, value = (one.to(torch.bfloat16) for one in (query, key, value))
    scale = named.get("scaling") or query.shape[-1] ** -0.5
    return BlockedAttention.apply(query, key, value, scale).transpose(1, 2).contiguous(), None


def _fits(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, named: dict[str, Any]) -> bool:
    causal = named.get("is_causal")
    return (
        _allowed.get()
        and query.device.type == "cpu"
        and _in_bf16(query, key, value)
        and torch.is_grad_enabled()
        and any(one.requires_grad for one in (query, key, value))
        and LEAST <= query.shape[2] == key.shape[2]
        and query.shape[-1] == value.shape[-1]
        and bool(getattr(module, "is_causal", True) if causal is None else causal)
        and not named.get("dropout")
        and all(named.get(name) is None for name in ("position_bias", "softcap", "sliding_window", "s_aux"))
    )


def _in_bf16(*tensors: Tensor) -> bool:
    """Whether torch's own attention would compute with these in bf16."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return all(one.dtype == torch.bfloat16 for one in tensors)


AttentionInterface.register("sdpa", attend)
