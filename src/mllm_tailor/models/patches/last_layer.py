"""The last decoder layer computed only at positions whose output is read.

A loss reads the positions that predict an answer; prefilling a prompt reads the last position. Earlier positions are
needed only for their keys and values, so their query, attention, output projection and MLP are skipped in the forward
and the backward pass. The kept positions see the same keys, values and sums as in the full layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from mllm_tailor.models.patches import cpu_attention
from mllm_tailor.models.patches.decoder_layer import FusedForward

MIN_SKIPPED = 64  # positions before the answer; calling the layer twice costs about as much as computing these
# Layers that compute keys and values first, pass them to the cache, and mix positions in attention only.
KINDS = frozenset(
    f"{name}DecoderLayer" for name in ("Llama", "Mistral", "Phi3", "Qwen2", "Qwen2VL", "Qwen2_5_VL", "Qwen3", "SmolLM3")
)


class _KeysComputed(Exception):
    """Raised once keys and values exist; nothing else the layer computes is needed."""


class _StopAfterKeys(Cache):
    """Stores the keys and values of a layer (in `cache` too, if given) and stops the layer."""

    def __init__(self, cache: Cache | None) -> None:
        super().__init__(layers=[])
        self.cache = cache

    def update(self, key_states: Tensor, value_states: Tensor, *others: Any, **more: Any) -> tuple[Tensor, Tensor]:
        """See `Cache.update`; never returns."""
        self.states = (key_states, value_states)
        if self.cache is not None:
            self.cache.update(key_states, value_states, *others, **more)
        raise _KeysComputed


class _PrependKeys(Cache):
    """Puts earlier keys and values in front of those of a layer."""

    def __init__(self, states: tuple[Tensor, Tensor]) -> None:
        super().__init__(layers=[])
        self.states = states

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """See `Cache.update`."""
        key, value = self.states
        return torch.cat([key, key_states], dim=-2), torch.cat([value, value_states], dim=-2)


def cache_name(forward: Callable[..., Any]) -> str:
    """The name of the KV cache argument of `forward`, which differs between transformers versions."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


@contextmanager
def last_layer_from(network: nn.Module, start: int, length: int) -> Iterator[None]:
    """Inside the block, the decoder's last layer returns only positions `start` to `length`, if it is one of KINDS.

    Positions count input ids; anything a method puts before them is skipped too. A given cache must be empty and is
    filled. With gradient checkpointing the layer returns all positions.
    """
    layer = _last_layer(network) if start >= MIN_SKIPPED else None
    if layer is None:
        yield
        return
    whole, own = layer.forward, vars(layer).get("forward")
    name = cache_name(whole)

    def forward(hidden_states: Tensor, **given: Any) -> Any:
        cache, total = given.get(name), hidden_states.shape[1]
        first = total - length + start
        if isinstance(whole, FusedForward) and whole.can_fuse(hidden_states, given):
            return whole.from_position(first, hidden_states, **given)
        stop = _StopAfterKeys(cache)
        with suppress(_KeysComputed):
            whole(hidden_states[:, :first], **_cut(given, slice(None, first)), **{name: stop})
        rest = _cut(given, slice(first, None))
        if rest["attention_mask"] is None and total - first > 1:  # a single query sees all
            rest["attention_mask"] = _causal(total - first, total, hidden_states.device)
        return whole(hidden_states[:, first:], **rest, **{name: _PrependKeys(stop.states) if cache is None else cache})

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
        if own is not None:
            layer.forward = own


def _last_layer(network: nn.Module) -> nn.Module | None:
    """The decoder's last layer if some of its positions can be skipped."""
    layers = getattr(network.get_decoder(), "layers", None)  # type: ignore[operator]
    if not layers or type(layers[-1]).__name__ not in KINDS:
        return None
    layer: Any = layers[-1]
    recomputed = layer.training and getattr(layer, "gradient_checkpointing", False)
    supported = layer.self_attn.config._attn_implementation in ("sdpa", cpu_attention.NAME)
    last: nn.Module | None = layer if supported and not recomputed else None
    return last


def _cut(given: Mapping[str, Any], part: slice) -> dict[str, Any]:
    """The layer's arguments for a slice of its positions, without the cache."""
    cut = {name: value for name, value in given.items() if name not in ("cache", "past_key_values")}
    cut["position_embeddings"] = tuple(table[..., part, :] for table in given["position_embeddings"])  # cos, sin
    if given.get("position_ids") is not None:
        cut["position_ids"] = given["position_ids"][..., part]
    mask = given.get("attention_mask")  # (batch, 1, positions, positions)
    cut["attention_mask"] = None if mask is None else mask[:, :, part]
    return cut


def _causal(queries: int, total: int, device: torch.device) -> Tensor:
    """(1, 1, queries, total) bool mask: the last positions see everything up to themselves."""
    return torch.ones(queries, total, dtype=torch.bool, device=device).tril(total - queries)[None, None]
