"""Boxes in XML: Pascal VOC (a file an image) and CVAT (one file of all images, with boxes, outlines and tags)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import MAX_LINE_BYTES, read_limited
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.columns import locate
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.json_rows import split_of
from mllm_tailor.data.layouts.base import Folder, Layout, Roots
from mllm_tailor.data.layouts.regions import Region, region_samples, scaled, size_of
from mllm_tailor.media.open import pages_of

FOLDERS = ("annotations", "xml", "labels")
# Of VOC: where the image was, how the object lies in it, and what was not filled in.
HARMLESS = frozenset(
    {"folder", "filename", "path", "source", "owner", "size", "segmented", "object", "name", "pose", "truncated"}
    | {"difficult", "occluded", "bndbox", "id", "depth", "width", "height"}
)
CORNERS, CVAT_CORNERS = ("xmin", "ymin", "xmax", "ymax"), ("xtl", "ytl", "xbr", "ybr")


def _files(folder: Folder) -> list[tuple[Path, str | None]]:
    """(.xml file, split) of the data set's own folder, and of those inside that are named after labels or splits."""
    names = [entry.name for entry in folder.listing() if entry.is_dir()]
    inner = [folder.path / name for name in names if split_of(name) or name.lower() in FOLDERS]
    paths = [folder.path] if folder.path.is_dir() else []
    return [
        (path / entry.name, split_of(path.name) if path != folder.path else None)
        for path in (*paths, *inner)
        for entry in folder.listing(path)
        if entry.name.lower().endswith(".xml")
    ]


def _parsed(path: Path) -> ElementTree.Element:
    """The root of an XML file; one that defines entities, which could grow without end, is refused.

    Raises:
        DataError: naming the file.
    """
    try:
        data = read_limited(path, MAX_LINE_BYTES)
        if b"<!ENTITY" in data or b"<!DOCTYPE" in data:
            raise DataError(f"{path}: defines entities, which are not read — export it without a DOCTYPE")
        return ElementTree.fromstring(data)  # noqa: S314 (without entities)
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise DataError(f"{path}: not readable XML ({error}) — export it again") from None


def detect(folder: Folder) -> bool:
    """Whether the first .xml file describes images with objects."""
    files = _files(folder)
    try:
        return bool(files) and _form(_parsed(files[0][0])) is not None
    except DataError:
        return False


def _form(root: ElementTree.Element) -> str | None:
    if root.tag == "annotation" and (root.find("object") is not None or root.find("size") is not None):
        return "voc"
    return "cvat" if root.tag == "annotations" and root.find("image") is not None else None


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample for each label of an image; of CVAT's tags, the class of an image."""
    for path, split in _files(folder):
        source = f"{path}:1"
        try:
            root = _parsed(path)
            roots = (*folder.roots(path),)
            if _form(root) == "voc":
                yield from _of_voc(root, path, roots, (split, source))
            elif _form(root) == "cvat":
                for number, image in enumerate(root.iter("image"), 1):
                    yield from _of_cvat(image, roots, (split, f"{path}:{number}"))
            else:
                yield DataIssue(source, f"<{root.tag}> is neither of Pascal VOC nor of CVAT", "move it away")
        except DataError as error:
            yield DataIssue.of(error, source)


def _of_voc(
    root: ElementTree.Element, path: Path, roots: Roots, where: tuple[str | None, str]
) -> Iterator[Sample | DataIssue]:
    split, source = where
    yield from _unread(root, source)
    name = (root.findtext("filename") or f"{path.stem}.jpg").strip()
    media = pages_of(locate(name, roots, source), "image")
    stated = tuple(_number(root.findtext(f"size/{side}")) or None for side in ("width", "height"))
    size = size_of(media, (stated[0], stated[1]))
    regions: list[Region] = []
    for item in root.iter("object"):
        label = (item.findtext("name") or "").strip()
        corners = [_number(item.findtext(f"bndbox/{side}")) for side in CORNERS]
        left, top, right, bottom = corners
        if not label or left is None or top is None or right is None or bottom is None:
            raise DataError(f"{source}: an object has no name or no bndbox of four numbers — correct the file")
        regions.append(Region(label, scaled([(left, top), (right, bottom)], size, source)))
    if not regions:
        yield DataIssue(source, "no object", "leave the image out, or label it", None, "warning")
    yield from region_samples(Sample(path.stem, media, split=split, source=source), regions)


def _unread(root: ElementTree.Element, source: str) -> Iterator[DataIssue]:
    """Warnings for elements of a VOC file that no reader uses, and for text between elements."""
    known = {*HARMLESS, *CORNERS, *(child.tag for child in root.find("source") or ()), "annotation"}
    for element in root.iter():
        stray = [
            text.strip() for text in (element.tail, element.text if len(element) else None) if text and text.strip()
        ]
        if element.tag not in known or stray:
            what = f"the text {stray[0][:80]!r}" if stray else f"the element <{element.tag}>"
            yield DataIssue(source, f"{what} is not read", "take it out, or write it into the name", None, "warning")


def _of_cvat(image: ElementTree.Element, roots: Roots, where: tuple[str | None, str]) -> Iterator[Sample | DataIssue]:
    split, source = where
    try:
        name = image.get("name") or ""
        media = pages_of(locate(name, roots, source), "image")
        size = size_of(media, (_number(image.get("width")), _number(image.get("height"))))
        regions: list[Region] = []
        tags = [str(tag.get("label")) for tag in image.iter("tag")]
        for shape in image:
            label = str(shape.get("label"))
            extra = {str(item.get("name")): item.text for item in shape.iter("attribute") if item.text}
            if shape.tag == "box" and not float(shape.get("rotation") or 0):
                left, top, right, bottom = (_number(shape.get(side)) for side in CVAT_CORNERS)
                regions.append(Region(label, scaled([(left, top), (right, bottom)], size, source), extra))
            elif shape.tag == "polygon":
                points = [tuple(map(_number, point.split(","))) for point in (shape.get("points") or "").split(";")]
                regions.append(Region(label, scaled(points, size, source), extra))
            elif shape.tag != "tag":
                problem = f"a <{shape.tag}>{' that is turned' if shape.tag == 'box' else ''} is left out"
                yield DataIssue(source, problem, "draw it as a box or a polygon to use it", None, "warning")
        base = Sample(Path(name).stem, media, split=image.get("subset") or split, source=source)
        if not regions and not tags:
            yield DataIssue(source, "no object", "leave the image out, or label it", None, "warning")
        elif not regions:
            yield replace(base, fields={"label": ", ".join(tags)})
        yield from region_samples(replace(base, extra={"tags": tags}) if tags else base, regions)
    except DataError as error:
        yield DataIssue.of(error, source)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


LAYOUT = Layout(detect, read)
