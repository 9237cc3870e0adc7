"""Small changes of training pictures, a pure function of (seed, epoch, sample): a resumed run sees the same ones."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace

import numpy as np
from PIL import Image, ImageEnhance

from mllm_tailor.core.media import open_image
from mllm_tailor.core.sample import Media, Sample

TURN = 2.0  # degrees, either way
SCALE = 0.05  # share of the size
LIGHT = 0.2  # share of brightness and contrast


def augment_sample(sample: Sample, seed: int, epoch: int) -> Sample:
    """The sample with each of its pictures turned, scaled and lit a little differently."""
    media = tuple(
        _changed(item, _generator(seed, epoch, f"{sample.id}:{place}")) if item.kind == "image" else item
        for place, item in enumerate(sample.media)
    )
    return replace(sample, media=media)


def augment_image(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """One picture (RGB); corners laid bare by the turn take the colour of the picture's own corner."""
    angle, scale, brightness, contrast = generator.uniform(-1, 1, size=4)
    image = image.rotate(TURN * angle, Image.Resampling.BICUBIC, expand=True, fillcolor=image.getpixel((0, 0)))
    size = tuple(max(2, round(side * (1 + SCALE * scale))) for side in image.size)
    image = image.resize(size, Image.Resampling.BICUBIC)
    image = ImageEnhance.Brightness(image).enhance(1 + LIGHT * brightness)
    return ImageEnhance.Contrast(image).enhance(1 + LIGHT * contrast)


def _generator(seed: int, epoch: int, name: str) -> np.random.Generator:
    entropy = int.from_bytes(hashlib.sha256(f"{seed}:{epoch}:{name}".encode()).digest()[:16])
    return np.random.Generator(np.random.PCG64(entropy))


def _changed(media: Media, generator: np.random.Generator) -> Media:
    stream = io.BytesIO()
    augment_image(open_image(media), generator).save(stream, "PNG", compress_level=1)
    return Media(media.kind, data=stream.getvalue())
