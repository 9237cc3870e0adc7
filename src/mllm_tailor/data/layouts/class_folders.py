"""A folder for each class, as torchvision's ImageFolder and Hugging Face's image and audio folders have it.

The folders may lie in folders of splits (`train/cat/1.jpg`). The class of a file is the folder it lies in; files of one
class may lie deeper (`cat/persian/1.jpg` is a `cat`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import walk
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.json_rows import split_of
from mllm_tailor.data.layouts.base import MEDIA_FOLDER, ROW_SUFFIXES, Folder, Layout
from mllm_tailor.media.open import pages_of
from mllm_tailor.media.source import inside, media_kind

FEWEST_CLASSES = 2
# Folders that hold the two halves of other layouts, and no class.
NO_CLASSES = frozenset({"labels", "annotations", "entities", "key", "documents", "masks", "ocr"})
HIDDEN = (".", "__")


def _class_folders(folder: Folder) -> list[tuple[Path, str | None]]:
    """(folder of classes, split) pairs: folders of splits where there are any, else the data set's own folder."""
    inner = _folders(folder, folder.path)
    splits = [name for name in inner if split_of(name)]
    groups = [(folder.path / name, split_of(name)) for name in splits] or [(folder.path, None)]
    return [(path, split) for path, split in groups if _classes(folder, path)]


def _folders(folder: Folder, path: Path) -> list[str]:
    return [entry.name for entry in folder.listing(path) if not entry.name.startswith(HIDDEN) and entry.is_dir()]


def _classes(folder: Folder, path: Path) -> list[str]:
    """The names of the classes; empty where the folders are no classes."""
    names = [
        name for name in _folders(folder, path) if name.lower() not in NO_CLASSES and not MEDIA_FOLDER.fullmatch(name)
    ]
    filled = [name for name in names if next(_media_files(path / name), None)]
    return filled if len(filled) >= FEWEST_CLASSES else []


def _media_files(path: Path) -> Iterator[str]:
    """Media files in a folder and below it, relative to it, in order of name."""
    for root, _, names in walk(path):
        yield from (os.path.relpath(os.path.join(root, name), path) for name in names if media_kind(name))  # noqa: PTH118


def detect(folder: Folder) -> bool:
    """Whether two folders or more hold media, and no file of rows lies beside them."""
    return bool(_class_folders(folder)) and not folder.label_files(*ROW_SUFFIXES)


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample a file, its folder as the field `label`; files that are no media are named."""
    for path, split in _class_folders(folder):
        for entry in folder.listing(path):
            if media_kind(entry.name):
                problem = "lies beside the folders of the classes, in none of them"
                yield DataIssue(f"{path / entry.name}:1", problem, "move it into the folder of its class")
        for label in _classes(folder, path):
            yield from _read_class(path / label, label, split)


def _read_class(path: Path, label: str, split: str | None) -> Iterator[Sample | DataIssue]:
    for root, _, names in walk(path):
        for name in names:
            file = Path(root, name)
            source = f"{file}:1"
            kind = media_kind(name)
            if kind is None:
                if not name.startswith(HIDDEN) and name != "Thumbs.db":
                    yield DataIssue(source, "neither an image, a video nor a recording", "convert it or move it away")
                continue
            try:
                located = inside(path, str(file.relative_to(path)), source)
                yield Sample(file.stem, pages_of(located, kind), fields={"label": label}, split=split, source=source)
            except DataError as error:
                yield DataIssue.of(error, source)


LAYOUT = Layout(detect, read)
