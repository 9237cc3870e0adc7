"""Llama 3.2 Vision: batches of samples with different numbers of images, or none.

A token before all images may attend to none of them. The native class then lets it attend to everything, including
the empty images that fill up a batch, so a sample's output would depend on the samples beside it. This patch masks
empty images for samples with images, and gives samples without images features of zero, from which layers without
biases compute zero: exactly what each sample gets when encoded alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mllm_tailor.core.handle import Handle


def install(network: nn.Module) -> Handle:
    """Hide images with `aspect_ratio_ids` 0, which no real image has, from cross-attention."""
    empty: dict[str, Tensor] = {}

    def find_empty(_: nn.Module, __: Any, named: dict[str, Any]) -> None:
        empty["images"] = named["aspect_ratio_ids"] == 0  # (batch, images)

    def hide(_: nn.Module, positional: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if named.get("cross_attention_states") is None:
            return positional, named
        states, mask = named["cross_attention_states"], named["cross_attention_mask"]
        return positional, named | _masked(states, mask, empty["images"])

    vision: nn.Module = network.vision_model  # type: ignore[assignment]
    language: nn.Module = network.language_model  # type: ignore[assignment]
    hooks = (
        vision.register_forward_pre_hook(find_empty, with_kwargs=True),
        language.register_forward_pre_hook(hide, with_kwargs=True),
    )

    def undo() -> None:
        for hook in hooks:
            hook.remove()

    return Handle(undo)


def _masked(states: Tensor, mask: Tensor, empty: Tensor) -> dict[str, Tensor]:
    """Features (batch x images x tiles, patches, width) and their mask (batch, 1, tokens, all patches), masked."""
    size, images = empty.shape
    empty = empty.to(states.device)
    features = states.reshape(size, images, -1).masked_fill(empty[:, :, None], 0.0)
    beside_others = empty & ~empty.all(dim=1, keepdim=True)
    masked = mask.reshape(*mask.shape[:3], images, -1)
    masked = masked.masked_fill(beside_others[:, None, None, :, None], torch.finfo(mask.dtype).min)
    features, masked = features.reshape(states.shape), masked.reshape(mask.shape)
    return {"cross_attention_states": features, "cross_attention_mask": masked}
