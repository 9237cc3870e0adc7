"""Outline what a phrase names: the answer is a polygon as text, or several where the thing is seen in parts.

`<ref>phrase</ref><box>[[x, y], [x, y], …]</box>`, one `<box>` for each part, with whole numbers from 0 to 1000 of the
image's width and height, as `tasks.ground` writes boxes; so outlines move with an image that is changed as boxes do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from mllm_tailor.core.conversation import Conversation, asked
from mllm_tailor.core.errors import DataError, nearest
from mllm_tailor.core.regions import IMAGE, image_mark
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.media.open import image_size
from mllm_tailor.recipe import Settings, validate
from mllm_tailor.tasks.base import Reply, unread_parts
from mllm_tailor.tasks.ground import FULL, image_of, marked, phrase_of

FIELD = "polygon"
MIN_CORNERS = 3
THINNED = 8  # corners for each one wanted that are compared when an outline is simplified
Outline = list[list[int]]  # corners [x, y] in thousandths

_BLOCK = re.compile(r"<box>(.*?)</box>", re.DOTALL)
_NUMBER = r"-?\d+(?:\.\d+)?"
_POINT = re.compile(rf"\[\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\]")


class SegmentSettings(Settings):
    """`segment: {}` takes the phrase from the question and the outlines from the field `polygon`."""

    label: str = Field(FIELD, description="field of the data that holds outlines, each a list of corners [x, y]")
    unit: Literal["thousandths", "pixels"] = Field(
        "thousandths", description="of that field: thousandths of width and height, or pixels of the stored image"
    )
    image: str = Field(
        "image_index", description="field with the image that they are of, from 0; default: the last of the sample"
    )
    max_corners: int = Field(
        24, ge=MIN_CORNERS, le=200, description="an outline with more corners is simplified to so many in the answer"
    )
    prompt: str = Field("Outline <ref>{phrase}</ref>.", description="the question; {phrase} becomes the sample's own")


class Segment:
    """The outlines of one phrase, compared by the area they cover (intersection over union of the masks)."""

    name = "segment"
    metrics: tuple[str, ...] = ("mask_iou", "mask_iou_50", "parse_rate")
    field_names: tuple[str, ...] = (FIELD,)
    region_fields: tuple[str, ...] = (FIELD,)

    def __init__(self, settings: Any) -> None:
        self.settings = validate(SegmentSettings, settings or {}, "task.segment")

    def phrase(self, sample: Sample) -> Conversation:
        """Set the question and, for a labelled sample, its outlines."""
        named = phrase_of(sample.prompt)
        if not named:
            raise DataError(f"{sample.source}: no phrase to look for — add a question, or choose another task")
        if not any(media.kind == "image" for media in sample.media):
            raise DataError(f"{sample.source}: no image to look in — add one, or leave the row out")
        labels = self.labels(sample)
        answer = None
        if labels:
            outlines = [simplified(outline, self.settings.max_corners) for outline in labels[FIELD]]
            mark = image_mark(labels[IMAGE]) if IMAGE in labels else ""
            answer = f"<ref>{named}</ref>{mark}" + "".join(f"<box>{outline}</box>" for outline in outlines)
        return asked(sample, self.settings.prompt, answer, {"phrase": named})

    def labels(self, sample: Sample) -> dict[str, Any]:
        """The outlines in thousandths, with all their corners.

        Raises:
            DataError: naming the row, for anything but outlines inside the image.
        """
        stated = sample.fields.get(self.settings.label)
        if stated is None and sample.answer is not None:
            stated = read_outlines(sample.answer)
        if stated is None:
            if sample.fields:
                hint = nearest(self.settings.label, map(str, sample.fields))
                raise DataError(f"{sample.source}: no field `{self.settings.label}` holds the outlines — {hint}")
            return {}
        outlines = stated if _is_list_of_outlines(stated) else [stated]
        image, index = image_of(sample, self.settings.image)
        scale = self._scale(image)
        return {FIELD: [_checked(outline, scale, sample.source) for outline in outlines], **index}

    def _scale(self, image: Media) -> tuple[float, float]:
        """What a coordinate is multiplied by, across and down."""
        if self.settings.unit == "thousandths":
            return 1.0, 1.0
        width, height = image_size(image)
        return FULL / width, FULL / height

    def unread(self, sample: Sample) -> Iterable[str]:
        """What neither the question nor the labels hold."""
        label = self.settings.label
        return unread_parts(
            sample,
            fields=(label, self.settings.image),
            wording=self.settings.prompt,
            answers=label not in sample.fields,
        )

    def schema(self) -> None:
        """Free text."""
        return None

    def parse(self, text: str) -> Reply:
        """The outlines of a reply, corners outside the image moved to its edge."""
        outlines = [
            [[min(FULL, max(0, round(value))) for value in corner] for corner in outline]
            for outline in read_outlines(text)
            if len(outline) >= MIN_CORNERS
        ]
        return Reply(fields={FIELD: outlines, **marked(text)}) if outlines else Reply(problem="no outline in the reply")


def read_outlines(text: str) -> list[list[list[float]]]:
    """The corners in each `<box>` of a text, or in all of it where there is none.

    >>> read_outlines("<ref>a cat</ref><box>[[10, 20], [30, 20], [30, 40]]</box>")
    [[[10.0, 20.0], [30.0, 20.0], [30.0, 40.0]]]
    """
    blocks = _BLOCK.findall(text) or [text]
    outlines = [[[float(x), float(y)] for x, y in _POINT.findall(block)] for block in blocks]
    return [outline for outline in outlines if outline]


def simplified(outline: Outline, max_corners: int) -> Outline:
    """The outline with at most so many corners, those taken out one after the other that matter least.

    A corner matters by the area of the triangle with its neighbours (Visvalingam and Whyatt 1993).
    """
    corners = outline[:: max(1, len(outline) // (THINNED * max_corners))]  # bounds the work, which is quadratic
    while len(corners) > max_corners:
        following = [*corners[1:], corners[0]]
        areas = list(map(_triangle, [corners[-1], *corners[:-1]], corners, following))
        del corners[areas.index(min(areas))]
    return corners


def _triangle(first: Sequence[float], second: Sequence[float], third: Sequence[float]) -> float:
    return abs((second[0] - first[0]) * (third[1] - first[1]) - (third[0] - first[0]) * (second[1] - first[1]))


def _is_list_of_outlines(value: Any) -> bool:
    """Whether a value is a list of outlines, and not one outline."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, list) and bool(first) and isinstance(first[0], (list, tuple))


def _checked(outline: Any, scale: tuple[float, float], source: str) -> Outline:
    """An outline as whole thousandths.

    Raises:
        DataError: naming the row, for anything but three corners or more inside the image.
    """
    if not isinstance(outline, (list, tuple)) or len(outline) < MIN_CORNERS:
        raise DataError(f"{source}: an outline is three corners [x, y] or more, found {str(outline)[:80]} — correct it")
    corners: Outline = []
    for corner in outline:
        if not isinstance(corner, (list, tuple)) or len(corner) != 2 or not all(map(_is_finite, corner)):
            raise DataError(f"{source}: a corner is two numbers, found {str(corner)[:80]} — correct the outline")
        x, y = corner[0] * scale[0], corner[1] * scale[1]
        if not (0 <= x <= FULL and 0 <= y <= FULL):
            where = f"the corner [{corner[0]:g}, {corner[1]:g}] is outside the image (0 to {FULL} across and down)"
            raise DataError(f"{source}: {where} — correct the label, or set task.segment.unit=pixels")
        corners.append([round(x), round(y)])
    return corners


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
