"""Blank margins: where print lies on a page, or what moves in a video, so that something small fills its tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from PIL import Image

from mllm_tailor.core.sample import Media
from mllm_tailor.media.open import FileStamps, file_stamps, open_image

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, as Pillow counts them

WORKING_SIDE = 1024  # px; larger pages are shrunk by a whole factor before they are looked at
CELL = 8  # px a side: about a character of small print
INK = 60  # of 255: the contrast inside a cell that print has and paper, shade and scanner noise do not
NEIGHBOURS = 8  # inked cells among the 5 x 7 round one (itself included) below which it is a speck
KEPT = 2  # cells of paper left round the print
ROUND = 0.05  # of what a video shows, left round it


def print_box(image: Image.Image) -> Box:
    """The smallest box round everything that looks like print, with a little paper; the whole image if nothing does.

    Cells of high contrast count as print where enough others lie near: dust and punch marks do not hold a margin open,
    a torn dark edge of the scan does. Nothing inside the box is changed.
    """
    factor = max(1, math.ceil(max(image.size) / WORKING_SIDE))
    grey = np.asarray(image.convert("L").reduce(factor))
    rows, columns = grey.shape[0] // CELL, grey.shape[1] // CELL
    if not rows or not columns:
        return (0, 0, *image.size)
    cells = grey[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL)
    inked = (cells.max((1, 3), initial=0).astype(int) - cells.min((1, 3), initial=255)) > INK
    near = np.lib.stride_tricks.sliding_window_view(np.pad(inked, ((2, 2), (3, 3))), (5, 7)).sum((2, 3))
    y, x = np.nonzero(inked & (near >= NEIGHBOURS))
    if not len(y):
        return (0, 0, *image.size)
    step = CELL * factor
    left, top = (max(0, int(first.min()) - KEPT) * step for first in (x, y))
    right, bottom = ((int(last.max()) + 1 + KEPT) * step for last in (x, y))
    return left, top, min(image.width, right), min(image.height, bottom)


def moving_box(frames: Sequence[Image.Image]) -> Box:
    """The smallest square round whatever any frame shows on a plain ground, so that what moves stays in proportion.

    The ground is the usual grey of the frames' edges: the black of a drawing, the bars of a film. The square is cut off
    where the frame ends. Frames that show nothing, or anything everywhere, are kept whole.
    """
    width, height = frames[0].size
    grey = np.stack([np.asarray(frame.convert("L").resize((width, height))) for frame in frames]).astype(np.int16)
    edges = [grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]]
    ground = np.median(np.concatenate([edge.ravel() for edge in edges]))
    y, x = np.nonzero((np.abs(grey - ground) > INK).any(axis=0))
    if not len(y):
        return 0, 0, width, height
    side = (1 + 2 * ROUND) * (1 + max(np.ptp(x), np.ptp(y)))
    (left, right), (top, bottom) = (
        (max(0, round(middle - side / 2)), min(most, round(middle + side / 2)))
        for middle, most in (((x.min() + x.max() + 1) / 2, width), ((y.min() + y.max() + 1) / 2, height))
    )
    return left, top, right, bottom


def box_of(media: Media) -> Box:
    """`print_box` of an image. That of a file is cached: lengths are measured before images are read, and often.

    Raises:
        DataError: naming the file, as `open_image` does.
    """
    if media.path is None or media.data is not None:  # a cache of inline images would hold all their bytes
        return print_box(open_image(media))
    return _box_of_file(replace(media, framing=0), file_stamps(media))


@lru_cache(maxsize=1 << 16)
def _box_of_file(media: Media, _: FileStamps) -> Box:
    return print_box(open_image(media))
