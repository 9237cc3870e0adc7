"""A page's printed lines set one after the other at one height, like the words of a paragraph, on square tiles.

Each line (`reflow_lines` finds them) is straightened and scaled to one height. A black mark precedes it, and rows wrap
at the width of a tile. A row is as high as a visual token, so each token shows about two characters of a single line,
and the order of the tokens is the order of the text. Lines are drawn with CELL px a token; models whose tokens are
smaller see the drawing reduced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

import numpy as np
from PIL import Image

from mllm_tailor.core.regions import FULL, Box
from mllm_tailor.core.sample import Media
from mllm_tailor.media.open import FileStamps, file_stamps, open_image
from mllm_tailor.media.reflow_lines import PrintedPage, TextLine, read_page

CELL = 28  # px a side of a visual token, and the height of a row, as drawn
HEIGHT = 22  # px of a line of usual print, from the capitals' top to the foot of what is printed
TALLEST = 1.3  # of HEIGHT: larger print is shrunk to it
MARK = 14  # px that the mark before a line takes
STROKE = (4, 8)  # px: left and right of the black part of a mark
GAP = (5.0, 22.0)  # px: the least and the widest blank between two words
LEVELS = 255 - np.arange(256, dtype=np.float32)  # darkness of the grey levels
DARKEST, FAINTEST = 230, 40  # of 255: the print's darkness as drawn, and the least darkness that is taken for print
RECENT = 4  # images whose lines are kept: an image is measured, read and mapped back to its page in close succession
Mark = tuple[int, float]  # row, left edge in px


@dataclass(frozen=True)
class Setting:
    """Where the first line begins (px as drawn), and the height of usual print as a share of HEIGHT."""

    indent: float = 0.0
    height: float = 1.0


# What `media.framing.FRAMINGS` is to an image that stays as it is: settings that move every character to another place
# of its visual token, by index.
SETTINGS = (
    Setting(),
    Setting(10, 0.96),
    Setting(19, 1.04),
    Setting(5, 0.93),
    Setting(14),
    Setting(23, 0.98),
    Setting(8, 1.06),
    Setting(16, 0.9),
)


@dataclass(frozen=True)
class TileSpec:
    """Tiles of a model: visual tokens along a side, its length in px, and how many may be filled with an image."""

    tokens: int
    size: int
    fewest: int
    most: int


@dataclass(frozen=True)
class Piece:
    """A part of a line and where it is set: row, left edge in px as drawn, px as drawn for a px of the page."""

    line: TextLine
    left: float
    right: float
    row: int
    x: float
    scale: float


@dataclass(frozen=True)
class Layout:
    """Where every word and every mark is set, on rows of so many cells."""

    pieces: tuple[Piece, ...]
    marks: tuple[Mark, ...]
    rows: int
    columns: int

    @property
    def width(self) -> int:
        """Px of a row, and of a tile's side, as drawn."""
        return self.columns * CELL

    @property
    def tiles(self) -> int:
        """Tiles that hold all rows."""
        return -(-self.rows // self.columns)


def set_lines(page: PrintedPage, columns: int, setting: Setting = SETTINGS[0]) -> Layout:
    """Set the lines of a page on rows of `columns` cells; only a word wider than a row is cut."""
    width = columns * CELL
    pieces: list[Piece] = []
    marks: list[Mark] = []
    row, x = 0, setting.indent
    for line in page.lines:
        scale = setting.height * HEIGHT / page.usual * min(1.0, TALLEST * page.usual / (line.bottom - line.top))
        if x and x + MARK + CELL > width:
            row, x = row + 1, 0.0
        marks.append((row, x))
        x += MARK
        before = None
        for word in line.words:
            if before is not None:
                x += min(max((word.left - before) * scale, GAP[0]), GAP[1])
            left, before = float(word.left), word.right
            if x and x + (word.right - left) * scale > width >= (word.right - left) * scale:
                row, x = row + 1, 0.0
            while left < word.right:
                if x > width - 1:
                    row, x = row + 1, 0.0
                right = min(float(word.right), left + (width - x) / scale)
                pieces.append(Piece(line, left, right, row, x, scale))
                left, x = right, x + (right - left) * scale
    return Layout(tuple(pieces), tuple(marks), row + 1, columns)


def draw_lines(page: PrintedPage, layout: Layout, tiles: int | None = None) -> Image.Image:
    """The lines as a grey image of whole tiles, one above the other; `tiles` of them, or as many as the rows fill."""
    result = Image.new("L", (layout.width, (tiles or layout.tiles) * layout.width), 255)
    for row, x in layout.marks:
        result.paste(0, (round(x) + STROKE[0], row * CELL, round(x) + STROKE[1], (row + 1) * CELL))
    for piece in layout.pieces:
        _draw(result, page, piece)
    return result


def _draw(result: Image.Image, page: PrintedPage, piece: Piece) -> None:
    """One piece, level, at its scale, in the middle of its row, and as dark as any print."""
    line = piece.line
    top, bottom = line.top - 1, line.bottom + 1
    wide, tall = (piece.right - piece.left) * piece.scale, (bottom - top) * piece.scale
    size = (max(1, round(wide)), min(CELL, round(tall)))
    slope = page.slope((top + bottom) / 2)
    step = 1 / piece.scale
    y = top + slope * (piece.left - page.grey.width / 2)
    part = page.grey.transform(
        size,
        Image.Transform.AFFINE,
        (step, 0, piece.left, slope * step, (bottom - top) / size[1], y),
        Image.Resampling.BICUBIC,
        fillcolor=255,
    )
    factor = DARKEST / max(float(FAINTEST), _dark_level(part))
    darkened = part.point((255 - np.minimum(255, LEVELS * np.float32(factor))).astype(np.uint8).tolist())
    result.paste(darkened, (round(piece.x), piece.row * CELL + (CELL - size[1]) // 2))


def _dark_level(grey: Image.Image) -> float:
    """How dark print is: the 97th percentile of darkness, interpolated between grey levels."""
    counts = np.cumsum(grey.histogram()[::-1])  # pixels at most so dark
    position = 0.97 * (counts[-1] - 1)
    below, above = np.searchsorted(counts, (int(position), min(int(position) + 1, counts[-1] - 1)), side="right")
    return float(np.float32(below + (above - below) * (position % 1)))


@dataclass(frozen=True)
class Reflowed:
    """A page whose lines are set on tiles of `size` px, as the model sees them, and the way back to the page."""

    page: PrintedPage
    layout: Layout
    size: int
    tiles: int
    straight_lines = True

    def image(self) -> Image.Image:
        """RGB, `size` x `tiles * size` px."""
        drawn = draw_lines(self.page, self.layout, self.tiles)
        whole, rest = divmod(self.layout.width, self.size)
        if whole and not rest:
            return drawn.reduce(whole).convert("RGB")  # the mean of whole squares of px, as in training
        kind = Image.Resampling.BOX if whole else Image.Resampling.BICUBIC
        return drawn.resize((self.size, self.tiles * self.size), kind).convert("RGB")

    def to_page(self, box: Box) -> list[Box]:
        """The parts of printed lines that a box of the image shows, both in thousandths; none where it shows none."""
        pixels = self.layout.width / FULL
        left, right = box[0] * pixels, box[2] * pixels
        shown = [
            (piece, max(left, piece.x), min(right, piece.x + (piece.right - piece.left) * piece.scale))
            for row in _rows_in(box[1] * pixels * self.tiles / CELL, box[3] * pixels * self.tiles / CELL)
            for piece in self.layout.pieces
            if piece.row == row
        ]
        boxes = [
            (piece, piece.left + (start - piece.x) / piece.scale, piece.left + (end - piece.x) / piece.scale)
            for piece, start, end in shown
            if start < end
        ]
        return [self._on_page(line, list(parts)) for line, parts in groupby(boxes, lambda part: part[0].line)]

    def _on_page(self, line: TextLine, parts: Sequence[tuple[Piece, float, float]]) -> Box:
        """Thousandths of the page for the parts (piece, left, right) of a line."""
        width, height = self.page.grey.size
        left, right = min(part[1] for part in parts), max(part[2] for part in parts)
        slope = self.page.slope((line.top + line.bottom) / 2)
        rises = [slope * (x - width / 2) for x in (left, right)]
        top, bottom = line.top + min(rises), line.bottom + max(rises)
        return left * FULL / width, top * FULL / height, right * FULL / width, bottom * FULL / height


def _rows_in(top: float, bottom: float) -> Iterator[int]:
    """The rows of which more than half lies between two heights (in rows); else the one of which most does."""
    rows = range(max(0, math.floor(top)), math.ceil(bottom))
    shares = [min(bottom, row + 1) - max(top, row) for row in rows]
    yield from (row for row, share in zip(rows, shares, strict=True) if share > 0.5 or share == max(shares) <= 0.5)


def reflow(image: Image.Image, tiles: TileSpec, framing: int = 0) -> Reflowed | None:
    """The printed lines of an image set on tiles as SETTINGS has it for `framing`; None where it shows no print."""
    page = read_page(image)
    return set_on_tiles(page, tiles, SETTINGS[framing]) if page.is_print else None


def set_on_tiles(page: PrintedPage, tiles: TileSpec, setting: Setting = SETTINGS[0]) -> Reflowed:
    """The lines of a page on tiles; those that do not fit are set smaller, on wider tiles that are then shrunk."""
    columns = tiles.tokens
    layout = set_lines(page, columns, setting)
    if layout.tiles > tiles.most:
        columns = max(columns, math.floor(0.9 * math.sqrt(layout.rows * columns / tiles.most)))
    while layout.tiles > tiles.most:
        columns += 1
        layout = set_lines(page, columns, setting)
    return Reflowed(page, layout, tiles.size, max(tiles.fewest, layout.tiles))


def reflow_media(media: Media, tiles: TileSpec) -> Reflowed | None:
    """`reflow` of an image file or inline image, in its framing.

    Raises:
        DataError: naming the file, as `open_image` does.
    """
    return _recent(media, file_stamps(media), tiles)


def count_reflowed_tiles(media: Media, tiles: TileSpec) -> int:
    """How many tiles `reflow` fills with an image; 0 where it shows no print. That of a file is found once.

    Raises:
        DataError: naming the file, as `open_image` does.
    """
    if media.data is not None:  # a cache of inline images would hold all their bytes
        result = reflow_media(media, tiles)
        return result.tiles if result else 0
    return _tiles_of_file(media, file_stamps(media), tiles)


@lru_cache(maxsize=RECENT)
def _recent(media: Media, stamps: FileStamps, tiles: TileSpec) -> Reflowed | None:
    page = _recent_page(replace(media, framing=0), stamps)
    return set_on_tiles(page, tiles, SETTINGS[media.framing]) if page.is_print else None


@lru_cache(maxsize=RECENT)
def _recent_page(media: Media, _: FileStamps) -> PrintedPage:
    return read_page(open_image(media))


@lru_cache(maxsize=1 << 16)
def _tiles_of_file(media: Media, stamps: FileStamps, tiles: TileSpec) -> int:
    result = _recent(media, stamps, tiles)
    return result.tiles if result else 0
