"""Llama 3.2 Vision: prompts of text alone beside prompts with images, in one batch with one KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from mllm_tailor.models.encoded import Encoded
from mllm_tailor.models.model import LoadedModel

CROSS_MASK = "cross_attention_mask"


def with_empty_image(encoded: Encoded, model: LoadedModel) -> Encoded:
    """The prompt with an image that no token attends to, so that its cross-attention layers have keys as well.

    `patches.mllama` gives such images features of zero, which add nothing: the same output as without the image.
    """
    if CROSS_MASK in encoded.media:
        return encoded
    settings = model.processor.image_processor
    tiles, height, width = settings.max_image_tiles, settings.size["height"], settings.size["width"]
    empty = {
        "pixel_values": torch.zeros(1, 1, tiles, 3, height, width),
        "aspect_ratio_ids": torch.zeros(1, 1, dtype=torch.int64),
        "aspect_ratio_mask": torch.zeros(1, 1, tiles, dtype=torch.int64),
        CROSS_MASK: torch.zeros(1, encoded.length, 1, tiles, dtype=torch.int64),
    }
    return replace(encoded, media={**encoded.media, **empty})


def last_cross_masks(prompts: Sequence[Encoded], model: LoadedModel, images: int) -> Tensor:
    """(prompts, 1, images, tiles): what the last token of each prompt attends to; prompts may have fewer images."""
    masks = [with_empty_image(prompt, model).media[CROSS_MASK][:, -1:] for prompt in prompts]
    return torch.cat([pad(mask, (0, 0, 0, images - mask.shape[2])) for mask in masks])
