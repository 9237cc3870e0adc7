"""Documents with a label file of the same name beside them: `invoice.pdf`, `invoice.json`.

A label is an object, or a list of one. Of several files of one name (a PDF and its picture) the document is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import read_json
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import kind_of
from mllm_tailor.data.layouts.base import Folder, Layout
from mllm_tailor.media.open import pages_of
from mllm_tailor.media.source import media_kind

FIRST = ".pdf"


def _pairs(folder: Folder) -> dict[Path, Path]:
    """Label file to document, in order of name."""
    media: dict[str, Path] = {}
    for file in (folder.path / entry.name for entry in folder.listing()):
        if media_kind(file) and (file.stem not in media or file.suffix.lower() == FIRST):
            media[file.stem] = file
    return {label: media[label.stem] for label in _labels(folder) if label.stem in media}


def _labels(folder: Folder) -> list[Path]:
    return [folder.path / entry.name for entry in folder.listing() if entry.name.endswith(".json")]


def detect(folder: Folder) -> bool:
    """Whether most .json files of the folder have a document of their name."""
    pairs = _pairs(folder)
    return len(pairs) > 1 and len(pairs) >= len(_labels(folder)) / 2


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample a document, all its pages as pictures; a label without a document is a fault."""
    pairs = _pairs(folder)
    for label in _labels(folder):
        source = f"{label}:1"
        try:
            if label not in pairs:
                raise DataError(f"{source}: no document of this name — restore it, or move the label away")
            media = pages_of(pairs[label].resolve(), media_kind(pairs[label]) or "image")
            yield Sample(label.stem, media, fields=_fields(label, source), source=source)
        except DataError as error:
            yield DataIssue.of(error, source)


def _fields(label: Path, source: str) -> dict[str, Any]:
    value = read_json(label)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict):
        raise DataError(f"{source}: a label is one object such as {{…}}, found {kind_of(value)} — fix the label")
    return value


LAYOUT = Layout(detect, read)
