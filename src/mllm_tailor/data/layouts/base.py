"""What a layout is, and how a layout looks at a folder: its label files, their first rows, where its media may lie."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.arrow_rows import arrow_rows, first_arrow_row
from mllm_tailor.data.csv_rows import csv_rows, first_csv_row
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.json_rows import first_json_row, json_file_rows, json_head, split_of
from mllm_tailor.data.jsonl import Row, build, first_object, jsonl_rows
from mllm_tailor.media.source import leads_inside, media_kind

MEDIA_FOLDER = re.compile(
    r"(?:^|_)(?:images?|imgs?|jpegimages|pictures?|figures|frames|media|videos?|audios?|clips|wavs?|png|jpe?g|flic?ke?r\w*)"
    r"(?:_|$)",
    re.IGNORECASE,
)
# Folders of label files that are looked into where none lies beside them, and how many they may hold.
LABEL_FOLDERS = frozenset({"meta", "metadata", "annotations", "annotation", "labels", "questions", "csv", "json"})
MOST_LABEL_FILES = 20
# What `datasets` writes beside its Arrow files.
ARROW_NOTES = frozenset({"state.json", "dataset_info.json", "dataset_dict.json"})

FirstRow = Callable[[Path], dict[str, Any]]
ReadRows = Callable[[Path, str | None], Iterator[Row | DataIssue]]
ROW_FILES: Mapping[str, tuple[FirstRow, ReadRows]] = {
    ".jsonl": (first_object, jsonl_rows),
    ".ndjson": (first_object, jsonl_rows),
    ".jsonl.gz": (first_object, jsonl_rows),
    ".json": (first_json_row, json_file_rows),
    ".csv": (first_csv_row, csv_rows),
    ".tsv": (first_csv_row, csv_rows),
    ".parquet": (first_arrow_row, arrow_rows),
    ".arrow": (first_arrow_row, arrow_rows),
}
ROW_SUFFIXES = tuple(ROW_FILES)


@dataclass(frozen=True)
class LabelFile:
    """A file of labels and the split that it, or its folder, is named after."""

    path: Path
    split: str | None = None

    @cached_property
    def suffix(self) -> str:
        """Its suffix, `.jsonl.gz` as one."""
        name = self.path.name.lower()
        return ".jsonl.gz" if name.endswith(".jsonl.gz") else self.path.suffix.lower()

    @cached_property
    def first(self) -> dict[str, Any]:
        """Its first readable row; empty where there is none."""
        return ROW_FILES[self.suffix][0](self.path)

    @cached_property
    def head(self) -> dict[str, Any]:
        """Of a .json file that holds an object: its keys, and their values as far as the first megabytes go."""
        return json_head(self.path) if self.suffix == ".json" else {}

    def rows(self) -> Iterator[Row | DataIssue]:
        """All its rows."""
        return ROW_FILES[self.suffix][1](self.path, self.split)


class Folder:
    """A data set as layouts look at it: a folder, or one file. Listings and first rows are read once.

    Media may also lie in `media_root`, a folder that only the user can name.
    """

    def __init__(self, path: str | Path, media_root: str | Path | None = None) -> None:
        self.path = Path(path)
        self.media_root = None if media_root is None else Path(media_root)
        self.links_out: list[Path] = []  # seen in listings; they lead out of the data set and are not followed
        self._label_files: dict[str, list[LabelFile]] = {}
        self._listings: dict[Path, list[os.DirEntry[str]]] = {}
        self._stems: dict[Path, dict[str, str]] = {}

    @property
    def outer(self) -> Path:
        """The folder itself, or the folder that holds the file."""
        return self.path if self.path.is_dir() else self.path.parent

    def listing(self, folder: Path | None = None) -> list[os.DirEntry[str]]:
        """The entries of a folder (default: the data set's own) in order of name; empty when it is not one.

        Links that lead out of the data set are left out and kept in `links_out`.

        Raises:
            DataError: naming a folder that cannot be listed.
        """
        folder = folder or self.path
        if folder not in self._listings:
            try:
                with os.scandir(folder) as entries:
                    inside = (entry for entry in entries if not self._leads_out(entry))
                    self._listings[folder] = sorted(inside, key=lambda entry: entry.name)
            except (FileNotFoundError, NotADirectoryError):
                self._listings[folder] = []
            except OSError as error:
                raise DataError(f"{folder}: cannot be listed ({error.strerror}) — check its permissions") from None
        return self._listings[folder]

    def _leads_out(self, entry: os.DirEntry[str]) -> bool:
        if not entry.is_symlink() or any(
            leads_inside(root, entry.path) for root in (self.outer, self.media_root) if root
        ):
            return False
        self.links_out.append(Path(entry.path))
        return True

    def label_files(self, *suffixes: str) -> list[LabelFile]:
        """Every file with such a suffix: the path itself, or in it, in its `data` folder and in folders of splits."""
        files = {suffix: self._files(suffix) for suffix in suffixes}
        order = {folder: number for number, folder in enumerate(self._searched)}
        return sorted(
            (file for group in files.values() for file in group),
            key=lambda file: (order.get(file.path.parent, 0), file.path.name),
        )

    def files_in(self, name: str, suffix: str) -> list[LabelFile]:
        """The files with this suffix in a folder inside the data set's."""
        inner = self.path / name
        return [
            LabelFile(inner / entry.name, split_of(entry.name))
            for entry in self.listing(inner)
            if entry.name.lower().endswith(suffix)
        ]

    def _files(self, suffix: str) -> list[LabelFile]:
        if suffix not in self._label_files:
            self._label_files[suffix] = list(self._find(suffix))
        return self._label_files[suffix]

    def _find(self, suffix: str) -> Iterator[LabelFile]:
        if self.path.is_file():
            if self.path.name.lower().endswith(suffix):
                yield LabelFile(self.path, split_of(self.path.stem))
            return
        for folder in self._searched:
            names = [entry.name for entry in self.listing(folder) if entry.name.lower().endswith(suffix)]
            if suffix == ".arrow":  # what `datasets` computed before from the same rows
                names = [name for name in names if not name.startswith("cache-")]
            arrow = suffix == ".json" and ARROW_NOTES & set(names) and self._is_saved(folder)
            for name in names:
                file = folder / name
                if file.is_file() and not (arrow and name in ARROW_NOTES):
                    split = folder.name if suffix == ".arrow" and folder != self.path else None
                    yield LabelFile(file, split or split_of(name) or split_of(folder.name))

    def _is_saved(self, folder: Path) -> bool:
        names = {entry.name for entry in self.listing(folder)}
        return "dataset_dict.json" in names or any(name.endswith(".arrow") for name in names)

    @cached_property
    def _searched(self) -> list[Path]:
        names = {entry.name for entry in self.listing()}
        folders = [
            self.path / entry.name
            for entry in self.listing()
            if (entry.name == "data" or split_of(entry.name) or "dataset_dict.json" in names) and entry.is_dir()
        ]
        if not any(self._row_files(folder) for folder in (self.path, *folders)):
            inner = [self.path / name for name in sorted(names) if name.lower() in LABEL_FOLDERS]
            folders += [folder for folder in inner if 0 < self._row_files(folder) <= MOST_LABEL_FILES]
        return [self.path, *folders]

    def _row_files(self, folder: Path) -> int:
        return sum(entry.name.lower().endswith(ROW_SUFFIXES) for entry in self.listing(folder))

    def roots(self, file: Path) -> tuple[Path, ...]:
        """Folders that a row of `file` may name media in: the file's, the data set's, and those named after media.

        None of them lies outside the data set, by a link or otherwise, but for `media_root`.
        """
        whole = self.outer.resolve()
        folders = [inner for folder in (file.parent, self.outer) for inner in self._media_folders(folder)]
        inside = [folder for folder in dict.fromkeys(folders) if folder.resolve().is_relative_to(whole)]
        return tuple(inside) if self.media_root is None else (self.media_root, *inside)

    def _media_folders(self, folder: Path) -> list[Path]:
        """The folder itself and the folders in it that are named after media or after a split."""
        entries = self.listing(folder)
        named = [entry.name for entry in entries if MEDIA_FOLDER.search(entry.name) or split_of(entry.name)]
        inner = [folder / name for name in named if (folder / name).is_dir()]
        deeper = [path / "images" for path in inner if split_of(path.name) and (path / "images").is_dir()]
        for path in inner:  # `images/train`
            if MEDIA_FOLDER.search(path.name):
                deeper += [path / entry.name for entry in self.listing(path) if split_of(entry.name) and entry.is_dir()]
        return [folder, *inner, *deeper]

    def with_suffix(self, name: str, roots: tuple[Path, ...]) -> str | None:
        """The file that a row names without its suffix, relative to the first root that holds it; None without one."""
        parent, _, stem = name.rpartition("/")
        for root in roots:
            if stem in (stems := self._stems_of(root / parent)):
                return f"{parent}/{stems[stem]}".lstrip("/")
        return None

    def _stems_of(self, folder: Path) -> dict[str, str]:
        """The media files of a folder by their names without suffix."""
        if folder not in self._stems:
            names = [entry.name for entry in self.listing(folder) if media_kind(entry.name)]
            self._stems[folder] = {os.path.splitext(name)[0]: name for name in names}  # noqa: PTH122
        return self._stems[folder]


@dataclass(frozen=True)
class Layout:
    """`detect` looks without reading everything; `read` yields samples, and issues for rows it cannot use.

    `files` are the label files that `read` would read, where the layout reads files of rows; `beside` are names of
    further files that it reads, with `*` for any characters.
    """

    detect: Callable[[Folder], bool]
    read: Callable[[Folder], Iterator[Sample | DataIssue]]
    files: Callable[[Folder], Iterable[LabelFile]] | None = None
    beside: tuple[str, ...] = ()


Recognises = Callable[[Mapping[str, Any]], bool]  # of the first row of a file
Roots = tuple[Path, ...]  # the folders that a row may name media in


def adjusted(items: Iterable[Sample | DataIssue], adjust: Callable[[Sample], Sample]) -> Iterator[Sample | DataIssue]:
    """Items with every sample adjusted and issues as they are."""
    for item in items:
        yield item if isinstance(item, DataIssue) else adjust(item)


def row_layout(
    recognises: Recognises,
    samples: Callable[[Row, Roots], Iterable[Sample | DataIssue]],
    suffixes: tuple[str, ...] = ROW_SUFFIXES,
) -> Layout:
    """The layout of files of rows, in any container, whose first row `recognises`."""
    return folder_layout(recognised(recognises, suffixes), lambda row, _, roots: samples(row, roots))


def recognised(recognises: Recognises, suffixes: tuple[str, ...] = ROW_SUFFIXES) -> Callable[[Folder], list[LabelFile]]:
    """Finds the files of rows whose first row `recognises`."""

    def files(folder: Folder) -> list[LabelFile]:
        return [file for file in folder.label_files(*suffixes) if file.first and recognises(file.first)]

    return files


def folder_layout(
    files: Callable[[Folder], list[LabelFile]],
    samples: Callable[[Row, Folder, Roots], Iterable[Sample | DataIssue]],
    beside: tuple[str, ...] = (),
) -> Layout:
    """The layout of certain files of rows; how a row is read may depend on the files that lie in the folder."""

    def read(folder: Folder) -> Iterator[Sample | DataIssue]:
        for file in files(folder):
            roots = folder.roots(file.path)
            yield from build(file.rows(), lambda row, roots=roots: samples(row, folder, roots))  # type: ignore[misc]

    return Layout(lambda folder: bool(files(folder)), read, files, beside)
