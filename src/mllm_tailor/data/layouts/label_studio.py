"""Label Studio's exports: JSON (tasks with `data` and `annotations`) and JSON_MIN (one flat row a task).

Choices, texts, numbers and ratings become fields named after their control, and what a region reads a field named after
the region's label; other boxes and outlines become one sample for each label of an image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row, kind_of
from mllm_tailor.data.keys import KeyReader, unread_keys
from mllm_tailor.data.layouts.base import Folder, LabelFile, Layout, Roots, recognised
from mllm_tailor.data.layouts.columns import read_columns
from mllm_tailor.data.layouts.regions import Region, region_samples, scaled

PERCENT = (100.0, 100.0)  # the width and height of every image in Label Studio's coordinates
MIN_KEYS = frozenset({"annotator", "annotation_id", "created_at", "updated_at", "lead_time"})
TASK_KEYS = frozenset(
    {"id", "data", "annotations", "predictions", "drafts", "file_upload", "meta", "inner_id", "project", "updated_by"}
    | {"total_annotations", "cancelled_annotations", "total_predictions", "comment_count", "unresolved_comment_count"}
    | {"completions", "last_comment_updated_at", "comment_authors", "created_at", "updated_at", "completed_at"}
)
ANNOTATION_KEYS = frozenset(
    {"id", "completed_by", "result", "was_cancelled", "ground_truth", "created_at", "updated_at", "draft_created_at"}
    | {"lead_time", "prediction", "result_count", "unique_id", "import_id", "last_action", "bulk_created", "task"}
    | {"project", "updated_by", "parent_prediction", "parent_annotation", "last_created_by"}
)
RESULT_KEYS = frozenset(
    {"id", "from_name", "to_name", "type", "value", "origin", "original_width", "original_height", "image_rotation"}
    | {"score", "readonly", "hidden", "parentID"}
)
VALUE_KEYS = frozenset({"x", "y", "width", "height", "rotation", "points", "text", "closed"})
FIX = "leave it out of the export, or write it into a control"
_UPLOAD = re.compile(r"^/?(?:data/)?(?:upload/(?:\d+/)?(?:[0-9a-f]{6,}-)?|local-files/\?d=)")
_REGIONS = ("rectanglelabels", "polygonlabels", "labels")
_SHAPES = ("rectangle", "polygon")  # drawn, and labelled by a result of the same id


def _is_task(first: Mapping[str, Any]) -> bool:
    annotations = first.get("annotations", first.get("completions"))
    return isinstance(first.get("data"), dict) and isinstance(annotations, list)


def _is_flat(first: Mapping[str, Any]) -> bool:
    return {"annotation_id", "lead_time"} <= set(first)


_files = recognised(lambda first: _is_task(first) or _is_flat(first))


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """The samples of every task that has an annotation; a task without any is named."""
    for file in _files(folder):
        yield from _read_file(file, folder)


def _read_file(file: LabelFile, folder: Folder) -> Iterator[Sample | DataIssue]:
    roots = folder.roots(file.path)
    for row in file.rows():
        if isinstance(row, DataIssue):
            yield row
            continue
        try:
            task = _task(row.values, row.source) if "data" in row.values else _flat(row.values, row.source)
            if task is None:
                yield DataIssue(row.source, "not annotated", "annotate the task, or leave it out", None, "warning")
                continue
            if "data" in row.values:
                yield from _unread(row.values, row.source)
            yield from _samples(row, *task, folder, roots)
        except DataError as error:
            yield DataIssue.of(error, row.source)


def _samples(
    row: Row, values: dict[str, Any], regions: list[Region], folder: Folder, roots: Roots
) -> Iterator[Sample | DataIssue]:
    values = {name: _file_name(value, folder, roots) for name, value in values.items()}
    for sample in read_columns(Row(row.source, values, row.split), folder, roots):
        if isinstance(sample, DataIssue):
            yield sample
            continue
        if sample.answer is not None or sample.fields or not regions:
            yield sample
        yield from region_samples(sample, regions)


def _file_name(value: Any, _folder: Folder, roots: Roots) -> Any:
    """The name of an uploaded file as it was before the upload, where no file has the name it was given then."""
    if not isinstance(value, str) or not _UPLOAD.match(value):
        return value
    stored = unquote(value.rpartition("/")[2].removeprefix("?d="))
    original = unquote(_UPLOAD.sub("", value))
    return next((name for name in (stored, original) if any((root / name).is_file() for root in roots)), original)


def _task(task: Mapping[str, Any], source: str) -> tuple[dict[str, Any], list[Region]] | None:
    """The columns and regions of a task of the JSON export; None where it was not annotated."""
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list) or not isinstance(task.get("data"), Mapping):
        raise DataError(f"{source}: `annotations` should be a list, found {kind_of(annotations)} — export it again")
    done = _done(task)
    results = done[0].get("result") if done else None
    if not results:
        return None
    if not isinstance(results, list) or not all(isinstance(result, Mapping) for result in results):
        raise DataError(f"{source}: `result` should be a list of objects — export it again")
    for key, value in ((key, result.get(key)) for result in results for key in ("id", "type")):
        if value is not None and not isinstance(value, (str, int)):
            raise DataError(f"{source}: `{key}` of a result should be text, found {kind_of(value)} — export it again")
    labels: dict[str, Any] = {}
    regions: list[Region] = []
    labelled = {result.get("id"): result for result in results if result.get("type") in _REGIONS}
    read = {result.get("id") for result in results if _states_text(result)} & set(labelled)
    for result in results:
        identifier = result.get("id")
        if identifier in read and _states_text(result):  # what a region reads, under the region's label
            result = {**result, "from_name": ", ".join(_labels_of(labelled[identifier]))}
        elif identifier in read or (result.get("type") in _SHAPES and identifier in labelled):
            continue  # the box of a text that is read; or a shape, which its label repeats
        _add(result, labels, regions, source)
    return {"id": task.get("id"), **task["data"], **labels}, regions


def _states_text(result: Mapping[str, Any]) -> bool:
    return result.get("type") in ("textarea", "number")


def _labels_of(result: Mapping[str, Any]) -> list[str]:
    value = result.get("value")
    stated = value if isinstance(value, Mapping) else {}
    return [str(label) for name in _REGIONS if isinstance(stated.get(name), list) for label in stated[name]]


def _done(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The annotations of a task that were not cancelled, those marked as ground truth first."""
    annotations = task.get("annotations", task.get("completions"))
    stated = annotations if isinstance(annotations, list) else []
    done = [entry for entry in stated if isinstance(entry, Mapping) and not entry.get("was_cancelled")]
    return sorted(done, key=lambda entry: not entry.get("ground_truth"))


