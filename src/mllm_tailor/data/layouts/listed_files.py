"""Lists of files in text files: `word_1.png<tab>text`, `a.jpg 3`, `a.wav|what is said` (PaddleOCR, ICDAR, Caffe)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mllm_tailor.core.sample import Sample
from mllm_tailor.data.csv_rows import encoding_of
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.json_rows import split_of
from mllm_tailor.data.jsonl import Row, build
from mllm_tailor.data.layouts.base import Folder, LabelFile, Layout
from mllm_tailor.data.layouts.columns import read_columns
from mllm_tailor.data.text_rows import text_lines
from mllm_tailor.media.source import media_kind

LONGEST_LINE = 65_536  # characters
# A name without spaces, or anything before a tab or bar; then the label, in quotes or not.
_LINE = re.compile(r"(?P<name>[^\t|]+\.\w{2,4})\s*[\t|]\s*(?P<text>.+)|(?P<word>\S+\.\w{2,4})[ ,]+(?P<label>.+)")


def _parts(line: str) -> tuple[str, str] | None:
    """The file and its label; None for a line of another form."""
    match = _LINE.fullmatch(line.strip())
    name = (match["name"] or match["word"]).rstrip(",") if match else ""
    if match is None or media_kind(name) is None:
        return None
    text = (match["text"] or match["label"]).strip()
    return name, text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def _is_list(path: Path) -> bool:
    try:
        with path.open(encoding=encoding_of(path), errors="replace") as lines:
            return _parts(lines.readline(LONGEST_LINE)) is not None
    except OSError:
        return False


def _files(folder: Folder) -> list[LabelFile]:
    paths = [folder.path / entry.name for entry in folder.listing()] or [folder.path]
    found = [path for path in paths if path.suffix.lower() == ".txt" and path.is_file() and _is_list(path)]
    return [LabelFile(path, split_of(path.stem)) for path in found]


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample a line, its label as the field `text`."""
    for file in _files(folder):
        roots = folder.roots(file.path)
        yield from build(_rows(file), lambda row, roots=roots: read_columns(row, folder, roots))  # type: ignore[misc]


def _rows(file: LabelFile) -> Iterator[Row | DataIssue]:
    for line in text_lines(file.path):
        if isinstance(line, DataIssue):
            yield line
        elif (parts := _parts(line.text)) is None:
            yield DataIssue(line.source, "no file and label in this line", "write both, or remove the line")
        else:
            yield Row(line.source, {"file_name": parts[0], "text": parts[1]}, file.split)


LAYOUT = Layout(lambda folder: bool(_files(folder)), read, _files)
