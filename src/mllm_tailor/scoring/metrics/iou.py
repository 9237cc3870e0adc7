"""How well a box covers the true one: area shared over area of both together (intersection over union)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mllm_tailor.scoring.metrics.base import NOTHING, ByField, Ratio, right

ENOUGH = 0.5  # the threshold of phrase grounding (Acc@0.5), as DIOR-RSVG and RefCOCO are scored


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """0..1 of two boxes [left, top, right, bottom].

    >>> overlap([0, 0, 10, 10], [0, 0, 10, 5]), overlap([0, 0, 1, 1], [2, 2, 3, 3])
    (0.5, 0.0)
    """
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    whole = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared
    return float(shared / whole) if whole > 0 else 0.0


def _iou(label: Any, predicted: Any, kind: str) -> Ratio:
    if not is_box(label):
        return NOTHING  # a field of another kind asks for no box
    return Ratio(overlap(label, predicted) if is_box(predicted) else 0.0, 1.0)


def _iou_50(label: Any, predicted: Any, kind: str) -> Ratio:
    shared = _iou(label, predicted, kind)
    return right(shared.numerator >= ENOUGH) if shared.denominator else NOTHING


def is_box(value: Any) -> bool:
    """Whether a value is four numbers."""
    return isinstance(value, (list, tuple)) and len(value) == 4 and all(isinstance(one, (int, float)) for one in value)


IOU = ByField(_iou)
IOU_50 = ByField(_iou_50)