def _unread(task: Mapping[str, Any], source: str) -> Iterator[DataIssue]:
    """Warnings for what a task of the JSON export states and no reader uses."""
    yield from unread_keys(task, TASK_KEYS, source, "task", FIX)
    done = _done(task)
    for annotation in done:
        yield from unread_keys(annotation, ANNOTATION_KEYS, source, "annotation", FIX)
    listed = done[0].get("result") if done else None
    results = [result for result in listed if isinstance(result, Mapping)] if isinstance(listed, list) else []
    for result in results:
        yield from unread_keys(result, RESULT_KEYS, source, "result", FIX)
        if isinstance(result, Mapping):
            known = {*VALUE_KEYS, *_REGIONS, str(result.get("type"))}
            yield from unread_keys(result.get("value"), known, source, "result's value", FIX)
            name = str(result.get("from_name"))
            if result.get("type") in _REGIONS and any(
                _states_text(other) and other.get("id") == result.get("id") for other in results
            ):
                problem = "boxes of regions whose text is read are not learned"
                yield DataIssue(source, problem, "take the texts out of the export to ground them", None, "warning")
            if name in task["data"] and result.get("type") not in (*_REGIONS, *_SHAPES):
                problem = f"`{name}` is a column of the task and a control; the control's value is read"
                yield DataIssue(source, problem, "rename the control to keep both", None, "warning")
    if len(done) > 1:
        problem = f"{len(done)} annotations, of which the first (or the one marked as ground truth) is read"
        yield DataIssue(source, problem, "export the annotation that is right", None, "warning")


