"""Printed lines of a page image, straightened, and the image that shows them one after the other at one height.

Ink is darkness relative to the paper around it. A page may lie askew or be bent: lines are taken to rise by a slope
that changes gradually from the page's top to its foot, and the slopes are those that make the sums of ink along lines
sharpest (Postl 1986, for one slope). Gaps in these sums part the lines; gaps in a line's own columns of ink
part its words. Nothing is learned, and a page costs about 0.1 s of one core.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from pretraining import flow

LARGE = 30  # px: print whose lines are taller is reduced first
BLOCK = 16  # px a side of the squares in which paper is measured
STRIPS = 24  # columns of the page whose ink is summed apart to find the slopes
KNOTS = 7  # heights of the page at which the slope of lines is measured
TRIED = np.linspace(-0.12, 0.12, 97)
STIFF = 0.004  # how much sharper lines must become for a neighbouring slope to differ by one step
SPLIT = 1.7  # lines taller than this many usual ones are parted where their ink is least
WORD_GAP = 0.4  # of the usual line's height: wider blanks part words

Slopes = tuple[float, ...]  # px down per px to the right, at KNOTS heights from the top to the foot of the page


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
    """A page as grey levels with the paper made white, its lines, their usual height, and how they lie."""

    grey: Image.Image
    lines: tuple[TextLine, ...]
    usual: float
    slopes: Slopes

    def slope(self, y: float) -> float:
        return float(_along(self.slopes, y, self.grey.height))


def read_page(image: Image.Image) -> PrintedPage:
    """The lines of a page; those of large print are found after it was reduced."""
    page = _read(image.convert("L"))
    if page.usual > LARGE:
        factor = LARGE / page.usual
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        page = _read(image.convert("L").resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0))
    return page


def _read(grey: Image.Image) -> PrintedPage:
    levels = np.asarray(grey, np.float32)
    levels = np.minimum(1.0, levels / np.maximum(_paper(levels), 1.0))
    ink = _without_strokes(np.clip((0.85 - levels) / 0.35, 0, 1))
    slopes = _slopes(ink)
    straight = _straightened(ink, slopes)
    bands, usual = _bands(_ink_of_rows(straight))
    lines = (TextLine(top, bottom, _words(straight[top:bottom], usual)) for top, bottom in bands)
    whitened = Image.fromarray((255 * levels).astype(np.uint8))
    return PrintedPage(whitened, tuple(line for line in lines if line.words), usual, slopes)


def _paper(levels: np.ndarray) -> np.ndarray:
    """The paper's level at each px: what is bright in the squares around it."""
    height, width = levels.shape
    rows, columns = -(-height // BLOCK), -(-width // BLOCK)
    padded = np.pad(levels, ((0, rows * BLOCK - height), (0, columns * BLOCK - width)), mode="edge")
    bright = np.percentile(padded.reshape(rows, BLOCK, columns, BLOCK), 90, axis=(1, 3))
    near = np.lib.stride_tricks.sliding_window_view(np.pad(bright, 2, mode="edge"), (5, 5))
    paper = (near.max((2, 3)) + np.median(near, (2, 3))) / 2
    small = Image.fromarray(paper.astype(np.float32))
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def _without_strokes(ink: np.ndarray) -> np.ndarray:
    """Without upright strokes far taller than a line: frames, borders, the dark edge of a scan; and without rules."""
    upright = _runs(ink, max(60, ink.shape[0] // 14))
    level = _runs(ink.T, max(80, ink.shape[1] // 6)).T
    return np.where(upright | level, 0, ink)


def _runs(ink: np.ndarray, tall: int) -> np.ndarray:
    """Which px lie in an upright run of ink of at least `tall` px, a tenth of it missing at most."""
    height, width = ink.shape
    if height <= tall:
        return np.zeros(ink.shape, bool)
    sums = np.cumsum(np.pad(ink > 0.4, ((1, 0), (0, 0))), axis=0)
    y, x = np.nonzero(sums[tall:] - sums[:-tall] >= 0.9 * tall)
    edges = np.zeros((height + 1, width), np.int32)
    np.add.at(edges, (y, x), 1)
    np.add.at(edges, (np.minimum(y + tall, height), x), -1)
    return np.cumsum(edges, axis=0)[:height] > 0


def _slopes(ink: np.ndarray) -> Slopes:
    """The slopes of lines at KNOTS heights of the page: those at which sums of ink along lines change most sharply.

    Each height is judged by the lines near it; neighbouring slopes hold together (Viterbi over the slopes tried).
    """
    height, width = ink.shape
    edges = np.linspace(0, width, STRIPS + 1).astype(int)
    sums = np.stack([ink[:, left:right].sum(1) for left, right in pairwise(edges)])
    inked = sums[sums > 0.5]
    if not len(inked):
        return (0.0,) * KNOTS
    sums = np.minimum(sums, np.percentile(inked, 75))  # else rules outweigh print
    middles = (edges[:-1] + edges[1:]) / 2 - width / 2
    y = np.arange(height)
    near = np.maximum(0, 1 - np.abs(np.linspace(0, height, KNOTS)[:, None] - y) * (KNOTS - 1) / height / 1.5)
    sharpness = np.empty((KNOTS, len(TRIED)))
    for index, slope in enumerate(TRIED):
        lines = sum(np.interp(y + slope * x, y, strip, 0, 0) for x, strip in zip(middles, sums, strict=True))
        sharpness[:, index] = near @ (np.diff(lines, prepend=0) ** 2)
    gain = sharpness / (sharpness.max() * 0.1 + sharpness.max(1, keepdims=True))
    apart = STIFF * np.abs(TRIED[:, None] - TRIED[None]) / (TRIED[1] - TRIED[0])
    best, chosen = gain[0], []
    for knot in range(1, KNOTS):
        reached = best[None] - apart  # [to, from]
        chosen.append(reached.argmax(1))
        best = reached.max(1) + gain[knot]
    path = [int(best.argmax())]
    for back in reversed(chosen):
        path.append(int(back[path[-1]]))
    return tuple(TRIED[index] for index in reversed(path))


def _along(slopes: Slopes, y: np.ndarray | float, height: int) -> np.ndarray:
    """The slope at each height of a page."""
    return np.interp(y, np.linspace(0, height, len(slopes)), slopes)


def _straightened(ink: np.ndarray, slopes: Slopes) -> np.ndarray:
    """The ink with every column moved up or down so that lines are level."""
    height, width = ink.shape
    y, x = np.arange(height)[:, None], np.arange(width)[None]
    rise = _along(slopes, y, height)
    source = np.rint(y + rise * (x - width / 2)).astype(int)
    return np.where((source >= 0) & (source < height), ink[np.clip(source, 0, height - 1), x], 0)


def _ink_of_rows(ink: np.ndarray) -> np.ndarray:
    """The ink of every row, in no strip of the page more than print has: handwriting across lines counts little."""
    edges = np.linspace(0, ink.shape[1], STRIPS + 1).astype(int)
    sums = np.stack([ink[:, left:right].sum(1) for left, right in pairwise(edges)])
    inked = sums[sums > 0.5]
    return np.minimum(sums, np.percentile(inked, 60)).sum(0) if len(inked) else sums.sum(0)


def _bands(sums: np.ndarray) -> tuple[list[tuple[int, int]], float]:
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


def _split(sums: np.ndarray, top: int, bottom: int, usual: float) -> Iterator[tuple[int, int]]:
    """A run of ink parted at its weakest row, if it is too tall for one line and that row is weak."""
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
    for index, (top, bottom) in enumerate(parts):
        if pending:
            top, pending = pending[0], None
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


def _words(ink: np.ndarray, usual: float) -> tuple[Word, ...]:
    """Runs of inked columns with blanks between them that are wider than those between letters."""
    inked = np.flatnonzero(ink.sum(0) > 0.5)
    if not len(inked):
        return ()
    cuts = np.flatnonzero(np.diff(inked) > max(2.0, WORD_GAP * usual))
    starts, ends = np.append(0, cuts + 1), np.append(cuts, len(inked) - 1)
    return tuple(Word(int(inked[a]), int(inked[b]) + 1) for a, b in zip(starts, ends, strict=True))


@dataclass(frozen=True)
class Piece:
    """A part of a line and where it stands in the flow: row, left edge in px, px of the flow a px of the page."""

    line: TextLine
    left: float
    right: float
    row: int
    x: float
    scale: float


def set_pieces(page: PrintedPage) -> tuple[list[Piece], list[tuple[int, float]], int]:
    """Where every word goes, where a mark begins a line (row, left edge), and how many rows that takes."""
    pieces: list[Piece] = []
    marks: list[tuple[int, float]] = []
    row, x = 0, 0.0
    for line in page.lines:
        scale = flow.HEIGHT / page.usual * min(1.0, flow.TALLEST * page.usual / (line.bottom - line.top))
        if x and x + flow.MARK + flow.CELL > flow.WIDTH:
            row, x = row + 1, 0.0
        marks.append((row, x))
        x += flow.MARK
        before = None
        for word in line.words:
            if before is not None:
                x += float(np.clip((word.left - before) * scale, *flow.GAP))
            left, before = float(word.left), word.right
            if x and x + (word.right - left) * scale > flow.WIDTH >= (word.right - left) * scale:
                row, x = row + 1, 0.0
            while left < word.right:
                if x > flow.WIDTH - 1:
                    row, x = row + 1, 0.0
                right = min(float(word.right), left + (flow.WIDTH - x) / scale)
                pieces.append(Piece(line, left, right, row, x, scale))
                left, x = right, x + (right - left) * scale
    return pieces, marks, row + 1


def flow_image(image: Image.Image) -> Image.Image:
    """The page's lines one after the other as a grey image of whole tiles, one above the other."""
    return draw_flow(read_page(image))


def draw_flow(page: PrintedPage) -> Image.Image:
    """As `flow_image`, of a page whose lines were found."""
    pieces, marks, rows = set_pieces(page)
    tiles = -(-rows // flow.COLUMNS)
    result = Image.new("L", (flow.WIDTH, tiles * flow.WIDTH), 255)
    for row, x in marks:
        result.paste(0, (round(x) + 4, row * flow.CELL, round(x) + 8, (row + 1) * flow.CELL))
    for piece in pieces:
        _draw(result, page, piece)
    return result


def _draw(result: Image.Image, page: PrintedPage, piece: Piece) -> None:
    """One piece, level, at its scale, in the middle of its row, and as dark as any print."""
    line = piece.line
    top, bottom = line.top - 1, line.bottom + 1
    wide, tall = (piece.right - piece.left) * piece.scale, (bottom - top) * piece.scale
    size = (max(1, round(wide)), min(flow.CELL, round(tall)))
    slope = page.slope((top + bottom) / 2)
    y = top + slope * (piece.left - page.grey.width / 2)
    step = 1 / piece.scale
    part = page.grey.transform(
        size,
        Image.Transform.AFFINE,
        (step, 0, piece.left, slope * step, (bottom - top) / size[1], y),
        Image.Resampling.BICUBIC,
        fillcolor=255,
    )
    levels = 255 - np.asarray(part, np.float32)
    darkest = max(40.0, float(np.percentile(levels, 97)))
    darkened = Image.fromarray((255 - np.minimum(255, levels * (230 / darkest))).astype(np.uint8))
    result.paste(darkened, (round(piece.x), piece.row * flow.CELL + (flow.CELL - size[1]) // 2))
