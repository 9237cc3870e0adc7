"""Llama 3.2 Vision: samples with different numbers of pictures, or none, in one batch.

A token that stands before all pictures may see none of them. The native class lets it look at everything there is,
the empty pictures a batch is filled up with too, so that a sample would come out otherwise beside others than alone.
Here empty pictures are out of sight for samples with pictures, and give samples without any features of zero, which
layers without biases read nothing from: just what each of them gets alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def mask_empty_images(network: nn.Module) -> None:
    """Keep the pictures with `aspect_ratio_ids` 0, which no real one has, from being seen."""
    blank: dict[str, Tensor] = {}

    def note(_: nn.Module, __: Any, named: dict[str, Any]) -> None:
        blank["places"] = named["aspect_ratio_ids"] == 0  # (batch, pictures)

    def hide(_: nn.Module, places: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if named.get("cross_attention_states") is None or not blank["places"].any():
            return places, named
        return places, named | _hidden(named["cross_attention_states"], named["cross_attention_mask"], blank["places"])

    network.vision_model.register_forward_pre_hook(note, with_kwargs=True)
    network.language_model.register_forward_pre_hook(hide, with_kwargs=True)


def _hidden(states: Tensor, mask: Tensor, blank: Tensor) -> dict[str, Tensor]:
    """Features (batch x pictures x tiles, places, width) and the mask over them (batch, 1, tokens, all places)."""
    size, pictures = blank.shape
    blank = blank.to(states.device)
    seen = states.reshape(size, pictures, -1).masked_fill(blank[:, :, None], 0.0)
    among_others = blank & ~blank.all(dim=1, keepdim=True)
    masked = mask.reshape(*mask.shape[:3], pictures, -1)
    masked = masked.masked_fill(among_others[:, None, None, :, None], torch.finfo(mask.dtype).min)
    return {"cross_attention_states": seen.reshape(states.shape), "cross_attention_mask": masked.reshape(mask.shape)}
