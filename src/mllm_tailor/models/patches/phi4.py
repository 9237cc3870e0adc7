"""Phi-4-multimodal: encode the media of every sample in a batch as if it were alone.

The native class decides once per batch: a single sample with an image sends all recordings through the layers for
recordings beside images, and shorter recordings are encoded together with their padding.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mllm_tailor.core.handle import Handle
from mllm_tailor.models.inputs.phi4 import count_tokens

IMAGE_INPUTS = ("image_pixel_values", "image_attention_mask", "image_sizes")
AUDIO_INPUTS = ("audio_input_features", "audio_attention_mask", "audio_embed_sizes")


def install(model: Any) -> Handle:
    """Encode media per sample, and give the model `get_image_features`, which the native class lacks."""
    encoder = model.model.embed_tokens_extend
    encoder.forward = types.MethodType(_encode_per_sample, encoder)
    model.get_image_features = types.MethodType(_image_features, model)

    def undo() -> None:
        del encoder.forward
        del model.get_image_features

    return Handle(undo)


def _encode_per_sample(self: Any, input_ids: Tensor, inputs_embeds: Tensor, **media: Any) -> Tensor:
    images = {name: media[name] for name in IMAGE_INPUTS if media.get(name) is not None}
    audios = {name: media[name] for name in AUDIO_INPUTS if media.get(name) is not None}
    image_index = audio_index = 0
    rows = []
    for ids, embeds in zip(input_ids, inputs_embeds, strict=True):
        image_tokens, audio_tokens = int((ids == self.image_token_id).sum()), int((ids == self.audio_token_id).sum())
        own_images, image_index = _take_images(images, image_index, image_tokens, self.image_embed.crop_size)
        own_audios, audio_index = _take_audios(audios, audio_index, audio_tokens)
        rows.append(type(self).forward(self, ids[None], embeds[None], **own_images, **own_audios))
    return torch.cat(rows)


def _take_images(images: Mapping[str, Tensor], start: int, tokens: int, side: int) -> tuple[dict[str, Tensor], int]:
    """Inputs of the images from `start` on that fill `tokens` tokens, without padding crops, and the next index."""
    end, left, crops = start, tokens, 0
    while left > 0:
        size = images["image_sizes"][end]
        left -= count_tokens(images["image_attention_mask"][end], size, side)
        crops, end = max(crops, 1 + int(size[0]) // side * (int(size[1]) // side)), end + 1
    if left:
        raise ValueError(f"{tokens} image tokens do not hold a whole number of images")
    if end == start:
        return {}, start
    sizes = {"image_sizes": images["image_sizes"][start:end]}
    return {name: images[name][start:end, :crops] for name in IMAGE_INPUTS[:2]} | sizes, end


def _take_audios(audios: Mapping[str, Tensor], start: int, tokens: int) -> tuple[dict[str, Tensor], int]:
    """The same of recordings, without padding frames."""
    end, left = start, tokens
    while left > 0:
        left, end = left - int(audios["audio_embed_sizes"][end]), end + 1
    if left:
        raise ValueError(f"{tokens} audio tokens do not hold a whole number of recordings")
    if end == start:
        return {}, start
    frames = int(audios["audio_attention_mask"][start:end].sum(dim=1).max())
    own = {name: audios[name][start:end, :frames] for name in AUDIO_INPUTS[:2]}
    return own | {"audio_embed_sizes": audios["audio_embed_sizes"][start:end]}, end


def _image_features(self: Any, image_pixel_values: Tensor, image_attention_mask: Tensor) -> dict[str, Tensor]:
    """`pooler_output` (crops of all images, patches, width): the embeddings that the language model receives."""
    encoder = self.model.embed_tokens_extend.image_embed
    patches = encoder.get_img_features(image_pixel_values.flatten(0, 1), image_attention_mask.flatten(0, 1).bool())
    return {"pooler_output": encoder.img_projection_down(nn.functional.gelu(encoder.img_projection_up(patches)))}
