"""What a layout is, and how label files of a folder are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mllm_tailor.core.sample import Sample
from mllm_tailor.data.faults import Fault

PART_NAMES = frozenset(
    {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing", "held_out", "heldout"}
)
MEDIA_FOLDERS = ("", "images", "image", "img", "media", "videos", "audio")


@dataclass(frozen=True)
class Layout:
    """`recognise` looks without reading everything; `read` yields samples, and faults for rows it cannot use."""

    recognise: Callable[[Path], bool]
    read: Callable[[Path], Iterator[Sample | Fault]]


def part_of(name: str) -> str | None:
    """The part of the data a file or folder is named after: `train-00000-of-00002` -> `train`."""
    word = name.lower().split("-")[0].split(".")[0]
    return word if word in PART_NAMES else None


def label_files(path: Path, *suffixes: str) -> list[tuple[Path, str | None]]:
    """(file, part) of every label file at `path`, in it, in its `data` folder, or in folders named after parts."""
    if path.is_file():
        return [(path, part_of(path.stem))] if path.suffix.lower() in suffixes else []
    if not path.is_dir():
        return []
    folders = [path, *(folder for folder in sorted(path.iterdir()) if folder.is_dir() and _is_searched(folder.name))]
    return [
        (file, part_of(file.stem) or part_of(folder.name))
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in suffixes and file.is_file()
    ]


def _is_searched(name: str) -> bool:
    return name == "data" or part_of(name) is not None


def roots_of(file: Path, path: Path) -> tuple[Path, ...]:
    """Folders a row of `file` may mean: the file's own, the data set's, and their usual media folders."""
    outer = path if path.is_dir() else path.parent
    folders = dict.fromkeys(folder / inner for folder in (file.parent, outer) for inner in MEDIA_FOLDERS)
    return tuple(folder for folder in folders if folder.is_dir())
