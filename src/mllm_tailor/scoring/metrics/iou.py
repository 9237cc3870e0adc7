"""Intersection over union of a predicted box and the true box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mllm_tailor.scoring.metrics.base import NOTHING, OfImage, Ratio, right

THRESHOLD = 0.5  # the threshold of phrase grounding (Acc@0.5), as DIOR-RSVG and RefCOCO are scored


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union, 0..1, of two boxes [left, top, right, bottom].

    >>> overlap([0, 0, 10, 10], [0, 0, 10, 5]), overlap([0, 0, 1, 1], [2, 2, 3, 3])
    (0.5, 0.0)
    """
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - shared
    return float(shared / union) if union > 0 else 0.0


def _iou(label: Any, predicted: Any, _kind: str) -> Ratio:
    if not is_box(label):
        return NOTHING  # not a box field
    return Ratio(overlap(label, predicted) if is_box(predicted) else 0.0, 1.0)


def _iou_50(label: Any, predicted: Any, kind: str) -> Ratio:
    shared = _iou(label, predicted, kind)
    return right(shared.numerator >= THRESHOLD) if shared.denominator else NOTHING


def is_box(value: Any) -> bool:
    """Whether a value is four numbers."""
    return (
        isinstance(value, (list, tuple)) and len(value) == 4 and all(isinstance(side, (int, float)) for side in value)
    )


IOU = OfImage(_iou)
IOU_50 = OfImage(_iou_50)
