"""Phi-4-multimodal: every sample of a batch reads its own pictures and recordings, as it does alone.

The native class looks at the batch as a whole: one sample with a picture makes all recordings go through the layers
meant for recordings beside pictures, and shorter recordings are read with what fills them up.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mllm_tailor.models.inputs.phi4 import count_tokens

PICTURES = ("image_pixel_values", "image_attention_mask", "image_sizes")
SOUNDS = ("audio_input_features", "audio_attention_mask", "audio_embed_sizes")


def encode_media_per_sample(model: Any) -> None:
    """Set an opened Phi-4-multimodal right, and let it tell the features of its pictures."""
    reader = model.model.embed_tokens_extend
    reader.forward = types.MethodType(_each_on_its_own, reader)
    model.get_image_features = types.MethodType(_image_features, model)


def _each_on_its_own(self: nn.Module, input_ids: Tensor, inputs_embeds: Tensor, **media: Any) -> Tensor:
    pictures = {name: media[name] for name in PICTURES if media.get(name) is not None}
    sounds = {name: media[name] for name in SOUNDS if media.get(name) is not None}
    next_picture = next_sound = 0
    rows = []
    for ids, embeds in zip(input_ids, inputs_embeds, strict=True):
        places = int((ids == self.image_token_id).sum())
        own, next_picture = _own_pictures(pictures, next_picture, places, self.image_embed.crop_size)
        heard, next_sound = _own_sounds(sounds, next_sound, int((ids == self.audio_token_id).sum()))
        rows.append(type(self).forward(self, ids[None], embeds[None], **own, **heard))
    return torch.cat(rows)


def _own_pictures(pictures: Mapping[str, Tensor], start: int, places: int, side: int) -> tuple[dict[str, Tensor], int]:
    """Those that fill a sample's places, without empty squares of the batch, and where the next sample's begin."""
    end, left, squares = start, places, 0
    while left > 0:
        size = pictures["image_sizes"][end]
        left -= count_tokens(pictures["image_attention_mask"][end], size, side)
        squares, end = max(squares, 1 + int(size[0]) // side * (int(size[1]) // side)), end + 1
    if left:
        raise ValueError(f"{places} places do not hold a whole number of pictures")
    if end == start:
        return {}, start
    sizes = {"image_sizes": pictures["image_sizes"][start:end]}
    return {name: pictures[name][start:end, :squares] for name in PICTURES[:2]} | sizes, end


def _own_sounds(sounds: Mapping[str, Tensor], start: int, places: int) -> tuple[dict[str, Tensor], int]:
    end, left = start, places
    while left > 0:
        left, end = left - int(sounds["audio_embed_sizes"][end]), end + 1
    if left:
        raise ValueError(f"{places} places do not hold a whole number of recordings")
    if end == start:
        return {}, start
    frames = int(sounds["audio_attention_mask"][start:end].sum(dim=1).max())
    own = {name: sounds[name][start:end, :frames] for name in SOUNDS[:2]}
    return own | {"audio_embed_sizes": sounds["audio_embed_sizes"][start:end]}, end


def _image_features(self: Any, image_pixel_values: Tensor, image_attention_mask: Tensor) -> dict[str, Tensor]:
    """`pooler_output` (squares of all pictures, places, width): as the language model reads them."""
    reader = self.model.embed_tokens_extend.image_embed
    seen = reader.get_img_features(image_pixel_values.flatten(0, 1), image_attention_mask.flatten(0, 1).bool())
    found = reader.img_projection_down(nn.functional.gelu(reader.img_projection_up(seen)))
    return {"pooler_output": found}
