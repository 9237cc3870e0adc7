"""Rows of label files, read strictly: a bad row becomes a fault and the rows after it are still read."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue

HEAD_BYTES = 8 * 2**20  # enough to see the first item of a file, even with a picture embedded in it
HEAD_ROWS = 50  # looked at for a first readable row


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled row: where it stands and what it says."""

    source: str  # "file:row"
    values: dict[str, Any]
    split: str | None = None  # the part its file or folder is named after


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"`{twice}` is said twice in one object")
    return values


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a number JSON can hold")
    return number


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is not a JSON value")


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse)


def parse_strictly(text: str) -> Any:
    """JSON without repeated keys, NaN, infinities, half surrogate pairs or bottomless nesting.

    Raises:
        ValueError: saying which.
    """
    try:
        value = _decoder.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    escaped = "\\ud" in text or "\\uD" in text  # only an escape can smuggle in half a surrogate pair
    if escaped and not is_text(json.dumps(value, ensure_ascii=False)):
        raise ValueError("an escape holds half a character (a lone surrogate)")
    return value


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8: no half characters, no undecodable bytes of a file name."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_file(path: Path) -> Any:
    """The one JSON document in `path`.

    Raises:
        DataError: naming the file.
    """
    try:
        return parse_strictly(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text — save the file as UTF-8") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}) — mend the file or leave it out") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}) — check its permissions") from None


def jsonl_rows(path: Path, split: str | None = None) -> Iterator[Row | DataIssue]:
    """Every row of a JSONL file, packed with gzip or not; blank lines are skipped."""
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _jsonl_row(line, number, path, split)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        yield DataIssue(f"{path}:{number + 1}", "packed with gzip, but damaged or cut off here", "copy it again")


def _jsonl_row(line: bytes, number: int, path: Path, split: str | None) -> Row | DataIssue:
    source = f"{path}:{number}"
    try:
        return as_row(parse_strictly(line.decode("utf-8-sig" if number == 1 else "utf-8")), source, split)
    except UnicodeDecodeError:
        return DataIssue(source, "not UTF-8 text", "save the file as UTF-8")
    except ValueError as error:
        return DataIssue(source, f"not valid JSON ({error})", "mend or remove this row")


def json_rows(path: Path, split: str | None = None) -> Iterator[Row | DataIssue]:
    """Every entry of a JSON file that holds a list."""
    try:
        entries = parse_file(path)
    except DataError as error:
        yield DataIssue.of(error, str(path))
        return
    if not isinstance(entries, list):
        yield DataIssue(str(path), f"a list of rows is expected, found {kind_of(entries)}", "wrap the rows in [ ]")
        return
    for number, value in enumerate(entries, 1):
        yield as_row(value, f"{path}:{number}", split)


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def as_row(value: Any, source: str, split: str | None = None) -> Row | DataIssue:
    """A row is an object; anything else is a fault."""
    if isinstance(value, dict):
        return Row(source, value, split)
    return DataIssue(source, f"a row is an object such as {{…}}, found {kind_of(value)}", "mend or remove this row")


def kind_of(value: Any) -> str:
    """What JSON calls a value, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def build(rows: Iterable[Row | DataIssue], make: Callable[[Row], Iterable[Sample]]) -> Iterator[Sample | DataIssue]:
    """Turn rows into samples; a row `make` refuses becomes a fault naming it."""
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
        with _opened(path) as file:
            head = file.readline(HEAD_BYTES) if isinstance(file, gzip.GzipFile) else file.read(HEAD_BYTES)
        text = head.decode("utf-8-sig", errors="ignore")
    except (OSError, EOFError, zlib.error):
        return {}
    if path.suffix.lower() == ".json":
        start = text.find("{")
        return _object_at(text, start) if start >= 0 and text[:start].strip() in ("", "[") else {}
    return next((found for line in text.splitlines()[:HEAD_ROWS] if (found := _object_at(line, 0))), {})


def _object_at(text: str, start: int) -> dict[str, Any]:
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
