"""Ground a phrase in an image: the answer is a box, in InternVL's format.

`<ref>phrase</ref><box>[[left, top, right, bottom]]</box>` with integers from 0 to 1000 relative to the width and height
of the image (Chen et al. 2024, arXiv 2410.16261, section 3.3), so that a box does not depend on size and tiling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from mllm_tailor.core.conversation import Conversation, asked
from mllm_tailor.core.errors import DataError, nearest
from mllm_tailor.core.regions import IMAGE, image_mark, marked_image
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.media.open import image_size
from mllm_tailor.recipe import Settings, validate
from mllm_tailor.tasks.base import Reply, unread_parts

FIELD = "box"
FULL = 1000  # width and height of the image
_NUMBERS = re.compile(r"\[\s*(-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?){3})\s*\]")
_REF = re.compile(r"<ref>(.*?)</ref>", re.DOTALL)


Unit = Literal["thousandths", "shares", "pixels"]


class GroundSettings(Settings):
    """`ground: {}` takes the phrase from the question and the box from the field `box`, else from the answer."""

    label: str = Field("box", description="field of the data with the four numbers of a box")
    unit: Unit = Field(
        "thousandths",
        description="unit of that field: thousandths of width and height, shares of them (0 to 1), or pixels of the "
        "stored image",
    )
    format: Literal["xyxy", "xywh"] = Field(
        "xyxy", description="order of the four numbers: left, top, right, bottom, or left, top, width, height (COCO)"
    )
    image: str = Field(
        "image_index", description="field with the image that the box is of, from 0; default: the last of the sample"
    )
    prompt: str = Field(
        "Where is <ref>{phrase}</ref>?", description="question; {phrase} is replaced by the sample's phrase"
    )


class Ground:
    """One box per phrase; correct at an intersection over union of at least 0.5 with the labelled box."""

    name = "ground"
    metrics: tuple[str, ...] = ("iou_50", "iou", "parse_rate")
    field_names: tuple[str, ...] = (FIELD,)
    region_fields: tuple[str, ...] = (FIELD,)

    def __init__(self, settings: Any) -> None:
        self.settings = validate(GroundSettings, settings or {}, "task.ground")

    def phrase(self, sample: Sample) -> Conversation:
        """Set the question and, for a labelled sample, the box."""
        named = phrase_of(sample.prompt)
        if not named:
            raise DataError(f"{sample.source}: no phrase to ground — add a question, or choose another task")
        if not any(media.kind == "image" for media in sample.media):
            raise DataError(f"{sample.source}: no image — add one, or leave the row out")
        labels = self.labels(sample)
        mark = image_mark(labels[IMAGE]) if IMAGE in labels else ""
        answer = f"<ref>{named}</ref>{mark}<box>[{labels[FIELD]}]</box>" if labels else None
        return asked(sample, self.settings.prompt, answer, {"phrase": named})

    def labels(self, sample: Sample) -> dict[str, Any]:
        """The box in thousandths and, of several images, the one that it is of."""
        stated = sample.fields.get(self.settings.label)
        if stated is None and sample.answer is not None:
            found = read_box(sample.answer)
            if found is None:
                raise DataError(f"{sample.source}: the answer has no box such as [[10, 20, 300, 400]] — fix it")
            return self._labels(found, sample)
        if stated is None:
            if sample.fields:
                hint = nearest(self.settings.label, map(str, sample.fields))
                raise DataError(f"{sample.source}: there is no field `{self.settings.label}` for the box — {hint}")
            return {}
        box = read_box(str(list(stated) if isinstance(stated, (list, tuple)) else stated))
        if box is None:
            raise DataError(f"{sample.source}: a box is [left, top, right, bottom], found {str(stated)[:80]} — fix it")
        return self._labels(box, sample)

    def _labels(self, box: Sequence[float], sample: Sample) -> dict[str, Any]:
        """The box relative to its image, after EXIF rotation."""
        image, index = image_of(sample, self.settings.image)
        if self.settings.format == "xywh":
            box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
        if self.settings.unit != "thousandths":
            size = image_size(image) if self.settings.unit == "pixels" else (1, 1)
            box = [FULL * value / whole for value, whole in zip(box, size * 2, strict=True)]
        return {FIELD: _checked(box, sample.source), **index}

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
        """None: replies are unconstrained."""
        return None

    def parse(self, text: str) -> Reply:
        """The first box of a reply, clipped to the image."""
        found = read_box(text)
        if found is None:
            return Reply(problem="no box in the reply")
        left, top, right, bottom = (min(FULL, max(0, round(value))) for value in found)
        if left >= right or top >= bottom:
            return Reply(problem="the box in the reply is empty or upside down")
        return Reply(fields={FIELD: [left, top, right, bottom], **marked(text)})


def image_of(sample: Sample, field: str) -> tuple[Media, dict[str, int]]:
    """The image that a sample's region is of and, where the sample has several, its index from 0 as `image`.

    The field states it, else the mark in the answer (`Image-2: <box>`), else it is the last.

    Raises:
        DataError: naming the row, without an image or for an index that is none.
    """
    images = [media for media in sample.media if media.kind == "image"]
    if not images:
        raise DataError(f"{sample.source}: no image — add one, or leave the row out")
    stated = sample.fields.get(field, sample.extra.get(field))
    stated = marked_image(sample.answer or "") if stated in (None, "") else stated
    try:
        index = len(images) - 1 if stated is None else int(stated)
    except (TypeError, ValueError):
        index = -1
    if not 0 <= index < len(images):
        raise DataError(
            f"{sample.source}: `{field}` is {stated!r}, and there are {len(images)} images, from 0 — fix it"
        )
    return images[index], {IMAGE: index} if len(images) > 1 else {}


def marked(text: str) -> dict[str, int]:
    """The image that a reply states for its first box, as `image`; empty without a mark."""
    index = marked_image(text)
    return {} if index is None else {IMAGE: index}


def phrase_of(text: str) -> str:
    """The phrase: the text inside `<ref>`, else the whole text."""
    marked = _REF.search(text)
    return " ".join((marked[1] if marked else text).split())


def read_box(text: str) -> list[float] | None:
    """The first four numbers in brackets.

    >>> read_box("<ref>a cat</ref><box>[[10, 20, 300, 400]]</box>")
    [10.0, 20.0, 300.0, 400.0]
    """
    found = _NUMBERS.search(text)
    return [float(number) for number in found[1].split(",")] if found else None


def _checked(box: Sequence[float], source: str) -> list[int]:
    """The box as whole thousandths.

    Raises:
        DataError: for a box that is empty, upside down or outside the image.
    """
    left, top, right, bottom = box = [round(value, 3) for value in box]  # a sum of shares may be 1.0000000000000002
    if not (0 <= left < right <= FULL and 0 <= top < bottom <= FULL):
        shown = ", ".join(f"{value:g}" for value in box)
        raise DataError(
            f"{source}: the box [{shown}] is empty, upside down or outside the image (0 to {FULL} across and down) — "
            "fix the label, or set task.ground.unit or task.ground.format"
        )
    whole = [round(value) for value in box]
    if whole[0] == whole[2] or whole[1] == whole[3]:
        shown = ", ".join(f"{value:g}" for value in box)
        raise DataError(
            f"{source}: the box [{shown}] is less than a thousandth of the image wide or high — fix the label, or set "
            "task.ground.unit=shares if its numbers go from 0 to 1"
        )
    return whole
