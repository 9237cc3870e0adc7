"""Attention weights of the decoder, which fused kernels never hold, for as long as a block lasts.

Inside `recording` each layer of the decoder computes its output as before, and beside it the weights of its heads;
`keep` gets them as they arise. Learned prefixes (`methods.prefix`) are keys of no token and are not recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "recorded_sdpa"  # in transformers' AttentionInterface

Keep = Callable[[int, Tensor], None]

_keep: ContextVar[tuple[str, Keep] | None] = ContextVar("attention in use and receiver of weights", default=None)


def can_record(network: Any) -> bool:
    """Whether the decoder's attention goes through `sdpa` or a variant of it."""
    return "sdpa" in str(network.config.get_text_config()._attn_implementation)


@contextmanager
def recording(network: Any, keep: Keep) -> Iterator[None]:
    """Call `keep(layer, weights)` with the float32 weights (rows, heads, queries, keys) of each decoder layer."""
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config = network.config.get_text_config()
    before = config._attn_implementation
    token = _keep.set((before, keep))
    config._attn_implementation = {"": NAME}  # a dict leaves the configurations of submodels alone
    try:
        yield
    finally:
        config._attn_implementation = {"": before}
        _keep.reset(token)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **named: Any
) -> tuple[Tensor, None]:
    state = _keep.get()
    assert state is not None
    before, keep = state
    groups = query.shape[1] // key.shape[1]
    keys = key.repeat_interleave(groups, 1) if groups > 1 else key
    scores = (query @ keys.transpose(-1, -2)).float() * (named.get("scaling") or query.shape[-1] ** -0.5)
    queries, columns = scores.shape[-2:]
    causal = torch.ones(queries, columns, dtype=torch.bool, device=scores.device).tril(columns - queries)
    seen = causal if mask is None else mask
    scores = scores.masked_fill(~seen, float("-inf")) if seen.dtype == torch.bool else scores + seen
    keep(int(module.layer_idx), scores.softmax(-1))  # type: ignore[arg-type]
    output: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS[before](module, query, key, value, mask, **named)
    return output
