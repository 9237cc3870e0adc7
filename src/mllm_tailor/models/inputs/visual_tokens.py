"""Where the visual tokens of a tiled family lie: from tiles, thumbnail, cropped margins and moved lines to the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mllm_tailor.core.regions import FULL, Box, PageView
from mllm_tailor.core.sample import Media
from mllm_tailor.models.inputs.internvl import tiles_of
from mllm_tailor.models.inputs.tiling import tile_grid
from mllm_tailor.models.model import LoadedModel


@dataclass(frozen=True)
class TokenGrid:
    """The visual tokens of one image as cells over the part of the page that the model reads."""

    page: int  # index among the images of the sample
    first: int  # index of its first token among all visual tokens
    columns: int  # tiles
    rows: int
    side: int  # tokens along a tile; pixel shuffle keeps their order
    thumbnail: bool
    view: PageView | None = None  # what the model reads of the page; None: the whole page

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

    def on_page(self, left: float, top: float, right: float, bottom: float) -> list[Box]:
        """Boxes in thousandths of the page for a rectangle in cells; several where lines were moved, or none."""
        x, y = FULL / (self.columns * self.side), FULL / (self.rows * self.side)
        box = left * x, top * y, right * x, bottom * y
        return self.view.to_page(box) if self.view else [box]

    @property
    def shows_lines(self) -> bool:
        """Whether boxes on the page are already those of printed lines."""
        return self.view is not None and self.view.straight_lines


def token_grids(pages: Sequence[Media], model: LoadedModel) -> list[TokenGrid]:
    """The grids of a sample's images, in order; none where it also has videos or recordings, or no tiles.

    Only sizes are read; no pixel is decoded unless margins are cropped or lines are reflowed.
    """
    if not model.family.tiled or any(media.kind != "image" for media in pages):
        return []
    return list(_grids(pages, model))


def _grids(pages: Sequence[Media], model: LoadedModel) -> Iterator[TokenGrid]:
    side, first = math.isqrt(model.processor.image_seq_length), 0
    for page, (media, tiles) in enumerate(tiles_of(pages, model)):
        columns, rows = tile_grid(*model.image_size(media, tiles), tiles.min, tiles.max, model.tile_size)
        thumbnail = tiles.thumbnail and columns * rows > 1
        grid = TokenGrid(page, first, columns, rows, side, thumbnail, model.view(media, tiles))
        first += grid.count
        yield grid


def image_token_columns(ids: Tensor, model: LoadedModel) -> Tensor:
    """Indices of the visual tokens in the ids of a prompt."""
    return torch.nonzero(ids == model.model.config.image_token_id).flatten()
