"""doccano's exports: rows with `filename` and a list `label` of classes or captions, or lists of boxes and outlines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row
from mllm_tailor.data.keys import unread_keys
from mllm_tailor.data.layouts.answers import captioned
from mllm_tailor.data.layouts.base import Folder, Roots, adjusted, folder_layout, recognised
from mllm_tailor.data.layouts.columns import read_columns
from mllm_tailor.data.layouts.regions import Region, region_samples, scaled
from mllm_tailor.media.open import image_size

NOTES = ("Comments", "comments", "meta")
REGIONS = ("bbox", "segmentation")
REGION_KEYS = ("id", "label", "x", "y", "width", "height", "points", "uuid")
WORDS_OF_A_CAPTION = 3  # on average, at least


def recognises(first: Mapping[str, Any]) -> bool:
    """Whether a row has a file name and a list of plain labels or of regions."""
    return "filename" in first and (_label_column(first) is not None or _region_column(first) is not None)


def _label_column(values: Mapping[str, Any]) -> str | None:
    for name in ("label", "labels"):
        label = values.get(name)
        if isinstance(label, list) and all(isinstance(item, str) for item in label):
            return name
    return None


def _region_column(values: Mapping[str, Any]) -> str | None:
    for name in REGIONS:
        regions = values.get(name)
        if isinstance(regions, list) and all(isinstance(item, Mapping) and "label" in item for item in regions):
            return name
    return None


def samples_of(row: Row, folder: Folder, roots: Roots) -> Iterable[Sample | DataIssue]:
    """One sample a row, several classes joined by commas; of regions one sample for each label.

    Raises:
        DataError: naming the row.
    """
    values = {name: value for name, value in row.values.items() if name not in NOTES}
    notes = {name: row.values[name] for name in NOTES if row.values.get(name)}
    labels, regions = _label_column(values), _region_column(values)
    stated = values.pop(labels, []) if labels else []
    marks = values.pop(regions, []) if regions else []
    captions = bool(stated) and sum(len(text.split()) for text in stated) >= WORDS_OF_A_CAPTION * len(stated)
    if labels and not captions and not marks:
        values[labels] = ", ".join(stated)
    samples = read_columns(Row(row.source, values, row.split), folder, roots)
    for item in adjusted(samples, lambda sample: replace(sample, extra={**sample.extra, **notes})):
        if isinstance(item, DataIssue):
            yield item
        elif marks:
            yield from _of_regions(item, marks)
        else:
            yield captioned(item, stated) if captions else item


def _of_regions(base: Sample, marks: list[Mapping[str, Any]]) -> Iterator[Sample | DataIssue]:
    """Boxes by their left top corner, and outlines as a list of numbers, in pixels."""
    size = image_size(base.media[0])
    regions = []
    for mark in marks:
        yield from unread_keys(mark, REGION_KEYS, base.source, "region")
        points = mark.get("points")
        if isinstance(points, list) and points and not isinstance(points[0], list):
            points = list(zip(points[::2], points[1::2], strict=False))
        if points is None:
            try:
                left, top, width, height = (float(mark[name]) for name in ("x", "y", "width", "height"))
            except (KeyError, TypeError, ValueError):
                raise DataError(f"{base.source}: a box has x, y, width and height — correct this row") from None
            points = [(left, top), (left + width, top + height)]
        regions.append(Region(str(mark["label"]), scaled(points, size, base.source)))
    yield from region_samples(base, regions)


LAYOUT = folder_layout(recognised(recognises), samples_of)
