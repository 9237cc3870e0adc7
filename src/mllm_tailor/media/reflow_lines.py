"""The printed lines of a page, found in its pixels: where each lies, how askew it is, and its words.

Ink is darkness relative to the paper around it. A page may lie askew or be bent: lines are taken to rise by a slope
that changes gradually from the page's top to its foot, and the slopes chosen are those that make the sums of ink along
lines sharpest (Postl 1986, for a single slope). Gaps in these sums separate the lines; gaps in a line's own columns of
ink separate its words. Nothing is learned, and a receipt costs less than 0.1 s of one core (benchmarks/reflow.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Levels = NDArray[np.float32]  # (height, width)
Sums = NDArray[np.float64]
Slopes = tuple[float, ...]  # px down per px to the right, at KNOTS heights from the top to the foot of the page

MOST_PIXELS = 6_000_000  # larger pages are reduced before they are read, for the sake of memory
LARGE = 30  # px: print whose lines are taller is reduced first
BLOCK = 16  # px a side of the squares in which the level of the paper is measured
BRIGHT = 0.9  # of their px are darker than the paper
STRIPS = 24  # columns of the page whose ink is summed separately to find the slopes
KNOTS = 7  # heights of the page at which the slope of lines is measured
TRIED = np.linspace(-0.12, 0.12, 97)  # slopes
DARKEST_SHADE = 0.3  # of the paper's level: what is darker all down a column is no shade
STIFF = 0.004  # how much sharper lines must become for a neighbouring slope to differ by one step
SPLIT = 1.7  # lines taller than this many usual ones are split where their ink is least
WORD_GAP = 0.4  # of the usual line's height: wider blanks separate words
PAPER = 0.85  # of the paper's level: what is darker is ink, shade or part of a photograph
MOST_DARK = 0.35  # of a page of print that is darker than PAPER; documents have 2 to 15 %, photographs 25 to 90
MOST_DARK_LINE = 0.6  # of the image of a single line, cut out closely
LINE_SHAPE = 2.5  # widths of such an image to its height, at least
TALL = 2.5  # usual lines: what is taller is no line


@dataclass(frozen=True)
class Word:
    """A run of ink; left and right in px of the straightened page."""

    left: int
    right: int


@dataclass(frozen=True)
class TextLine:
    """A printed line: top and bottom in px of the straightened page, and its words."""

    top: int
    bottom: int
    words: tuple[Word, ...]


@dataclass(frozen=True)
class PrintedPage:
    """A page as grey levels with the paper made white, its lines, their usual height (px), and their slopes.

    On the straightened page the lines are level: its point (x, y) is (x, y + slope(y) * (x - width / 2)) of `grey`.
    """

    grey: Image.Image
    lines: tuple[TextLine, ...]
    usual: float
    slopes: Slopes

    def slope(self, y: float) -> float:
        """The slope of a line at a height of the straightened page."""
        return float(np.interp(y, _knots(self.slopes, self.grey.height), self.slopes))

    @property
    def is_print(self) -> bool:
        """Whether it shows print: mostly paper, and lines mostly of one height. A photograph has neither."""
        heights = [line.bottom - line.top for line in self.lines]
        if sum(height for height in heights if height <= TALL * self.usual) <= sum(heights) / 2:
            return False
        dark = sum(self.grey.histogram()[: round(255 * PAPER)]) / (self.grey.width * self.grey.height)
        single = len(heights) == 1 and self.grey.width >= LINE_SHAPE * self.grey.height
        return dark <= (MOST_DARK_LINE if single else MOST_DARK)


def read_page(image: Image.Image) -> PrintedPage:
    """The lines of a page; those of large print are found after the page was reduced.

    Shade along a side of the page is in every row, so that all of them look like a single line: where no print is
    found, the page is read once more with the paper measured in each column.
    """
    grey = _shrunk(image.convert("L"), math.sqrt(MOST_PIXELS / (image.width * image.height)))
    page = _read_in_size(grey, shaded=False)
    if page.is_print:
        return page
    without_shade = _read_in_size(grey, shaded=True)
    return without_shade if without_shade.is_print else page


def _read_in_size(grey: Image.Image, *, shaded: bool) -> PrintedPage:
    page = _read(grey, shaded=shaded)
    if page.usual > LARGE:
        page = _read(_shrunk(grey, LARGE / page.usual), shaded=shaded)
    return page


def _shrunk(grey: Image.Image, factor: float) -> Image.Image:
    """The image at `factor` of its width and height; as it is where that is not below 1."""
    if factor >= 1:
        return grey
    size = (max(1, round(grey.width * factor)), max(1, round(grey.height * factor)))
    return grey.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _read(grey: Image.Image, *, shaded: bool) -> PrintedPage:
    pixels = np.asarray(grey)
    levels = np.minimum(np.float32(1), pixels / np.maximum(_paper(pixels), np.float32(1)))
    if shaded:
        levels = np.minimum(1, levels / np.maximum(np.percentile(levels, 80, axis=0), DARKEST_SHADE).astype(np.float32))
    ink = _without_strokes(np.clip((np.float32(PAPER) - levels) / np.float32(0.35), 0, 1))
    slopes = _slopes(ink)
    straight = _straightened(ink, slopes)
    bands, usual = _bands(_ink_of_rows(straight))
    lines = (TextLine(top, bottom, _words(straight[top:bottom], usual)) for top, bottom in bands)
    whitened = Image.fromarray((255 * levels).astype(np.uint8))
    return PrintedPage(whitened, tuple(line for line in lines if line.words), usual, slopes)


def _paper(pixels: NDArray[np.uint8]) -> Levels:
    """The paper's level at each px: what is bright in the squares around it."""
    height, width = pixels.shape
    rows, columns = -(-height // BLOCK), -(-width // BLOCK)
    padded = np.pad(pixels, ((0, rows * BLOCK - height), (0, columns * BLOCK - width)), mode="edge")
    squares = padded.reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2).reshape(rows, columns, BLOCK**2)
    place = BRIGHT * (BLOCK**2 - 1)
    ranks = [math.floor(place), math.ceil(place)]
    bright = np.partition(squares, ranks, axis=2)[..., ranks].mean(2, dtype=np.float32)
    near = np.lib.stride_tricks.sliding_window_view(np.pad(bright, 2, mode="edge"), (5, 5))
    paper = (near.max((2, 3)) + np.median(near, (2, 3))) / 2
    small = Image.fromarray(paper.astype(np.float32))
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def _without_strokes(ink: Levels) -> Levels:
    """Without upright strokes far taller than a line: frames, borders, the dark edge of a scan; and without rules."""
    dark = ink > 0.4
    upright = _runs(np.ascontiguousarray(dark.T), max(60, ink.shape[0] // 14)).T
    level = _runs(dark, max(80, ink.shape[1] // 6))
    return np.where(upright | level, np.float32(0), ink)


def _runs(dark: NDArray[np.bool_], long: int) -> NDArray[np.bool_]:
    """Which px lie in a level run of ink of at least `long` px, a tenth of it missing at most."""
    height, width = dark.shape
    result = np.zeros(dark.shape, bool)
    if width <= long:
        return result
    sums = np.zeros((height, width + 1), np.int32)
    np.cumsum(dark, axis=1, dtype=np.int32, out=sums[:, 1:])
    y, x = np.nonzero(sums[:, long:] - sums[:, :-long] >= 0.9 * long)
    for row in np.unique(y):
        edges = np.zeros(width + 1, np.int32)
        starts = x[y == row]
        edges[starts] += 1
        edges[starts + long] -= 1
        result[row] = np.cumsum(edges)[:width] > 0
    return result


def _strip_sums(ink: Levels) -> tuple[Sums, NDArray[np.int_]]:
    """The ink of every row in each of STRIPS columns of the page, and the edges of these columns."""
    edges = np.linspace(0, ink.shape[1], STRIPS + 1).astype(int)
    return np.stack([ink[:, left:right].sum(1, dtype=np.float32) for left, right in pairwise(edges)]), edges


def _slopes(ink: Levels) -> Slopes:
    """The slopes of lines at KNOTS heights of the page: those at which sums of ink along lines change most sharply.

    Each height is judged by the lines near it; neighbouring slopes are held together (Viterbi over the slopes tried).
    """
    height, width = ink.shape
    sums, edges = _strip_sums(ink)
    inked = sums[sums > 0.5]
    if not len(inked):
        return (0.0,) * KNOTS
    sums = np.minimum(sums, np.percentile(inked, 75))  # else rules outweigh print
    middles = (edges[:-1] + edges[1:]) / 2 - width / 2
    y = np.arange(height)
    near = np.maximum(0, 1 - np.abs(np.linspace(0, height, KNOTS)[:, None] - y) * (KNOTS - 1) / height / 1.5)
    lines = _sums_along(sums, middles)
    sharpness = near @ (np.diff(lines, axis=1, prepend=0).T ** 2)
    return _sharpest(sharpness)


def _sums_along(sums: Sums, middles: Sums) -> Sums:
    """The ink of lines of each slope tried (slopes, height), from that of the strips (strips, height).

    Between two rows it is interpolated; beyond the page there is none.
    """
    height = sums.shape[1]
    reach = math.ceil(np.abs(TRIED).max() * np.abs(middles).max()) + 1
    framed = np.pad(sums, ((0, 0), (reach, reach)))
    result = np.zeros((len(TRIED), height))
    for middle, strip in zip(middles, framed, strict=True):
        moved = np.lib.stride_tricks.sliding_window_view(strip, height)
        shifts = TRIED * middle + reach
        whole = np.floor(shifts).astype(int)
        share = (shifts - whole)[:, None]
        result += moved[whole] * (1 - share)
        result += moved[whole + 1] * share
    return result


def _sharpest(sharpness: Sums) -> Slopes:
    """The slope at each knot, from the sharpness (KNOTS, slopes tried): the best path from the first to the last."""
    gain = sharpness / (sharpness.max() * 0.1 + sharpness.max(1, keepdims=True))
    cost = STIFF * np.abs(TRIED[:, None] - TRIED[None]) / (TRIED[1] - TRIED[0])
    best = gain[0]
    chosen = []
    for knot in range(1, KNOTS):
        reached = best[None] - cost  # [to, from]
        chosen.append(reached.argmax(1))
        best = reached.max(1) + gain[knot]
    path = [int(best.argmax())]
    for back in reversed(chosen):
        path.append(int(back[path[-1]]))
    return tuple(float(TRIED[index]) for index in reversed(path))


def _knots(slopes: Slopes, height: int) -> Sums:
    """The heights at which slopes are known."""
    return np.linspace(0, height, len(slopes))


def _straightened(ink: Levels, slopes: Slopes) -> Levels:
    """The ink with every column moved up or down so that lines are level."""
    height, width = ink.shape
    if not any(slopes):
        return ink
    y, x = np.arange(height)[:, None], np.arange(width)[None]
    rise = np.interp(y, _knots(slopes, height), slopes)
    source = np.clip(np.rint(y + rise * (x - width / 2)), -1, height).astype(int)
    framed = np.pad(ink, ((1, 1), (0, 0)))  # nothing is printed above and below the page
    straight: Levels = framed.ravel().take((source + 1) * width + x)
    return straight


def _ink_of_rows(ink: Levels) -> Sums:
    """The ink of every row, in no strip of the page more than print has: handwriting across lines counts little."""
    sums, _ = _strip_sums(ink)
    inked = sums[sums > 0.5]
    result: Sums = (np.minimum(sums, np.percentile(inked, 60)) if len(inked) else sums).sum(0)
    return result


def _bands(sums: Sums) -> tuple[list[tuple[int, int]], float]:
    """Top and bottom of each line, from the ink of every row, and the usual height of a line."""
    smooth = np.convolve(sums, [0.25, 0.5, 0.25], mode="same")
    inked = smooth[smooth > 0.5]
    if not len(inked):
        return [], 0.0
    edges = np.flatnonzero(np.diff(np.pad((smooth > max(1.5, 0.06 * np.percentile(inked, 80))).astype(int), 1)))
    runs = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    heights = [bottom - top for top, bottom in runs if bottom - top >= 6]
    if not heights:
        return [], 0.0
    usual = float(np.percentile(heights, 40))
    parts = [part for run in runs for part in _split(smooth, *run, usual)]
    return _without_crumbs(parts, usual), usual


def _split(sums: Sums, top: int, bottom: int, usual: float) -> Iterator[tuple[int, int]]:
    """A run of ink split at its weakest row, if it is too tall for one line and that row is weak."""
    low, high = top + int(0.5 * usual), bottom - int(0.5 * usual)
    if bottom - top >= SPLIT * usual and high > low:
        middle = low + int(np.argmin(sums[low:high]))
        if sums[middle] < 0.45 * min(sums[top:middle].max(), sums[middle:bottom].max()):
            yield from _split(sums, top, middle, usual)
            yield from _split(sums, middle, bottom, usual)
            return
    yield top, bottom


def _without_crumbs(parts: list[tuple[int, int]], usual: float) -> list[tuple[int, int]]:
    """Low pieces join the line they nearly touch (dots, accents, underlines); alone, they are rules and left out."""
    lines: list[tuple[int, int]] = []
    pending: tuple[int, int] | None = None  # a crumb just above the next line
    for index, (start, bottom) in enumerate(parts):
        top = pending[0] if pending else start
        pending = None
        if bottom - top < 0.4 * usual:
            above = top - lines[-1][1] if lines else usual
            below = parts[index + 1][0] - bottom if index + 1 < len(parts) else usual
            if above <= below and above < 0.3 * usual and bottom - lines[-1][0] < 1.6 * usual:
                lines[-1] = (lines[-1][0], bottom)
                continue
            if below < 0.3 * usual and parts[index + 1][1] - top < 1.6 * usual:
                pending = (top, bottom)
                continue
            if bottom - top < 0.25 * usual:
                continue
        lines.append((top, bottom))
    return lines


def _words(ink: Levels, usual: float) -> tuple[Word, ...]:
    """Runs of inked columns with blanks between them that are wider than those between letters."""
    inked = np.flatnonzero(ink.sum(0) > 0.5)
    if not len(inked):
        return ()
    cuts = np.flatnonzero(np.diff(inked) > max(2.0, WORD_GAP * usual))
    starts, ends = np.append(0, cuts + 1), np.append(cuts, len(inked) - 1)
    return tuple(Word(int(inked[a]), int(inked[b]) + 1) for a, b in zip(starts, ends, strict=True))
