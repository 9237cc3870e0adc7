"""Rows of label files, read strictly: a bad row becomes a fault and the rows after it are still read."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import open_lines, parse_line, read_lines
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.dialogues import dialogue_row
from mllm_tailor.data.issues import DataIssue

HEAD_BYTES = 8 * 2**20  # enough to see the first item of a file, even with a picture embedded in it
HEAD_ROWS = 50  # looked at for a first readable row


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled row: where it stands and what it says."""

    source: str  # "file:row"
    values: dict[str, Any]
    split: str | None = None  # the part its file or folder is named after


def jsonl_rows(path: Path, split: str | None = None) -> Iterator[Row | DataIssue]:
    """Every row of a JSONL file, packed with gzip or not; blank lines are skipped."""
    try:
        for number, line in read_lines(path):
            yield _jsonl_row(line, number, path, split)
    except DataError as error:  # the rows before the fault are whole
        yield DataIssue.of(error, str(error).partition(": ")[0])


def _jsonl_row(line: bytes, number: int, path: Path, split: str | None) -> Row | DataIssue:
    source = f"{path}:{number}"
    try:
        return as_row(parse_line(line, number), source, split)
    except UnicodeDecodeError:
        return DataIssue(source, "not UTF-8 text", "save the file as UTF-8")
    except ValueError as error:
        return DataIssue(source, f"not valid JSON ({error})", "correct or remove this row")


def as_row(value: Any, source: str, split: str | None = None) -> Row | DataIssue:
    """A row is an object, or a list of messages; anything else is an issue."""
    if isinstance(value, dict):
        return Row(source, value, split)
    if messages := dialogue_row(value):
        return Row(source, messages, split)
    return DataIssue(source, f"a row is an object such as {{…}}, found {kind_of(value)}", "fix or remove this row")


def kind_of(value: Any) -> str:
    """What JSON calls a value, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    value = float(value) if isinstance(value, float) else value  # whatever its class
    return names.get(type(value), "null" if value is None else type(value).__name__)


def build(
    rows: Iterable[Row | DataIssue], make: Callable[[Row], Iterable[Sample | DataIssue]]
) -> Iterator[Sample | DataIssue]:
    """Turn rows into samples; a row that `make` refuses becomes an issue that names it."""
    for row in rows:
        if isinstance(row, DataIssue):
            yield row
            continue
        try:
            yield from make(row)
        except DataError as error:
            yield DataIssue.of(error, row.source)


def first_object(path: Path) -> dict[str, Any]:
    """The first readable object of a JSON or JSONL file, for recognition; empty when there is none to be seen."""
    try:
        with open_lines(path) as file:
            head = file.readline(HEAD_BYTES) if isinstance(file, gzip.GzipFile) else file.read(HEAD_BYTES)
        text = head.decode("utf-8-sig", errors="ignore")
    except (OSError, EOFError, zlib.error):
        return {}
    if path.suffix.lower() == ".json":
        start = text.find("{")
        return _object_at(text, start) if start >= 0 and text[:start].strip() in ("", "[") else {}
    return next((found for line in text.split("\n")[:HEAD_ROWS] if (found := _object_at(line, 0))), {})


def _object_at(text: str, start: int) -> dict[str, Any]:
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else dialogue_row(value) or {}
