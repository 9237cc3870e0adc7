"""The last layer, only where its output is read.

Of all its positions a loss reads those that predict an answer, and whoever reads a prompt the last one. The ones in
front are needed for their keys and values alone: their query, attention, output projection and feed-forward part lead
nowhere and are left out, forward and backward. For the positions that are kept nothing changes: the same keys, values
and sums.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

WORTH = 64  # positions in front of the answer; calling the layer twice costs about as much as these
# Layers that compute keys and values first, hand them to the cache, and treat each position alone but for attention.
KINDS = frozenset(
    f"{name}DecoderLayer" for name in ("Llama", "Mistral", "Phi3", "Qwen2", "Qwen2VL", "Qwen2_5_VL", "Qwen3", "SmolLM3")
)


class _Found(Exception):
    """Raised when keys and values are there; what the layer would compute from them is not wanted."""


class _Stop(Cache):
    """Keeps the keys and values a layer hands over, in a cache where there is one, and stops the layer."""

    def __init__(self, cache: Cache | None) -> None:
        super().__init__(layers=[])
        self.cache = cache

    def update(self, key_states: Tensor, value_states: Tensor, *others: Any, **more: Any) -> tuple[Tensor, Tensor]:
        """See `Cache.update`; never returns."""
        self.states = (key_states, value_states)
        if self.cache is not None:
            self.cache.update(key_states, value_states, *others, **more)
        raise _Found


class _Join(Cache):
    """Puts earlier keys and values in front of a layer's own."""

    def __init__(self, states: tuple[Tensor, Tensor]) -> None:
        super().__init__(layers=[])
        self.states = states

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """See `Cache.update`."""
        key, value = self.states
        return torch.cat([key, key_states], dim=-2), torch.cat([value, value_states], dim=-2)


def cache_name(forward: Callable[..., Any]) -> str:
    """What this `forward` calls keys and values of earlier tokens; transformers is about to rename them."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


@contextmanager
def last_layer_from(network: nn.Module, start: int, length: int) -> Iterator[None]:
    """Within, the decoder's last layer gives positions `start` to `length` alone, if it is one of KINDS.

    Positions count the ids; what a method puts in front of them is left out too. A cache is filled, and must be empty.
    Layers that are recomputed in the backward pass give all positions as ever.
    """
    layer = _last_layer(network) if start >= WORTH else None
    if layer is None:
        yield
        return
    whole = layer.forward
    name = cache_name(whole)

    def forward(hidden_states: Tensor, **given: Any) -> Any:
        cache, total = given.get(name), hidden_states.shape[1]
        first = total - length + start
        stop = _Stop(cache)
        with suppress(_Found):
            whole(hidden_states[:, :first], **_cut(given, slice(None, first)), **{name: stop})
        rest = _cut(given, slice(first, None))
        if rest["attention_mask"] is None and total - first > 1:  # a single query sees all
            rest["attention_mask"] = _causal(total - first, total, hidden_states.device)
        return whole(hidden_states[:, first:], **rest, **{name: _Join(stop.states) if cache is None else cache})

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def _last_layer(network: nn.Module) -> nn.Module | None:
    """The decoder's last layer, where it can be cut."""
    layers = getattr(network.get_decoder(), "layers", None)  # type: ignore[operator]
    if not layers or type(layers[-1]).__name__ not in KINDS:
        return None
    layer: nn.Module = layers[-1]
    recomputed = layer.training and getattr(layer, "gradient_checkpointing", False)
    return layer if layer.self_attn.config._attn_implementation == "sdpa" and not recomputed else None


def _cut(given: Mapping[str, Any], part: slice) -> dict[str, Any]:
    """Arguments of the layer for some of its positions, without the cache."""
    cut = {name: value for name, value in given.items() if name not in ("cache", "past_key_values")}
    cut["position_embeddings"] = tuple(one[..., part, :] for one in given["position_embeddings"])  # cosines, sines
    if given.get("position_ids") is not None:
        cut["position_ids"] = given["position_ids"][..., part]
    mask = given.get("attention_mask")  # (batch, 1, positions, positions)
    cut["attention_mask"] = None if mask is None else mask[:, :, part]
    return cut


def _causal(asking: int, total: int, device: torch.device) -> Tensor:
    """(1, 1, asking, total) bool: the last positions see all up to themselves."""
    return torch.ones(asking, total, dtype=torch.bool, device=device).tril(total - asking)[None, None]
