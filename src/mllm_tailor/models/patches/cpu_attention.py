"""Attention on a CPU where bf16 products run in hardware: one and a half to two times as quick as torch's.

torch's kernel for processors spends its time between small products. Here a block of queries of one head meets its keys
in one product, whose scores stay in the cache, and the shares are worked out again in the backward pass rather than
kept, as FlashAttention does (Dao et al. 2022, 2205.14135, section 3.1). Scores are rounded to bf16, as eager attention
under autocast rounds them. Everything else (float32, GPUs, masks, dropout, single queries) goes to torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mllm_tailor.core.device import fast_bf16

BLOCK = 256  # queries
LEAST = 256  # tokens; below, torch's kernel is as quick

_allowed: ContextVar[bool] = ContextVar("blocks of queries", default=True)
_instead: ContextVar[Callable[..., tuple[Tensor, None]] | None] = ContextVar("another's attention", default=None)


class BlockedAttention(torch.autograd.Function):
    """softmax(q kᵀ · scale) v; where `causal`, a token sees itself and those before. [batch, heads, tokens, width]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool) -> Tensor:
        shape = query.shape
        query, key, value = (one.flatten(0, 1) for one in (query * scale, key, value))
        keys = key.transpose(1, 2).contiguous()
        out = torch.empty_like(query)
        for head in range(len(query)):
            for start, end, seen in _blocks(query, causal):
                shares = _shares(query[head, start:end], keys[head, :, :seen], causal)
                torch.mm(shares, value[head, :seen], out=out[head, start:end])
        ctx.save_for_backward(query, keys, value)
        ctx.shape, ctx.scale, ctx.causal = shape, scale, causal
        return out.view(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, keys, value = ctx.saved_tensors
        gradient = gradients[0].reshape(query.shape)
        values = value.transpose(1, 2).contiguous()
        of_query, of_key, of_value = (torch.empty_like(query) for _ in range(3))
        for head in range(len(query)):
            # Every block adds to these two, so they are not rounded to bf16 in between.
            to_key, to_value = (torch.zeros(query.shape[1:]) for _ in range(2))
            for start, end, seen in _blocks(query, ctx.causal):
                asked, coming = query[head, start:end], gradient[head, start:end]
                shares = _shares(asked, keys[head, :, :seen], ctx.causal)
                to_value[:seen] += shares.t() @ coming
                of_shares = coming @ values[head, :, :seen]
                of_scores = torch._softmax_backward_data(of_shares, shares, -1, shares.dtype)
                torch.mm(of_scores, keys[head, :, :seen].t(), out=of_query[head, start:end])
                to_key[:seen] += of_scores.t() @ asked
            of_key[head], of_value[head] = to_key, to_value
        of_query *= ctx.scale
        return of_query.view(ctx.shape), of_key.view(ctx.shape), of_value.view(ctx.shape), None, None


def _blocks(query: Tensor, causal: bool) -> Iterator[tuple[int, int, int]]:
    """First and last query of each block, and how many keys they see."""
    length = query.shape[1]
    for start in range(0, length, BLOCK):
        end = min(length, start + BLOCK)
        yield start, end, end if causal else length


def _shares(query: Tensor, keys: Tensor, causal: bool) -> Tensor:
    scores = query @ keys
    if causal:  # the last keys are those of the queries themselves
        count = len(query)
        scores[:, -count:] += _later(scores.dtype)[:count, :count]
    return scores.softmax(-1)


@functools.cache
def _later(dtype: torch.dtype) -> Tensor:
    """What is added to the scores of a block with itself: nothing may look at what comes after it."""
    return torch.full((BLOCK, BLOCK), float("-inf"), dtype=dtype).triu(1)


@contextmanager
def torch_attention() -> Iterator[None]:
    """Within, every pass uses torch's own attention: to count its operations, or to compare with."""
    before = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(before)


@contextmanager
def attention_by(function: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """Within, `function` stands in for `attend`, given the same: where not all that is attended to is in the cache."""
    before = _instead.set(function)
    try:
        yield
    finally:
        _instead.reset(before)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **named: Any
) -> tuple[Tensor, None]:
    """transformers' `sdpa`, but for what this module is for. Shapes as there: [batch, heads, tokens, width]."""
    instead = _instead.get()
    if instead is not None:
        return instead(module, query, key, value, attention_mask, **named)
    if attention_mask is not None or not _fits(query, key, value, named):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **named)
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, 1) if groups > 1 else one for one in (key, value))
    query, key, value = (one.to(torch.bfloat16) for one in (query, key, value))
    scale = named.get("scaling") or query.shape[-1] ** -0.5
    told = named.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if told is None else told)
    return BlockedAttention.apply(query, key, value, scale, causal).transpose(1, 2).contiguous(), None


def _fits(query: Tensor, key: Tensor, value: Tensor, named: dict[str, Any]) -> bool:
    return (
        _allowed.get()
        and query.device.type == "cpu"
        and fast_bf16(query.device)
        and _in_bf16(query, key, value)
        and LEAST <= query.shape[2] == key.shape[2]
        and query.shape[-1] == value.shape[-1]
        and not named.get("dropout")
        and all(named.get(name) is None for name in ("position_bias", "softcap", "sliding_window", "s_aux"))
    )


def _in_bf16(*tensors: Tensor) -> bool:
    """Whether torch's own attention would compute with these in bf16."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return all(one.dtype == torch.bfloat16 for one in tensors)


AttentionInterface.register("sdpa", attend)
