"""Framings: the same image with other margins, for reading it several times. The one place that lists them.

A vision tower reads an image in tiles and patches, so a margin of a few per cent moves every edge between them and
changes the scale slightly: what one framing misreads, another often reads right. Framing 0 is the image itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

Size = tuple[int, int]


@dataclass(frozen=True)
class Framing:
    """Margins added to an image, as shares of its width and height, after a rotation."""

    left: float = 0.0
    top: float = 0.0
    right: float = 0.0
    bottom: float = 0.0
    degrees: float = 0.0  # anticlockwise


# `predict.framings: N` reads the first N. The second was chosen on dev receipts and the third gained on them; the
# fourth did not, and those after it were not measured (benchmarks/results/framings.json).
FRAMINGS = (
    Framing(),
    Framing(0.026, 0.021, 0.011, 0.009),
    Framing(0.008, 0.006, 0.045, 0.024),
    Framing(degrees=0.5),
    Framing(0.03, 0.015, 0.03, 0.015, degrees=-0.4),
    Framing(0.05, 0.03, 0.05, 0.03),
    Framing(0.012, 0.028, 0.02, 0.004, degrees=-0.6),
    Framing(0.0, 0.012, 0.03, 0.03, degrees=0.3),
)


def framed(image: Image.Image, index: int) -> Image.Image:
    """An RGB image in the framing of this index; what is added has the colour of the image's paper."""
    framing = FRAMINGS[index]
    if framing == Framing():
        return image
    paper = paper_of(image)
    if framing.degrees:
        image = image.rotate(framing.degrees, Image.Resampling.BICUBIC, fillcolor=paper)
    left, top, _, _ = _margins(image.size, framing)
    whole = Image.new("RGB", framed_size(image.size, index), paper)
    whole.paste(image, (left, top))
    return whole


def framed_size(size: Size, index: int) -> Size:
    """(width, height) of `framed` for an image of this size."""
    left, top, right, bottom = _margins(size, FRAMINGS[index])
    return size[0] + left + right, size[1] + top + bottom


def paper_of(image: Image.Image) -> tuple[int, int, int]:
    """The colour of an RGB image's paper: the median of its outermost pixels."""
    pixels = np.asarray(image)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = (int(level) for level in np.median(edge, axis=0))
    return red, green, blue


def _margins(size: Size, framing: Framing) -> tuple[int, int, int, int]:
    width, height = size
    return (
        round(framing.left * width),
        round(framing.top * height),
        round(framing.right * width),
        round(framing.bottom * height),
    )
