"""Attention for CPUs with bf16 products in hardware: which way of computing it is the fastest on which of them.

Blocked attention is 1.5 to 2 times as fast as torch's kernel where bf16 products are instructions on vectors (AMD):
that kernel spends most of its time between small products. Here a block of queries of one head is multiplied with its
keys in a single product whose scores stay in the cache, and the attention weights are recomputed in the backward pass
instead of stored, as in FlashAttention (Dao et al. 2022, 2205.14135, section 3.1). Scores are rounded to bf16, as eager
attention under autocast rounds them. All other cases (float32, GPUs, masks, dropout, single queries) use
torch.

Where whole tiles of matrices are multiplied (Intel AMX), torch's forward pass is twice as fast as the blocks and its
backward pass as fast; only among few tokens are the plain products of all heads faster still (benchmarks/attention.py).

`install` registers the function with transformers under a separate name and selects it in a single model;
transformers' `sdpa` and other models stay unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mllm_tailor.core.device import fast_bf16, has_matrix_tiles
from mllm_tailor.core.handle import Handle

NAME = "cpu_blocked_sdpa"  # in transformers' AttentionInterface
BLOCK = 256  # queries
MIN_TOKENS = 256  # below, torch's kernel is as fast
FEW_TOKENS = 512  # whose scores of all heads are computed at once where the CPU multiplies tiles

AttentionFunction = Callable[..., tuple[Tensor, None]]

_enabled: ContextVar[bool] = ContextVar("blocked attention enabled", default=True)
_replacement: ContextVar[AttentionFunction | None] = ContextVar("attention function in use instead", default=None)


class BlockedAttention(torch.autograd.Function):
    """softmax(q kᵀ · scale) v of [batch, heads, tokens, width]; `causal`: no token sees later ones."""

    @staticmethod
    def forward(  # autograd passes positional arguments only
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        causal: bool,  # noqa: FBT001
    ) -> Tensor:
        shape = query.shape
        query, key, value = (tensor.flatten(0, 1) for tensor in (query * scale, key, value))
        keys = key.transpose(1, 2).contiguous()
        out = torch.empty_like(query)
        for head in range(len(query)):
            for start, end, seen in _blocks(query, causal=causal):
                weights = _attention_weights(query[head, start:end], keys[head, :, :seen], causal=causal)
                torch.mm(weights, value[head, :seen], out=out[head, start:end])
        ctx.save_for_backward(query, keys, value)
        ctx.shape, ctx.scale, ctx.causal = shape, scale, causal
        return out.view(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, keys, value = ctx.saved_tensors
        gradient = gradients[0].reshape(query.shape)
        values = value.transpose(1, 2).contiguous()
        grad_query, grad_key, grad_value = (torch.empty_like(query) for _ in range(3))
        for head in range(len(query)):
            # Every block adds to these two, so they are summed in float32 and rounded to bf16 once.
            key_sum, value_sum = (torch.zeros(query.shape[1:]) for _ in range(2))
            for start, end, seen in _blocks(query, causal=ctx.causal):
                block, grad_out = query[head, start:end], gradient[head, start:end]
                weights = _attention_weights(block, keys[head, :, :seen], causal=ctx.causal)
                value_sum[:seen] += weights.t() @ grad_out
                grad_weights = grad_out @ values[head, :, :seen]
                grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
                torch.mm(grad_scores, keys[head, :, :seen].t(), out=grad_query[head, start:end])
                key_sum[:seen] += grad_scores.t() @ block
            grad_key[head], grad_value[head] = key_sum, value_sum
        grad_query *= ctx.scale
        return grad_query.view(ctx.shape), grad_key.view(ctx.shape), grad_value.view(ctx.shape), None, None


def _blocks(query: Tensor, *, causal: bool) -> Iterator[tuple[int, int, int]]:
    """First and last query of each block, and how many keys they see."""
    length = query.shape[1]
    for start in range(0, length, BLOCK):
        end = min(length, start + BLOCK)
        yield start, end, end if causal else length


def _attention_weights(query: Tensor, keys: Tensor, *, causal: bool) -> Tensor:
    scores = query @ keys
    if causal:  # the last keys are those of the queries themselves
        count = len(query)
        scores[:, -count:] += _causal_bias(scores.dtype)[:count, :count]
    return scores.softmax(-1)


@functools.cache
def _causal_bias(dtype: torch.dtype) -> Tensor:
    """Added to the scores of a block with the keys of the same positions: -inf for keys after the query."""
    return torch.full((BLOCK, BLOCK), float("-inf"), dtype=dtype).triu(1)


@contextmanager
def torch_attention() -> Iterator[None]:
    """Use torch's attention throughout the block: to count its operations, or to compare with it."""
    before = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(before)


@contextmanager
def attention_by(function: AttentionFunction) -> Iterator[None]:
    """Call `function` instead of `attend`, with the same arguments: for keys and values outside of the cache."""
    before = _replacement.set(function)
    try:
        yield
    finally:
        _replacement.reset(before)


def is_enabled() -> bool:
    """Whether anything but torch's attention may be used."""
    return _enabled.get()


def is_replaced() -> bool:
    """Whether another function is called instead of `attend`."""
    return _replacement.get() is not None


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **named: Any
) -> tuple[Tensor, None]:
    """The fastest way here (see the module), with the shapes and arguments of transformers' `sdpa`."""
    replacement = _replacement.get()
    if replacement is not None:
        return replacement(module, query, key, value, attention_mask, **named)
    stated = named.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if stated is None else stated)
    tiles = has_matrix_tiles()
    suits = not tiles or (not causal and query.shape[2] <= FEW_TOKENS)
    if attention_mask is not None or not suits or not _supported(query, key, value, named):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **named)
    groups = query.shape[1] // key.shape[1]
    key, value = (side.repeat_interleave(groups, 1) if groups > 1 else side for side in (key, value))
    query, key, value = (tensor.to(torch.bfloat16) for tensor in (query, key, value))
    scale = named.get("scaling") or query.shape[-1] ** -0.5
    if tiles:
        output = ((query * scale) @ key.transpose(2, 3)).softmax(-1).to(torch.bfloat16) @ value
    else:
        output = BlockedAttention.apply(query, key, value, scale, causal)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2).contiguous(), None


def _supported(query: Tensor, key: Tensor, value: Tensor, named: dict[str, Any]) -> bool:
    return (
        _enabled.get()
        and query.device.type == "cpu"
        and fast_bf16(query.device)
        and _in_bf16(query, key, value)
        and MIN_TOKENS <= query.shape[2] == key.shape[2]
        and query.shape[-1] == value.shape[-1]
        and not named.get("dropout")
        and all(named.get(name) is None for name in ("position_bias", "softcap", "sliding_window", "s_aux"))
    )


def _in_bf16(*tensors: Tensor) -> bool:
    """Whether torch's own attention would compute with these in bf16."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return all(tensor.dtype == torch.bfloat16 for tensor in tensors)


def install(model: PreTrainedModel) -> Handle:
    """Select `attend` wherever this model uses transformers' `sdpa`; removing the handle selects `sdpa` again."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    configs = [config for config in _configs(model) if config._attn_implementation == "sdpa"]
    _select(configs, NAME)
    return Handle(lambda: _select(configs, "sdpa"))


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Every configuration that a module of the model reads its attention from."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in configs if isinstance(config, PreTrainedConfig)}.values())


def _select(configs: list[PreTrainedConfig], name: str) -> None:
    for config in configs:
        config._attn_implementation = {"": name}  # a dict leaves the configurations of submodels alone
