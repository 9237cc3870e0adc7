"""The line of print nearest to a rough box: visual tokens are often as high as two lines of a receipt."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

REACH = 1.25  # heights of the box above and below its middle in which a line is looked for
TALLEST = 1.6  # heights of the box beyond which ink is no single line
CONTRAST = 60  # of 255: between paper and the darkest point, below which nothing is printed
DARK = 0.4  # of that contrast from which a pixel is ink
INKED = 0.02  # of a row's pixels that are ink in print
GAP = 1  # rows without ink that do not end a line: dots of dot-matrix print
FLATTEST = 5  # rows; flatter ink is a rule


def nearest_line(grey: NDArray[np.uint8], box: tuple[float, float, float, float]) -> tuple[int, int] | None:
    """Top and bottom (exclusive) of the line whose middle is nearest to that of a box, in pixels; None for none."""
    left, top, right, bottom = box
    middle, height = (top + bottom) / 2, bottom - top
    first = max(0, int(middle - REACH * height))
    columns = slice(max(0, int(left)), int(np.ceil(right)))
    window = grey[first : int(np.ceil(middle + REACH * height)), columns].astype(np.int16)
    lines = [line for line in _lines(window) if line[1] - line[0] < TALLEST * height]
    if not lines:
        return None
    start, end = min(lines, key=lambda line: abs(first + (line[0] + line[1]) / 2 - middle))
    return first + start, first + end


def _lines(window: NDArray[np.int16]) -> Iterator[tuple[int, int]]:
    """Rows of ink in a window (rows, columns) of grey levels."""
    if not window.size:
        return
    paper = float(np.percentile(window, 90))
    contrast = paper - float(window.min())
    if contrast <= CONTRAST:
        return
    rows = np.flatnonzero((paper - window > DARK * contrast).mean(1) > INKED)
    for line in np.split(rows, np.flatnonzero(np.diff(rows) > GAP + 1) + 1):
        if len(line) and line[-1] + 1 - line[0] >= FLATTEST:
            yield int(line[0]), int(line[-1]) + 1
