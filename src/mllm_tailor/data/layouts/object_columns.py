"""Rows with a column `objects` of boxes and their categories, as Hugging Face's guides of object detection have it.

`{"bbox": [[left, top, width, height], …], "category": [label, …]}` in pixels, or a list of `{"bbox", "category"}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row
from mllm_tailor.data.keys import unread_keys
from mllm_tailor.data.layouts.base import Folder, Roots, folder_layout, recognised
from mllm_tailor.data.layouts.columns import file_columns, read_columns
from mllm_tailor.data.layouts.regions import Region, region_samples, scaled
from mllm_tailor.media.open import image_size

COLUMN, BOXES, LABELS = "objects", "bbox", ("category", "categories", "label", "labels")
HARMLESS = ("id", "area", "iscrowd")


def recognises(first: Mapping[str, Any]) -> bool:
    """Whether a row names a file and has such a column."""
    objects = first.get(COLUMN)
    stated = objects[0] if isinstance(objects, list) and objects else objects
    named = isinstance(stated, Mapping) and BOXES in stated and any(name in stated for name in LABELS)
    return named and bool(file_columns(first))


def samples_of(row: Row, folder: Folder, roots: Roots) -> Iterable[Sample | DataIssue]:
    """One sample for each category of an image.

    Raises:
        DataError: naming the row.
    """
    values = {name: value for name, value in row.values.items() if name != COLUMN}
    marks = list(_marks(row.values.get(COLUMN), row.source))
    for item in read_columns(Row(row.source, values, row.split), folder, roots):
        if isinstance(item, DataIssue):
            yield item
        elif not marks:
            yield DataIssue(row.source, "no object", "leave the image out, or label it", None, "warning")
        else:
            yield from unread_keys(_stated(row.values[COLUMN]), (BOXES, *LABELS, *HARMLESS), row.source, "objects")
            if all(label.isdecimal() for label, _ in marks):
                problem = "the categories of its objects are numbers, and are asked for as numbers"
                yield DataIssue(row.source, problem, "write their names", None, "warning")
            yield from _of_marks(item, marks)


def _stated(objects: Any) -> Any:
    return objects[0] if isinstance(objects, list) and objects else objects


def _marks(objects: Any, source: str) -> Iterator[tuple[str, Any]]:
    """(label, box) of every object."""
    if isinstance(objects, list):
        for entry in objects:
            if not isinstance(entry, Mapping):
                raise DataError(f"{source}: `{COLUMN}` should hold objects — correct this row")
            yield str(next((entry[name] for name in LABELS if name in entry), "")), entry.get(BOXES)
        return
    stated = objects if isinstance(objects, Mapping) else {}
    boxes = stated.get(BOXES) or []
    labels: Any = next((stated[name] for name in LABELS if name in stated), [])
    if not isinstance(boxes, list) or not isinstance(labels, list) or len(boxes) != len(labels):
        raise DataError(f"{source}: `{COLUMN}` has not as many categories as boxes — correct this row")
    yield from zip(map(str, labels), boxes, strict=True)


def _of_marks(base: Sample, marks: list[tuple[str, Any]]) -> Iterator[Sample | DataIssue]:
    width, height = image_size(base.media[0])
    regions = []
    for label, box in marks:
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
            raise DataError(f"{base.source}: a box is [left, top, width, height], found {str(box)[:80]} — correct it")
        corner = (box[0] + box[2], box[1] + box[3])
        if min(box) < 0 or corner[0] > width + 1 or corner[1] > height + 1:
            raise DataError(
                f"{base.source}: the box {box} of `{label}`, read as left, top, width and height, is outside of its "
                f"image of {width}x{height} pixels — write it so, or as a column `box` of a row of its own"
            )
        regions.append(Region(label, scaled([box[:2], corner], (width, height), base.source)))
    yield from region_samples(base, regions)


LAYOUT = folder_layout(recognised(recognises), samples_of)
