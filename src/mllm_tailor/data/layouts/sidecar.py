"""Documents with a label file of the same name beside them: `invoice.pdf`, `invoice.json`; or a text, `a.wav`, `a.txt`.

A label is an object, or a list of one; of a text file, all its text. Of several files of one name (a PDF and its
picture) the document is read.
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
from mllm_tailor.data.text_rows import text_lines
from mllm_tailor.media.open import pages_of
from mllm_tailor.media.source import media_kind

FIRST = ".pdf"
TEXT = ".txt"
NOTES = ("readme", "license", "classes", "requirements", "notes")


def _pairs(folder: Folder) -> dict[Path, Path]:
    """Label file to document, in order of name."""
    media: dict[str, Path] = {}
    for file in (folder.path / entry.name for entry in folder.listing()):
        if media_kind(file) and (file.stem not in media or file.suffix.lower() == FIRST):
            media[file.stem] = file
    return {label: media[label.stem] for label in _labels(folder) if label.stem in media}


def _labels(folder: Folder) -> list[Path]:
    """The .json files; where there are none, the .txt files."""
    named = [folder.path / entry.name for entry in folder.listing() if entry.name.lower().endswith((".json", TEXT))]
    return [path for path in named if path.suffix.lower() != TEXT] or [path for path in named if not _is_note(path)]


def _is_note(path: Path) -> bool:
    return path.stem.lower() in NOTES


def detect(folder: Folder) -> bool:
    """Whether most .json files of the folder, or most .txt files, have a document of their name."""
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
    if label.suffix.lower() == TEXT:
        return {"text": "\n".join(_text_lines(label))}
    value = read_json(label)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict):
        raise DataError(f"{source}: a label is one object such as {{…}}, found {kind_of(value)} — fix the label")
    return value


def _text_lines(label: Path) -> Iterator[str]:
    """The lines of a text.

    Raises:
        DataError: naming the line that is no text.
    """
    for line in text_lines(label):
        if isinstance(line, DataIssue) and line.severity == "error":
            raise DataError(f"{line.source}: {line.problem} — {line.fix}")
        if not isinstance(line, DataIssue):
            yield line.text.strip()


LAYOUT = Layout(detect, read)
