"""labelme: a JSON file beside each image, with `shapes` (boxes and outlines), `flags` and `imagePath`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import read_json
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data.columns import locate
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import kind_of
from mllm_tailor.data.keys import unread_keys
from mllm_tailor.data.layouts.base import Folder, LabelFile, Layout, Roots
from mllm_tailor.data.layouts.regions import Region, region_samples, scaled, size_of
from mllm_tailor.media.open import pages_of
from mllm_tailor.media.source import decode_data_uri, media_kind

CIRCLE_CORNERS = 24  # of the outline that stands for a circle
FILE_KEYS = ("version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth")
SHAPE_KEYS = ("label", "points", "group_id", "shape_type", "flags", "description")
OUTLINES = ("polygon", "rectangle", "circle")


def _files(folder: Folder) -> list[LabelFile]:
    return [file for file in folder.label_files(".json") if {"shapes", "imagePath"} <= set(file.head)]


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample for each label of an image; of an image with a flag and no shape, its class."""
    for file in _files(folder):
        source = f"{file.path}:1"
        try:
            yield from _samples(read_json(file.path), file, folder.roots(file.path), source)
        except DataError as error:
            yield DataIssue.of(error, source)


def _samples(content: Any, file: LabelFile, roots: Roots, source: str) -> Iterator[Sample | DataIssue]:
    shapes, flags = content.get("shapes"), content.get("flags") or {}
    if not isinstance(shapes, list) or not isinstance(flags, Mapping):
        raise DataError(f"{source}: `shapes` should be a list, found {kind_of(shapes)} — correct the file")
    yield from unread_keys(content, FILE_KEYS, source)
    for shape in shapes:
        yield from unread_keys(shape, SHAPE_KEYS, source, "shape")
    raised = _raised(flags)
    base = Sample(file.path.stem, _media(content, roots, source), split=file.split, source=source)
    size = size_of(base.media, (content.get("imageWidth"), content.get("imageHeight")))
    regions: list[Region] = []
    for shape in shapes:
        kind = shape.get("shape_type", "polygon") if isinstance(shape, Mapping) else None
        if isinstance(kind, str) and kind in OUTLINES:
            regions.append(_region(shape, kind, size, source))
        else:
            problem = f"a shape of the type {kind!r} is left out"
            yield DataIssue(source, problem, f"outline it ({', '.join(OUTLINES)}) to use it", None, "warning")
    if raised and not regions:
        yield replace(base, fields={"label": raised})
    elif not regions:
        yield DataIssue(source, "neither a shape nor a flag", "label it, or remove the file")
    yield from region_samples(replace(base, extra={"flags": raised}) if raised else base, regions)


def _raised(flags: Any) -> str:
    """The flags of an image or shape that are set."""
    return ", ".join(str(name) for name, value in flags.items() if value) if isinstance(flags, Mapping) else ""


def _media(content: Mapping[str, Any], roots: Roots, source: str) -> tuple[Media, ...]:
    name, data = content.get("imagePath"), content.get("imageData")
    if not isinstance(name, str) or not name:
        raise DataError(f"{source}: `imagePath` should be text, found {kind_of(name)} — correct the file")
    path = locate(name.replace("\\", "/").rpartition("/")[2] if ".." in name else name, roots, source)
    if not path.exists() and isinstance(data, str):
        return (Media("image", data=decode_data_uri(f"data:image/png;base64,{data}", source)),)
    return pages_of(path, media_kind(name) or "image")


def _region(shape: Mapping[str, Any], kind: str, size: tuple[float, float], source: str) -> Region:
    label, points = shape.get("label"), shape.get("points")
    if not isinstance(label, str) or not isinstance(points, list):
        raise DataError(f"{source}: a shape needs a `label` and `points` — correct the file")
    if not all(isinstance(point, list) for point in points) or len(points) < (3 if kind == "polygon" else 2):
        raise DataError(f"{source}: `{label}` has too few points for a {kind} — correct the shape")
    if kind == "circle":
        points = _circle(points, source)
    if kind == "rectangle" and len(points) == 4:  # since labelme 5.5: all four corners
        points = [points[0], points[2]]
    stated = {"description": shape.get("description"), "group_id": shape.get("group_id")}
    stated["shape_flags"] = _raised(shape.get("flags"))
    extra = {name: value for name, value in stated.items() if value not in (None, "")}
    return Region(label, scaled(points, size, source), extra)


def _circle(points: list[Any], source: str) -> list[list[float]]:
    """The outline of a circle that labelme stores as its centre and a point on it."""
    (x, y), (a, b) = scaled(points[:2], (1, 1), source)
    radius = math.hypot(a - x, b - y)
    angles = (2 * math.pi * index / CIRCLE_CORNERS for index in range(CIRCLE_CORNERS))
    return [[x + radius * math.cos(angle), y + radius * math.sin(angle)] for angle in angles]


LAYOUT = Layout(lambda folder: bool(_files(folder)), read, _files)
