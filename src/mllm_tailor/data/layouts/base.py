"""What a layout is, and how label files of a folder are found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue

PART_NAMES = frozenset(
    {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing", "held_out", "heldout"}
)
MEDIA_FOLDERS = ("", "images", "image", "img", "media", "videos", "audio")


@dataclass(frozen=True)
class Layout:
    """`detect` looks without reading everything; `read` yields samples, and faults for rows it cannot use."""

    detect: Callable[[Path], bool]
    read: Callable[[Path], Iterator[Sample | DataIssue]]


def part_of(name: str) -> str | None:
    """The part of the data a file or folder is named after: `train-00000-of-00002` -> `train`."""
    word = name.lower().split("-")[0].split(".")[0]
    return word if word in PART_NAMES else None


def label_files(path: Path, *suffixes: str) -> list[tuple[Path, str | None]]:
    """(file, part) of every label file at `path`, in it, in its `data` folder, or in folders named after parts."""
    if path.is_file():
        return [(path, part_of(path.stem))] if path.name.lower().endswith(suffixes) else []
    if not path.is_dir():
        return []
    return [
        (folder / name, part_of(name) or part_of(folder.name))
        for folder in (path, *_searched(path))
        for name in sorted(_file_names(folder, suffixes))
    ]


def _searched(path: Path) -> list[Path]:
    with os.scandir(path) as entries:  # folders of pictures hold very many entries, and most need no Path and no stat
        names = [entry.name for entry in entries if (entry.name == "data" or part_of(entry.name)) and entry.is_dir()]
    return [path / name for name in sorted(names)]


def _file_names(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.name.lower().endswith(suffixes) and entry.is_file()]


def roots_of(file: Path, path: Path) -> tuple[Path, ...]:
    """Folders a row of `file` may mean: the file's own, the data set's, and their usual media folders.

    None of them lies outside the data set, by a link or otherwise.
    """
    outer = path if path.is_dir() else path.parent
    whole = outer.resolve()
    folders = dict.fromkeys(folder / inner for folder in (file.parent, outer) for inner in MEDIA_FOLDERS)
    return tuple(folder for folder in folders if folder.is_dir() and folder.resolve().is_relative_to(whole))
