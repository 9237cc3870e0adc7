"""YOLO: a .txt of each image's name, whose lines are a class and a box or an outline in shares of the image.

`0 0.5 0.5 0.2 0.2` is a class, the centre, the width and the height; more numbers are the corners of an outline. Label
files lie beside their images, or in `labels` where the images lie in `images`; the classes are named in `data.yaml`,
`classes.txt` or `obj.names`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import MAX_LINE_BYTES, read_limited
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.json_rows import split_of
from mllm_tailor.data.layouts.base import Folder, Layout
from mllm_tailor.data.layouts.regions import Region, region_samples
from mllm_tailor.data.text_rows import text_lines
from mllm_tailor.media.open import pages_of
from mllm_tailor.media.source import media_kind

LABELS, IMAGES = "labels", "images"
NAME_LISTS = ("classes.txt", "obj.names", "labels.txt")
DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml")
_LINE = re.compile(r"\d+(?:\s+(?:0|1|[01]?\.\d+|\d(?:\.\d+)?e-\d+)){4,}\s*", re.IGNORECASE)
LONGEST_LINE = 65_536  # characters


def _folders(folder: Folder) -> list[Path]:
    """Folders in which label files may lie: the data set's own, those of splits, and `labels` in or around them."""
    splits = [folder.path / entry.name for entry in folder.listing() if split_of(entry.name) and entry.is_dir()]
    labels = [path / LABELS for path in (folder.path, *splits)]
    inner = [path / entry.name for path in labels for entry in folder.listing(path) if entry.is_dir()]
    return [folder.path, *splits, *labels, *inner]


def _label_files(folder: Folder, path: Path) -> list[Path]:
    """The label files of a folder: .txt files with an image of their name."""
    texts = [path / entry.name for entry in folder.listing(path) if entry.name.lower().endswith(".txt")]
    return [text for text in texts if text.name not in NAME_LISTS and _image(folder, text) is not None]


def _image(folder: Folder, label: Path) -> Path | None:
    """The image of a label file, beside it or in `images` where the label lies in `labels`."""
    parts = label.parent.relative_to(folder.path).parts
    swapped = [IMAGES if part == LABELS else part for part in parts]
    for place in dict.fromkeys((label.parent, folder.path.joinpath(*swapped))):
        if name := folder.with_suffix(label.stem, (place,)):
            return place / name if media_kind(name) == "image" else None
    return None


def detect(folder: Folder) -> bool:
    """Whether a label file of an image begins with a line of numbers of this form."""
    first = next(
        (file for path in _folders(folder) for file in _label_files(folder, path) if file.stat().st_size), None
    )
    if first is None:
        return False
    with first.open(encoding="utf-8", errors="replace") as lines:
        return _LINE.fullmatch(lines.readline(LONGEST_LINE)) is not None


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample for each class of an image."""
    try:
        names = _names(folder)
    except DataError as error:
        yield DataIssue.of(error, str(folder.path))
        return
    for path in _folders(folder):
        split = next((split for part in path.relative_to(folder.path).parts if (split := split_of(part))), None)
        for label in _label_files(folder, path):
            source = f"{label}:1"
            try:
                image = _image(folder, label)
                assert image is not None, "only label files with an image are listed"
                regions = list(_regions(label, names))
                if not regions:
                    yield DataIssue(source, "no object", "leave the image out, or label it", None, "warning")
                base = Sample(label.stem, pages_of(image.resolve(), "image"), split=split, source=source)
                yield from region_samples(base, regions)
            except DataError as error:
                yield DataIssue.of(error, source)


def _names(folder: Folder) -> dict[int, str]:
    """The names of the classes by their numbers; empty where no file states them.

    Raises:
        DataError: for a description that cannot be read.
    """
    for name in DESCRIPTIONS:
        if (path := folder.path / name).is_file():
            try:
                content: Any = yaml.safe_load(read_limited(path, MAX_LINE_BYTES))
            except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
                raise DataError(f"{path}: cannot be read ({type(error).__name__}) — correct the file") from None
            stated = content.get("names") if isinstance(content, dict) else None
            listed = dict(enumerate(stated)) if isinstance(stated, list) else stated
            if isinstance(listed, dict):
                return {int(number): str(text) for number, text in listed.items() if str(number).isdecimal()}
    for name in NAME_LISTS:
        if (path := folder.path / name).is_file():
            texts = [line.text.strip() for line in text_lines(path) if not isinstance(line, DataIssue)]
            return dict(enumerate(texts))
    return {}


def _regions(label: Path, names: dict[int, str]) -> Iterator[Region]:
    for line in text_lines(label):
        if isinstance(line, DataIssue):
            raise DataError(f"{line.source}: {line.problem} — {line.fix}")
        words = line.text.split()
        try:
            number, values = int(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            values, number = [], -1
        outline = len(values) >= 6 and len(values) % 2 == 0
        if not (len(values) == 4 or outline) or not all(-0.01 <= value <= 1.01 for value in values):
            raise DataError(
                f"{line.source}: no class with a box or an outline in shares of the image — correct the line"
            )
        if number not in names:
            known = ", ".join((*DESCRIPTIONS[:1], *NAME_LISTS[:1]))
            raise DataError(f"{line.source}: the class {number} has no name — name the classes in {known}")
        if outline:
            yield Region(names[number], tuple(zip(values[::2], values[1::2], strict=True)))
            continue
        x, y, width, height = values
        yield Region(names[number], ((x - width / 2, y - height / 2), (x + width / 2, y + height / 2)))


LAYOUT = Layout(detect, read, beside=(*NAME_LISTS, *DESCRIPTIONS))
