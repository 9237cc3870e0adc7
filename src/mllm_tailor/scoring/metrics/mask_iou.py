"""Intersection over union of the areas that predicted and true outlines cover."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mllm_tailor.scoring.metrics.base import NOTHING, OfImage, Ratio, right

SIDE = 500  # cells of the raster on which areas are compared, for coordinates of 0 to 1000
FULL = 1000
THRESHOLD = 0.5


def mask(outlines: Any) -> NDArray[np.bool_]:
    """The cells (SIDE, SIDE) that outlines cover; they add up.

    An outline is a list of corners [x, y] in thousandths of width and height.
    """
    image = Image.new("1", (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for outline in outlines:
        draw.polygon([(x * SIDE / FULL, y * SIDE / FULL) for x, y in outline], fill=1, outline=1)
    return np.asarray(image)


def mask_overlap(first: Any, second: Any) -> float:
    """Intersection over union, 0..1, of two lists of outlines.

    >>> square = [[0, 0], [500, 0], [500, 500], [0, 500]]
    >>> mask_overlap([square], [square]), mask_overlap([square], [[[600, 600], [900, 600], [900, 900]]])
    (1.0, 0.0)
    """
    one, other = mask(first), mask(second)
    union = int((one | other).sum())
    return float((one & other).sum() / union) if union else 0.0


def are_outlines(value: Any) -> bool:
    """Whether a value is a list of outlines of three corners or more."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(outline, list) and len(outline) >= 3 for outline in value)
        and all(_is_corner(corner) for outline in value for corner in outline)
    )


def _is_corner(value: Any) -> bool:
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    return pair and all(isinstance(part, (int, float)) for part in value)


def _mask_iou(label: Any, predicted: Any, _kind: str) -> Ratio:
    if not are_outlines(label):
        return NOTHING  # not a field of outlines
    return Ratio(mask_overlap(label, predicted) if are_outlines(predicted) else 0.0, 1.0)


def _mask_iou_50(label: Any, predicted: Any, kind: str) -> Ratio:
    shared = _mask_iou(label, predicted, kind)
    return right(shared.numerator >= THRESHOLD) if shared.denominator else NOTHING


MASK_IOU = OfImage(_mask_iou)
MASK_IOU_50 = OfImage(_mask_iou_50)
