"""Label files of which no row can be read: damaged, empty or not to be opened, and so of no layout.

A folder is recognised by the first rows of its label files. Without this, one that was cut off at its start, or emptied
by a crash, would be passed over beside others, and its samples lost.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import read_json
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.layouts.base import ROW_SUFFIXES, Folder, LabelFile, Layout

MOST_FILES = 1000  # looked into; a folder with more label files has one for each sample, which its layout reads
TABLE_HEAD = 65_536  # bytes of a table in which zero bytes and rows are looked for
SHOWN = 10
COPY = "copy it again from its source, or move it away"


def damaged_files(folder: Folder, layout: Layout | None = None, but: Collection[str] = ()) -> Iterator[DataIssue]:
    """An error for every such file, apart from those that `layout` reads or whose path is in `but`: it names those.

    The files are those of rows: archives and labels of single documents are the affair of their layouts.
    """
    read = {file.path for file in layout.files(folder)} if layout is not None and layout.files is not None else set()
    for file in folder.label_files(*ROW_SUFFIXES)[:MOST_FILES]:
        if str(file.path) in but or file.path in read:
            continue
        if not os.access(file.path, os.R_OK):
            yield DataIssue(str(file.path), "cannot be read (permission denied)", "check its permissions")
        elif problem := _problem(file):
            yield DataIssue(str(file.path), problem, COPY)


def refuse_damaged(folder: Folder) -> None:
    """See that no such file keeps a folder from being recognised.

    Raises:
        DataError: naming them.
    """
    if damaged := list(islice(damaged_files(folder), SHOWN)):
        raise DataError("\n".join(map(str, damaged)))


def _problem(file: LabelFile) -> str:
    if not file.path.is_file():
        return ""  # a pipe or device: not opened
    if file.path.stat().st_size == 0:
        return "the file is empty"
    if file.suffix in (".csv", ".tsv"):
        with file.path.open("rb") as stream:
            head = stream.read(TABLE_HEAD)
        if _holds_zeros(head):
            return "holds zero bytes where a table begins"
        return "" if any(file.first.values()) or _has_rows(head) else "a table without a row"
    if file.first:
        return ""
    if file.suffix == ".json":
        return _not_json(file.path)
    return "damaged or cut off: no row of it can be read"


def _holds_zeros(head: bytes) -> bool:
    return b"\0" in head and head[:2] not in (b"\xff\xfe", b"\xfe\xff")  # UTF-16 has zeros of its own


def _has_rows(head: bytes) -> bool:
    """Whether a second line has content, as also in tables without a header, which their layouts read."""
    return sum(bool(line.strip(b" \t\r\n,;")) for line in head.split(b"\n")) > 1


def _not_json(path: Path) -> str:
    try:
        read_json(path)
    except DataError as error:
        return DataIssue.of(error, str(path)).problem
    return ""  # an empty list, or one of other things than rows
