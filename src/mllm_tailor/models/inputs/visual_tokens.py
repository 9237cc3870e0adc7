"""Where the visual tokens of a tiled family lie: from tiles, thumbnail and cropped margins back to the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mllm_tailor.core.regions import FULL, Box, uncropped
from mllm_tailor.core.sample import Media
from mllm_tailor.models.inputs.internvl import shared_tiles
from mllm_tailor.models.inputs.tiling import tile_grid
from mllm_tailor.models.model import LoadedModel

WHOLE: Box = (0, 0, FULL, FULL)


@dataclass(frozen=True)
class TokenGrid:
    """The visual tokens of one image as cells over the part of the page that the model reads."""

    page: int  # index among the images of the sample
    first: int  # index of its first token among all visual tokens
    columns: int  # tiles
    rows: int
    side: int  # tokens along a tile; pixel shuffle keeps their order
    thumbnail: bool
    part: Box = WHOLE  # that the model reads, in thousandths of the page

    @property
    def count(self) -> int:
        """Visual tokens."""
        return (self.columns * self.rows + self.thumbnail) * self.side**2

    def spread(self, weights: Tensor) -> Tensor:
        """(n, rows * side, columns * side) from weights (n, all visual tokens); the thumbnail's are spread out."""
        own = weights[:, self.first : self.first + self.count].unflatten(1, (-1, self.side, self.side))
        tiles = own[:, : self.columns * self.rows].unflatten(1, (self.rows, self.columns))
        cells: Tensor = tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if self.thumbnail:
            large = own[:, -1] / (self.columns * self.rows)
            cells = cells + large.repeat_interleave(self.rows, 1).repeat_interleave(self.columns, 2)
        return cells

    def on_page(self, left: float, top: float, right: float, bottom: float) -> Box:
        """Thousandths of the page for a rectangle in cells."""
        x, y = 1 / (self.columns * self.side), 1 / (self.rows * self.side)
        x0, y0, x1, y1 = self.part
        width, height = x1 - x0, y1 - y0
        return x0 + width * left * x, y0 + height * top * y, x0 + width * right * x, y0 + height * bottom * y


def token_grids(pages: Sequence[Media], model: LoadedModel) -> list[TokenGrid]:
    """The grids of a sample's images, in order; none where it also has videos or recordings, or no tiles.

    Only sizes are read; no pixel is decoded unless margins are cropped.
    """
    if not model.family.tiled or any(media.kind != "image" for media in pages):
        return []
    return list(_grids(pages, model))


def _grids(pages: Sequence[Media], model: LoadedModel) -> Iterator[TokenGrid]:
    side, first = math.isqrt(model.processor.image_seq_length), 0
    tiles = shared_tiles(model.tiles, len(pages))
    for page, media in enumerate(pages):
        columns, rows = tile_grid(*model.image_size(media), tiles.min, tiles.max, model.tile_size)
        crop = model.crop_of(media)
        part = WHOLE if crop is None else uncropped(*crop)(WHOLE)
        grid = TokenGrid(page, first, columns, rows, side, tiles.thumbnail and columns * rows > 1, part)
        first += grid.count
        yield grid


def image_token_columns(ids: Tensor, model: LoadedModel) -> Tensor:
    """Indices of the visual tokens in the ids of a prompt."""
    return torch.nonzero(ids == model.model.config.image_token_id).flatten()
