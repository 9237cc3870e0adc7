"""One JSON object whose keys are file names and whose values are their labels: `{"a.jpg": "cat"}`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import read_json
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row, build
from mllm_tailor.data.layouts.base import Folder, LabelFile, Layout
from mllm_tailor.data.layouts.columns import read_columns
from mllm_tailor.media.source import media_kind


def _files(folder: Folder) -> list[LabelFile]:
    return [file for file in folder.label_files(".json") if file.head and all(map(media_kind, file.head))]


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample a key."""
    for file in _files(folder):
        roots = folder.roots(file.path)
        yield from build(_rows(file), lambda row, roots=roots: read_columns(row, folder, roots))  # type: ignore[misc]


def _rows(file: LabelFile) -> Iterator[Row | DataIssue]:
    try:
        content = read_json(file.path)
    except DataError as error:
        yield DataIssue.of(error, str(file.path))
        return
    for number, (name, value) in enumerate(content.items(), 1):
        yield Row(f"{file.path}:{number}", {"file_name": name, **_labels(value)}, file.split)


def _labels(value: Any) -> dict[str, Any]:
    """The columns that a value stands for: those of an object, a list of captions, or one label."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return {"caption": value[0], "captions": value}
    return {"label": value}


LAYOUT = Layout(lambda folder: bool(_files(folder)), read, _files)
