"""From placed characters to ink: a uint8 page of coverage, 0 where there is paper and 255 where there is full ink."""

from __future__ import annotations

import numpy as np

from mllm_tailor.synthetic.fonts import Face, Glyph
from mllm_tailor.synthetic.page import DrawnText, Mark


def print_text(text: DrawnText, face: Face) -> np.ndarray:
    """The page's ink, (height, width); `text` must have been placed with the face's own metrics."""
    page = np.zeros((text.height, text.width), dtype=np.uint8)
    for line in text.cells:
        glyphs = face.glyphs(line.size, line.wide, bold=line.bold)
        base = round(line.baseline)
        for char, start in zip(line.text, line.starts, strict=False):
            if char != " ":
                _stamp(page, glyphs[char], round(start), base)
    for mark in text.marks:
        _mark(page, mark, face)
    return page


def _stamp(page: np.ndarray, glyph: Glyph, x: int, y: int) -> None:
    left, top = x + glyph.left, y + glyph.top
    height, width = glyph.mask.shape
    if left < 0 or top < 0 or left + width > page.shape[1] or top + height > page.shape[0]:
        left, top = min(max(left, 0), page.shape[1] - width), min(max(top, 0), page.shape[0] - height)
    target = page[top : top + height, left : left + width]
    np.maximum(target, glyph.mask, out=target)


def _mark(page: np.ndarray, mark: Mark, face: Face) -> None:
    x0, y0, x1, y1 = (round(value) for value in (mark.x0, mark.y0, mark.x1, mark.y1))
    middle, thick = (y0 + y1) // 2, max(1, round(mark.size / 16))
    if mark.what == "line":
        page[middle : middle + thick, x0:x1] = 255
    elif mark.what == "frame":
        for y in (y0, y1):
            page[y : y + thick, x0:x1] = 255
        for stop in mark.stops:
            page[y0:y1, round(stop) : round(stop) + thick] = 255
    elif mark.what == "barcode":
        _barcode(page, x0, y0, x1, y1)
    elif mark.what == "logo":
        draw_logo(page, x0, y0, x1, y1)
    else:
        glyphs, advance = face.glyphs(mark.size), face.metrics.advances[mark.what] * mark.size
        for index in range(int((x1 - x0) / advance)):
            _stamp(page, glyphs[mark.what], round(x0 + index * advance), y0 + round(0.75 * (y1 - y0)))


def _pattern(x0: int, y0: int) -> np.random.Generator:
    return np.random.default_rng(x0 * 10007 + y0)


def _barcode(page: np.ndarray, x0: int, y0: int, x1: int, y1: int) -> None:
    """Bars of one to three pixels over the middle half of the page."""
    width = (x1 - x0) // 2
    bars = np.repeat(np.tile([255, 0], width // 4), _pattern(x0, y0).integers(1, 4, width // 4 * 2))[:width]
    page[y0 + 4 : y1 - 4, x0 + width // 2 : x0 + width // 2 + len(bars)] = bars.astype(np.uint8)


def draw_logo(page: np.ndarray, x0: int, y0: int, x1: int, y1: int) -> None:
    """A ring or a framed wave in the middle: something that is plainly no letter."""
    height, centre = y1 - y0 - 4, (x0 + x1) // 2
    wide = min(int(height * _pattern(x0, y0).uniform(1.0, 3.5)), x1 - x0)  # never wider than its box on the page
    ys, xs = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : wide * 1j]
    ring = np.hypot(xs, ys)
    ink = (np.abs(ring - 0.85) < 0.12) | ((np.abs(ys - 0.4 * np.sin(6 * xs)) < 0.15) & (ring < 0.6))
    page[y0 + 2 : y0 + 2 + height, centre - wide // 2 : centre - wide // 2 + wide] = ink * np.uint8(255)