def _add(result: Mapping[str, Any], values: dict[str, Any], regions: list[Region], source: str) -> None:
    """Adds what one control says to the columns or the regions."""
    kind, value = result.get("type"), result.get("value")
    name = str(result.get("from_name"))
    if result.get("image_rotation"):
        raise DataError(f"{source}: the image was turned while it was labelled — turn the file, and export it again")
    if kind == "relation":
        raise DataError(f"{source}: a relation between regions is not read — take the relations out of the export")
    if not isinstance(value, Mapping) or not isinstance(kind, str):
        raise DataError(f"{source}: a result of `{name}` has no value — export it again")
    _refuse_span(name, value, source)
    if kind in _REGIONS and ({"x", "y", "width", "height"} <= set(value) or "points" in value):
        regions += _regions(value, source)
        return
    if kind == "brushlabels":
        raise DataError(f"{source}: `{name}` is painted with a brush, which is not read — outline it with polygons")
    stated = value.get(kind, value.get("text"))
    if stated is None:
        raise DataError(f"{source}: `{name}` is a {kind}, which is not read — leave it out of the export")
    if isinstance(stated, list):
        flat = [" > ".join(map(str, item)) if isinstance(item, list) else str(item) for item in stated]
        stated = "\n".join(flat) if kind == "textarea" else ", ".join(flat)
    if name in values and kind != "textarea" and values[name] != stated:
        raise DataError(f"{source}: `{name}` has the values {values[name]!r} and {stated!r} — keep one a task")
    values[name] = f"{values[name]}\n{stated}" if name in values and kind == "textarea" else stated


def _refuse_span(name: str, value: Mapping[str, Any], source: str) -> None:
    if {"start", "end"} <= set(value):
        raise DataError(
            f"{source}: `{name}` labels a span from {value['start']} to {value['end']}, which is not read — make a row "
            "of each span, with `start` and `end`"
        )


def _regions(value: Mapping[str, Any], source: str) -> Iterator[Region]:
    labels = next((value[name] for name in _REGIONS if isinstance(value.get(name), list)), ["region"])
    for label in labels:
        if "points" in value:
            yield Region(str(label), scaled(value["points"], PERCENT, source))
            continue
        if not {"x", "y", "width", "height"} <= set(value):
            raise DataError(f"{source}: a region of `{label}` is neither a box nor an outline — draw it as one of them")
        if value.get("rotation"):
            raise DataError(f"{source}: a box of `{label}` is turned — outline it with a polygon")
        corner = (value["x"], value["y"])
        ((left, top), (width, height)) = scaled([corner, (value["width"], value["height"])], PERCENT, source)
        yield Region(str(label), ((left, top), (left + width, top + height)))


def _flat(row: Mapping[str, Any], source: str) -> tuple[dict[str, Any], list[Region]] | None:
    """The columns and regions of a row of JSON_MIN."""
    values: dict[str, Any] = {}
    regions: list[Region] = []
    for name, value in row.items():
        if name in MIN_KEYS:
            continue
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for item in value:
                _refuse_span(name, item, source)
                unread = KeyReader(item, source, f"`{name}`")
                unread.skip(*VALUE_KEYS, *_REGIONS, "original_width", "original_height")
                unread.refuse(dict.fromkeys(unread.unread(), "leave it out of the export"))
                regions += _regions(item, source)
        elif isinstance(value, Mapping) and isinstance(value.get("choices"), list):
            values[name] = ", ".join(map(str, value["choices"]))
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            values[name] = "\n".join(value)
        else:
            values[name] = value
    return values, regions


LAYOUT = Layout(lambda folder: bool(_files(folder)), read, _files)
