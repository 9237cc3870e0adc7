"""CSV and TSV files whose header has a column that names the file."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from mllm_tailor.core.sample import Sample
from mllm_tailor.data.columns import MEDIA_COLUMNS, samples_of
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row, build
from mllm_tailor.data.layouts.base import Layout, label_files, roots_of

FILE_COLUMNS = frozenset(name for group in MEDIA_COLUMNS for name in group)


def _delimiter(file: Path, header: str) -> str:
    return "\t" if file.suffix.lower() == ".tsv" else max(",;\t", key=header.count)


def _header(file: Path) -> tuple[list[str], str]:
    """The column names and the delimiter; no names when the file is not such a table."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            line = stream.readline(65_536)
        delimiter = _delimiter(file, line)
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])], delimiter
    except (OSError, UnicodeDecodeError, csv.Error):
        return [], ","


def _files(path: Path) -> list[tuple[Path, str | None]]:
    return [found for found in label_files(path, ".csv", ".tsv") if FILE_COLUMNS & set(_header(found[0])[0])]


def detect(path: Path) -> bool:
    """Whether a table's header has a file column."""
    return bool(_files(path))


def read(path: Path) -> Iterator[Sample | DataIssue]:
    """One sample a row; values are text, as tables hold them."""
    for file, part in _files(path):
        roots = roots_of(file, path)
        yield from build(_rows(file, part), lambda row, roots=roots: samples_of(row, roots))  # type: ignore[misc]


def _rows(file: Path, part: str | None) -> Iterator[Row | DataIssue]:
    names, delimiter = _header(file)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        yield DataIssue(f"{file}:1", f"column `{twice}` is there twice", "rename one of them")
        return
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        next(reader)
        while True:
            source = f"{file}:{reader.line_num + 1}"
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield DataIssue(source, f"not a readable row ({error})", "mend its quotes or remove it")
                continue
            if any(values):
                yield _row(names, values, source, part)


def _row(names: list[str], values: list[str], source: str, part: str | None) -> Row | DataIssue:
    if len(values) != len(names):
        return DataIssue(
            source, f"{len(values)} values for {len(names)} columns", "quote values that hold the delimiter"
        )
    if any("\udc80" <= character <= "\udcff" for value in values for character in value):
        return DataIssue(source, "not UTF-8 text", "save the file as UTF-8")
    return Row(source, dict(zip(names, values, strict=True)), part)


LAYOUT = Layout(detect, read)
