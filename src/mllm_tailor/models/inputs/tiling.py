"""Cut images into square tiles, bit for bit as in InternVL's training (dynamic resolution, arXiv 2404.16821).

Pillow resizes: the torchvision backend of transformers differs from the reference by up to 29 grey levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image


@lru_cache(maxsize=64)
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Every (columns, rows) with an allowed number of tiles, smallest first."""
    sides = range(1, max_tiles + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if min_tiles <= columns * rows <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def tile_grid(width: int, height: int, min_tiles: int, max_tiles: int, size: int) -> tuple[int, int]:
    """The (columns, rows) whose shape is nearest to an image of `width` x `height` pixels, tiles being `size` wide.

    Between grids of the same shape the larger wins if the image has more than half of its pixels.

    >>> tile_grid(463, 894, 1, 6, 448)
    (1, 2)
    """
    best, smallest = (1, 1), float("inf")
    for columns, rows in _grids(min_tiles, max_tiles):
        difference = abs(width / height - columns / rows)
        if difference < smallest:
            best, smallest = (columns, rows), difference
        elif difference == smallest and width * height > 0.5 * size * size * columns * rows:
            best = (columns, rows)
    return best


def count_tiles(width: int, height: int, min_tiles: int, max_tiles: int, size: int, *, thumbnail: bool) -> int:
    """Number of tiles that `tile_image` makes, from the size of the image in pixels."""
    columns, rows = tile_grid(width, height, min_tiles, max_tiles, size)
    return columns * rows + (thumbnail and columns * rows > 1)


def tile_image(
    image: Image.Image, min_tiles: int = 1, max_tiles: int = 12, size: int = 448, *, thumbnail: bool = True
) -> list[Image.Image]:
    """Square RGB tiles of `size` pixels: row by row, then the whole image again if there are several.

    The image is stretched to the grid with bicubic resampling, not padded.
    """
    image = image.convert("RGB")
    columns, rows = tile_grid(image.width, image.height, min_tiles, max_tiles, size)
    whole = image.resize((size * columns, size * rows), Image.Resampling.BICUBIC)
    corners = [(size * column, size * row) for row in range(rows) for column in range(columns)]
    tiles = [whole.crop((left, top, left + size, top + size)) for left, top in corners]
    if thumbnail and len(tiles) > 1:
        tiles.append(image.resize((size, size), Image.Resampling.BICUBIC))
    return tiles


@lru_cache(maxsize=8)
def _levels(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(3, 256) float32: the value of each grey level of each channel. Computed as torchvision does, in float32."""
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    return (levels - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


def tiles_to_tensor(tiles: Sequence[Image.Image], mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Float32 pixel values (tiles, 3, size, size), normalised by the statistics of each channel."""
    levels = _levels(tuple(mean), tuple(std))
    stacked = [np.stack([levels[channel][np.asarray(tile)[..., channel]] for channel in range(3)]) for tile in tiles]
    return torch.from_numpy(np.stack(stacked))
