"""COCO: one JSON file with `images`, `annotations` and `categories`; captions, boxes or outlines.

Annotations with a caption give one sample an image with all its captions; those with a segmentation (as polygons) or a
`bbox` give one sample for each category of an image. Crowds are named and left out; an image with a run-length mask is
refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import read_json
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.columns import group_key, locate
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.json_rows import objects_in, split_of
from mllm_tailor.data.jsonl import kind_of
from mllm_tailor.data.keys import unread_keys
from mllm_tailor.data.layouts.answers import captioned
from mllm_tailor.data.layouts.base import Folder, LabelFile, Layout, Roots
from mllm_tailor.data.layouts.regions import Region, region_samples, scaled, size_of
from mllm_tailor.media.open import pages_of
from mllm_tailor.media.source import media_kind

FEWEST_NUMBERS = 6  # three corners of an outline
FILE_KEYS = ("info", "licenses", "images", "annotations", "categories")
CATEGORY_KEYS = ("id", "name", "supercategory")
MARK_KEYS = ("id", "image_id", "category_id", "caption", "segmentation", "bbox", "area", "iscrowd")


def _files(folder: Folder) -> list[LabelFile]:
    files = {file.path: file for file in (*folder.files_in("annotations", ".json"), *folder.label_files(".json"))}
    return [file for file in files.values() if _is_coco(file.head)]


def _is_coco(head: Mapping[str, Any]) -> bool:
    images = head.get("images")
    first = images[0] if isinstance(images, list) and images else None
    if not isinstance(first, dict) or not {"id", "file_name"} <= set(first):
        return False
    return "annotations" in head or "categories" in head or list(head)[-1] == "images"  # the rest may be cut off


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """The samples of every image that has annotations; an image without any is named."""
    for file in _files(folder):
        try:
            content = read_json(file.path)
            yield from _read(content, file, folder)
        except DataError as error:
            yield DataIssue.of(error, str(file.path))


def _read(content: Mapping[str, Any], file: LabelFile, folder: Folder) -> Iterator[Sample | DataIssue]:
    split = file.split or _split_in(file.path.stem)
    roots = folder.roots(file.path)
    categories = objects_in(content, "categories", str(file.path))
    names = {str(entry.get("id")): entry for entry in categories}
    yield from unread_keys(content, FILE_KEYS, str(file.path))
    for entry in categories:
        yield from unread_keys(entry, CATEGORY_KEYS, f"{file.path}:categories", "category")
    annotations: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for number, annotation in enumerate(objects_in(content, "annotations", str(file.path)), 1):
        annotations[str(annotation.get("image_id"))].append(annotation)
        yield from unread_keys(annotation, MARK_KEYS, f"{file.path}:annotations:{number}", "annotation")
    for number, image in enumerate(objects_in(content, "images", str(file.path)), 1):
        source = f"{file.path}:images:{number}"
        marks = annotations.pop(str(image.get("id")), [])
        if not marks:
            yield DataIssue(
                source, f"{image.get('file_name')} has no annotation", "annotate it or remove it", None, "warning"
            )
            continue
        try:
            base = _base(image, roots, split, source)
            yield from _samples(base, image, marks, names)
        except DataError as error:
            yield DataIssue.of(error, source)
    for identifier in annotations:
        problem = f"annotations of an image with the id {identifier}, which is not in `images`"
        yield DataIssue(f"{file.path}:annotations", problem, "add the image, or remove them")


def _split_in(stem: str) -> str | None:
    """`instances_train2017` -> `train`."""
    return next((split for word in stem.split("_")[::-1] if (split := split_of(word))), None)


def _base(image: Mapping[str, Any], roots: Roots, split: str | None, source: str) -> Sample:
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise DataError(f"{source}: `file_name` should be text, found {kind_of(name)} — correct this image")
    media = pages_of(locate(name, roots, source), media_kind(name) or "image")
    known = ("id", "file_name", "width", "height")
    extra = {key: value for key, value in image.items() if key not in known}
    return Sample(Path(name).stem, media, group=group_key(image.get("group")), split=split, source=source, extra=extra)


def _samples(
    base: Sample, image: Mapping[str, Any], marks: Sequence[Mapping[str, Any]], names: Mapping[str, Mapping[str, Any]]
) -> Iterator[Sample | DataIssue]:
    captions = [str(mark["caption"]) for mark in marks if mark.get("caption")]
    if captions:
        yield captioned(base, captions)
        if len(captions) < len(marks):
            problem = f"{len(marks) - len(captions)} annotations beside the captions are left out"
            yield DataIssue(base.source, problem, "keep captions and boxes in files of their own", None, "warning")
        return
    regions: list[Region] = []
    size = size_of(base.media, (image.get("width"), image.get("height")))
    for mark in marks:
        category = names.get(str(mark.get("category_id")))
        label = None if category is None else str(category.get("name"))
        if category is None or label is None:
            problem = f"an annotation has the category {mark.get('category_id')}, which is not in `categories`"
            yield DataIssue(base.source, problem, "add the category, or correct the annotation")
        elif mark.get("iscrowd"):
            problem = f"a crowd of `{label}` is left out"
            yield DataIssue(base.source, problem, "outline its members to use them", None, "warning")
        else:
            extra = {name: category[name] for name in ("supercategory",) if category.get(name)}
            regions += [replace(region, extra=extra) for region in _regions(mark, label, size, base.source)]
    yield from region_samples(base, regions)


def _regions(mark: Mapping[str, Any], label: str, size: tuple[float, float], source: str) -> Iterator[Region]:
    """The outlines of an annotation, else its box."""
    outlines = mark.get("segmentation")
    if isinstance(outlines, Mapping):
        raise DataError(
            f"{source}: `{label}` is a mask in run lengths, which is not read — convert it to polygons, or take "
            "`segmentation` out to learn the box"
        )
    if isinstance(outlines, list) and outlines:
        for outline in outlines:
            if not isinstance(outline, list) or len(outline) < FEWEST_NUMBERS or len(outline) % 2:
                raise DataError(f"{source}: an outline of `{label}` is not three points or more — correct it")
            yield Region(label, scaled(list(zip(outline[::2], outline[1::2], strict=True)), size, source))
        return
    box = mark.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise DataError(f"{source}: `{label}` has neither polygons nor a box [x, y, width, height] — annotate it")
    (left, top), (width, height) = scaled([box[:2], box[2:]], size, source)
    yield Region(label, ((left, top), (left + width, top + height)))


LAYOUT = Layout(lambda folder: bool(_files(folder)), read, _files)
