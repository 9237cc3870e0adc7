"""Phi-4-multimodal's images and recordings (arXiv 2503.01743, section 2.2) with Pillow, without torchvision.

An image is fitted into a grid of squares and padded with white; a mask marks the patches of the image. Another square
shows the whole image. Pillow resizes, as in the authors' code; transformers' class resizes tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import BatchFeature, Phi4MultimodalFeatureExtractor
from transformers.image_processing_base import ImageProcessingMixin

from mllm_tailor.models.inputs.tiling import tile_grid

SHORTEST = 10  # pixels of the short side after resizing; thinner images are refused


class DynamicCrops(ImageProcessingMixin):
    """Squares of `size` pixels, at most `dynamic_hd` per image."""

    model_input_names = ("image_pixel_values", "image_sizes", "image_attention_mask")

    def __init__(
        self,
        size: dict[str, int] | None = None,
        patch_size: int = 14,
        dynamic_hd: int = 36,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        **options: Any,
    ) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self.size = dict(size or {"height": 448, "width": 448})
        self.patch_size, self.dynamic_hd = patch_size, dynamic_hd
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def __call__(self, images: Any, **_: Any) -> BatchFeature:
        """The inputs of the model for all images of a sample.

        `image_pixel_values` (images, 1 + squares, 3, size, size), the whole image first; `image_attention_mask`
        (images, 1 + squares, patches, patches); `image_sizes` (images, 2), height and width of the grid in pixels;
        `num_img_tokens`, a list. Images of fewer squares are padded with empty squares.
        """
        flat = images if isinstance(images[0], Image.Image) else [image for row in images for image in row]
        read = [self.crop(image) for image in flat]
        most = max(len(squares) for squares, _, _ in read)
        pixels, masks = (
            torch.stack(
                [torch.cat([part, part.new_full((most - len(part), *part.shape[1:]), value)]) for part in parts]
            )
            for parts, value in (([squares for squares, _, _ in read], 0.0), ([mask for _, mask, _ in read], 1.0))
        )
        return BatchFeature(
            {
                "image_pixel_values": pixels,
                "image_attention_mask": masks,
                "image_sizes": torch.tensor([size for _, _, size in read]),
                "num_img_tokens": [count_tokens(mask, size, self.side) for _, mask, size in read],
            }
        )

    @property
    def side(self) -> int:
        """Pixels along the side of a square."""
        return self.size["height"]

    def crop(self, image: Image.Image) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Squares, masks and grid (height, width) in pixels of an image.

        Raises:
            ValueError: when the image is too long and thin to be resized.
        """
        image = image.convert("RGB")
        columns, rows = self.grid(image.width, image.height)
        width, height = columns * self.side, rows * self.side
        across, down = width / image.width, height / image.height
        inner = (width, int(image.height * across)) if across < down else (int(image.width * down), height)
        if min(inner) < SHORTEST:
            raise ValueError(f"{image.width} x {image.height} pixels are too long and thin")
        canvas = Image.new("RGB", (width, height), "white")
        canvas.paste(image.resize(inner, Image.Resampling.BILINEAR))
        values = torch.from_numpy(np.array(canvas)).permute(2, 0, 1).float() / 255
        values = (values - torch.tensor(self.image_mean)[:, None, None]) / torch.tensor(self.image_std)[:, None, None]
        whole = interpolate(values[None], size=(self.side, self.side), mode="bicubic", align_corners=False)
        mask = torch.ones(height // self.patch_size, width // self.patch_size)
        mask[mask.shape[0] - (height - inner[1]) // self.patch_size :] = 0
        mask[:, mask.shape[1] - (width - inner[0]) // self.patch_size :] = 0
        squares = torch.cat([whole, _squares(values, rows, columns)])
        shown = _squares(mask[None], rows, columns)[:, 0]
        return squares, torch.cat([torch.ones_like(shown[:1]), shown]), (height, width)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(columns, rows): as many squares as the image covers, or the nearest allowed shape."""
        columns, rows = math.ceil(width / self.side), math.ceil(height / self.side)
        if columns * rows > self.dynamic_hd:
            return tile_grid(width, height, 1, self.dynamic_hd, self.side)
        return columns, rows

    def to_dict(self) -> dict[str, Any]:
        """With the name of the class it replaces, so that a saved folder loads with that class."""
        return super().to_dict() | {"image_processor_type": "Phi4MultimodalImageProcessor"}


def _squares(values: Tensor, rows: int, columns: int) -> Tensor:
    """(channels, height, width) -> (rows x columns, channels, side, side), row by row."""
    cut = values.unflatten(2, (columns, -1)).unflatten(1, (rows, -1))
    squares: Tensor = cut.permute(1, 3, 0, 2, 4).flatten(0, 1)
    return squares


def shown_patches(mask: Tensor, size: Sequence[int] | Tensor, side: int) -> tuple[int, int]:
    """(rows, columns) of pooled patches that show the image; `mask` as above, of an image."""
    rows, columns = int(size[0]) // side, int(size[1]) // side
    pooled = mask[1 : 1 + rows * columns, ::2, ::2].unflatten(0, (rows, columns))
    return int(pooled[:, 0, :, 0].sum()), int(pooled[0, :, 0, :].sum())


def count_tokens(mask: Tensor, size: Sequence[int] | Tensor, side: int) -> int:
    """Tokens of an image: pooled patches of its squares and of the whole, line ends, and a separator between them."""
    rows, columns = shown_patches(mask, size, side)
    whole = math.ceil(mask.shape[-1] / 2)
    return rows * (columns + 1) + 1 + whole * (whole + 1)


class SpeechFrames(Phi4MultimodalFeatureExtractor):
    """The features of transformers, always with the mask of padded frames."""

    def __call__(self, raw_speech: Any, **options: Any) -> BatchFeature:  # type: ignore[override]
        """`audio_input_features` (recordings, frames, 80), `audio_attention_mask` (recordings, frames), sizes."""
        options.setdefault("sampling_rate", self.sampling_rate)
        features = super().__call__(raw_speech, **options)
        if "audio_attention_mask" not in features:
            features["audio_attention_mask"] = torch.ones(features["audio_input_features"].shape[:2], dtype=torch.bool)
        return features

    def to_dict(self) -> dict[str, Any]:
        """With the name of the class it replaces."""
        return super().to_dict() | {"feature_extractor_type": "Phi4MultimodalFeatureExtractor"}
