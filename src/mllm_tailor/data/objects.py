"""Placeholders of ms-swift's grounding rows, `<ref-object>` and `<bbox>`, filled from the row's `objects`.

`objects` is `{"ref": [names], "bbox": [[left, top, right, bottom] or [x, y]], "bbox_type": "real" | "norm1" |
"norm1000", "image_id": [number of the image of each box]}`; boxes are in pixels of the stored image unless `bbox_type`
states otherwise. They are written as InternVL writes them: `<ref>name</ref>` and `<box>[[…]]</box>` in thousandths;
where the row has several images, behind the number of theirs (`Image-2: <box>…`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mllm_tailor.core.regions import image_mark
from mllm_tailor.core.sample import Media
from mllm_tailor.data.conversation import Said
from mllm_tailor.data.keys import KeyReader
from mllm_tailor.data.options import listed
from mllm_tailor.media.open import image_size

REF, BOX = "<ref-object>", "<bbox>"
_PLACEHOLDER = re.compile(f"{REF}|{BOX}")
FULL = 1000
OLD_KEYS = frozenset({"caption", "bbox", "bbox_type", "image"})


def filled(said: Sequence[Said], row: KeyReader, images: Sequence[Media]) -> list[Said]:
    """The messages with every placeholder filled, in order; `images` are those of the row in order.

    Raises:
        DataError: naming the row, when placeholders and objects do not agree or a box cannot be read.
    """
    words = [part for message in said for part in message.parts if isinstance(part, str)]
    found = [placeholder for text in words for placeholder in _PLACEHOLDER.findall(text)]
    if not found:
        return list(said)
    stated = _stated(row.get("objects"))
    if not isinstance(stated, Mapping):
        raise row.error(
            f"{found[0]} stands in a message, but `objects` is missing or in another form", "add it to the row"
        )
    objects = KeyReader(stated, row.source, "objects")
    names = [f"<ref>{name}</ref>" for name in _list(objects, "ref")]
    boxes = _boxes(objects, images)
    objects.skip("width", "height")
    for placeholder, values in ((REF, names), (BOX, boxes)):
        if found.count(placeholder) != len(values):
            raise row.error(
                f"{found.count(placeholder)} {placeholder} in the messages, but {len(values)} in `objects`",
                "make them agree",
            )
    objects.refuse(dict.fromkeys(objects.unread(), "take it out, or name what it says in the messages"))
    remaining = {REF: iter(names), BOX: iter(boxes)}
    return [
        replace(
            message,
            parts=tuple(
                _PLACEHOLDER.sub(lambda match: next(remaining[match.group()]), part) if isinstance(part, str) else part
                for part in message.parts
            ),
        )
        for message in said
    ]


def _stated(objects: Any) -> Any:
    """`objects`, also as JSON text of a table, or in the older form: a list of `{"caption", "bbox", "bbox_type"}`."""
    objects = listed(objects) if isinstance(objects, str) else objects
    if not isinstance(objects, list) or not all(isinstance(item, Mapping) for item in objects):
        return objects
    if any(set(item) - OLD_KEYS or item.get("bbox") is None for item in objects):
        return None
    units = {item.get("bbox_type", "real") for item in objects}
    return {
        "ref": [item["caption"] for item in objects if "caption" in item],
        "bbox": [item["bbox"] for item in objects],
        "bbox_type": units.pop() if len(units) == 1 else sorted(map(str, units)),
        "image_id": [item.get("image", 0) for item in objects],
    }


def _list(objects: KeyReader, key: str) -> list[Any]:
    value = objects.get(key, [])
    return value if isinstance(value, list) else [value]


def _boxes(objects: KeyReader, images: Sequence[Media]) -> list[str]:
    boxes, unit = _list(objects, "bbox"), objects.get("bbox_type", "real")
    numbers = _list(objects, "image_id") or [0] * len(boxes)
    if unit not in ("real", "norm1", "norm1000") or len(numbers) != len(boxes):
        raise objects.error(
            f"`bbox_type` is {unit!r} and `image_id` has {len(numbers)} numbers for {len(boxes)} boxes",
            "use real, norm1 or norm1000, and one number for each box",
        )
    return [_written(box, unit, number, objects, images) for box, number in zip(boxes, numbers, strict=True)]


def _written(box: Any, unit: str, number: Any, objects: KeyReader, images: Sequence[Media]) -> str:
    """One box or point in thousandths of its image."""
    plain = isinstance(box, list) and len(box) in (2, 4) and all(isinstance(value, (int, float)) for value in box)
    if not plain or not isinstance(number, int) or not 0 <= number < len(images):
        raise objects.error(
            f"{str(box)[:80]} of image {number} is no box [left, top, right, bottom] of the row's {len(images)} images",
            "correct it; images are counted from 0",
        )
    whole = (1.0, 1.0) if unit == "norm1" else (FULL, FULL) if unit == "norm1000" else image_size(images[number])
    values = [round(FULL * value / whole[index % 2]) for index, value in enumerate(box)]
    ordered = len(values) == 2 or (values[0] < values[2] and values[1] < values[3])
    if not ordered or not all(0 <= value <= FULL for value in values):
        raise objects.error(
            f"the box {box} is empty, upside down or outside its image of {whole[0]:g}x{whole[1]:g}",
            "correct it, or state its unit in `bbox_type`",
        )
    mark = image_mark(number) if len(images) > 1 else ""
    return f"{mark}<box>[{values}]</box>"
