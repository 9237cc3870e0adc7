"""In which unit and order the boxes of a set are written, by what fits its images."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.regions import FOREIGN
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.box_columns import BOX_FIELDS, is_box
from mllm_tailor.data.field_types import MOSTLY
from mllm_tailor.media.open import image_size

FULL = 1000
LOOKED_AT = 50  # images whose sizes are read
CHANCE = 0.05  # of boxes in thousandths to lie inside the pixels of all small images
_BOX = re.compile(r"\[\s*-?[\d.]+(?:\s*,\s*-?[\d.]+){3}\s*\]")
Box = tuple[float, float, float, float]
Size = tuple[float, float]


def box_field(samples: Sequence[Sample]) -> str | None:
    """The field that holds the boxes; None where there is none."""
    total = len(samples)
    return next(
        (name for name in BOX_FIELDS if sum(is_box(sample.fields.get(name)) for sample in samples) > total / 2), None
    )


def mostly_boxes(samples: Sequence[Sample]) -> bool:
    """Whether the answers hold one box each, and little else; boxes in units of other models are texts."""
    answers = [sample.answer for sample in samples if sample.answer]
    boxes = sum(
        len(_BOX.findall(answer)) == 1 and len(_BOX.sub("", answer).split()) <= 12 and not FOREIGN.search(answer)
        for answer in answers
    )
    return bool(answers) and boxes >= MOSTLY * len(answers)


def box_settings(samples: Sequence[Sample], field: str | None) -> tuple[dict[str, Any], str]:
    """The settings of `task.ground` for these boxes, and what remains open."""
    settings = {} if field in (None, "box") else {"label": field}
    boxes = list(_boxes(samples, field))
    if not boxes:
        return settings, ""
    form = "xywh" if any(right <= left or bottom <= top for (left, top, right, bottom), _ in boxes) else None
    numbers = [number for box, _ in boxes for number in box]
    known = [(box, size) for box, size in boxes if size is not None]
    unit = _unit(numbers, [(_far_corner(box, form), size) for box, size in known])
    whole = {"shares": (1.0, 1.0), "thousandths": (float(FULL), float(FULL))}.get(unit)
    beyond = any(not _inside(_far_corner(box, "xywh"), whole or size) for box, size in known)
    if unit != "thousandths":
        settings["unit"] = unit
    if form == "xywh":
        settings["format"] = form
    opened = form is None and not beyond and field not in (None, "box")
    return settings, "; they would also fit as xywh (task.ground.format)" if opened else ""


def _unit(numbers: Sequence[float], corners: Sequence[tuple[Size, Size]]) -> str:
    if max(numbers) > FULL:
        return "pixels"
    if max(numbers) <= 1:
        return "shares"
    chance = 1.0
    for corner, (width, height) in corners:
        if not _inside(corner, (width, height)):
            return "thousandths"
        chance *= min(1, width / FULL) * min(1, height / FULL)
    return "pixels" if corners and chance < CHANCE else "thousandths"


def _far_corner(box: Box, form: str | None) -> Size:
    return (box[0] + box[2], box[1] + box[3]) if form == "xywh" else (box[2], box[3])


def _inside(corner: Size, whole: Size) -> bool:
    return corner[0] <= whole[0] + 1e-6 and corner[1] <= whole[1] + 1e-6


def _boxes(samples: Sequence[Sample], field: str | None) -> Iterator[tuple[Box, Size | None]]:
    """Every box, and the size of its image for the first of them."""
    sizes = itertools.islice(itertools.chain(range(LOOKED_AT), itertools.repeat(LOOKED_AT)), len(samples))
    for sample, number in zip(samples, sizes, strict=True):
        text = str(sample.fields.get(field) if field else sample.answer or "")
        for match in _BOX.findall(text.replace("'", "")):
            left, top, right, bottom = (float(value) for value in re.findall(r"-?[\d.]+", match))
            yield (left, top, right, bottom), _size(sample) if number < LOOKED_AT else None


def _size(sample: Sample) -> Size | None:
    images = [media for media in sample.media if media.kind == "image"]
    try:
        return image_size(images[-1]) if images else None
    except (DataError, OSError):
        return None  # a missing or damaged file is named by the check
