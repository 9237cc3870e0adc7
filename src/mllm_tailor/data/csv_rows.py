"""Rows of CSV and TSV files, in UTF-8, UTF-16 or Windows-1252, with commas, semicolons, tabs or bars between values."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from mllm_tailor.core.io import MAX_LINE_BYTES
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row
from mllm_tailor.media.source import media_kind

HEAD_CHARACTERS = 8 * 2**20
BLOCK_BYTES = 2**20
DELIMITERS = ",;\t|"
_SEPARATOR = re.compile(r"\ufeff?sep=([,;\t|])\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """How a table is written."""

    names: tuple[str, ...]
    delimiter: str
    encoding: str
    above: int = 0  # lines above the header, such as Excel's `sep=;`
    header: bool = True  # false where the first line is a row, in which a file is named


def dialect_of(path: Path, *, delimiter: str = "", encoding: str = "") -> Dialect:
    """The column names, delimiter and encoding of a table; no names when it cannot be read."""
    encoding = encoding or encoding_of(path)
    try:
        with path.open(encoding=encoding, errors="surrogateescape", newline="") as stream:
            line = stream.readline(65_536)
            stated = _SEPARATOR.fullmatch(line)
            if stated:
                delimiter, line = delimiter or stated[1], stream.readline(65_536)
        delimiter = delimiter or ("\t" if path.suffix.lower() == ".tsv" else max(DELIMITERS, key=line.count))
        names = next(csv.reader([line], delimiter=delimiter), [])
        names = [name.strip() for name in names]
        above = 1 if stated else 0
        file = next((number for number, name in enumerate(names) if media_kind(name)), None)
        if file is not None and len(names) > 1:
            return Dialect(_names_without_header(len(names), file), delimiter, encoding, above, header=False)
        return Dialect(tuple(names), delimiter, encoding, above)
    except (OSError, UnicodeError, csv.Error):
        return Dialect((), ",", encoding)


def _names_without_header(count: int, file: int) -> tuple[str, ...]:
    """`file_name`, and `text` for the one other column or `column_2`, … for several."""
    others = "text" if count == 2 else "column_{}"
    return tuple("file_name" if number == file else others.format(number + 1) for number in range(count))


def encoding_of(path: Path) -> str:
    """UTF-8 unless the file begins with the mark of UTF-16, or holds bytes that only Windows-1252 explains.

    A file with both valid UTF-8 beyond ASCII and invalid bytes is damaged UTF-8; its damaged rows are named later.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
    undecodable = beyond_ascii = False
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                if not (undecodable or beyond_ascii) and block[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                    return "utf-16"
                if block.isascii() and not decoder.getstate()[0]:
                    continue
                beyond = {character for character in decoder.decode(block) if character > "\x7f"}
                lone = {character for character in beyond if "\udc80" <= character <= "\udcff"}
                undecodable |= bool(lone)
                beyond_ascii |= beyond > lone
    except OSError:
        return "utf-8-sig"
    return "cp1252" if undecodable and not beyond_ascii else "utf-8-sig"


def first_csv_row(path: Path) -> dict[str, str]:
    """The first row of a table by column name; empty values where it has no rows."""
    dialect = dialect_of(path)
    first = next((row for row in csv_rows(path, dialect=dialect) if isinstance(row, Row)), None)
    return dict(first.values) if first else dict.fromkeys(dialect.names, "")


def csv_rows(path: Path, split: str | None = None, dialect: Dialect | None = None) -> Iterator[Row | DataIssue]:
    """Every row of a table with a header; all values are text."""
    dialect = dialect or dialect_of(path)
    names = dialect.names
    stated = [name for name in names if name]
    if len(set(stated)) != len(stated):
        twice = next(name for name in stated if stated.count(name) > 1)
        yield DataIssue(f"{path}:1", f"the column `{twice}` occurs twice", "rename one of them")
        return
    if dialect.encoding == "cp1252":
        yield DataIssue(f"{path}:1", "not UTF-8 text, read as Windows-1252", "save it as UTF-8", None, "warning")
    if len(stated) != len(names):
        problem = "a column without a name, such as pandas writes for its index, is not read"
        yield DataIssue(f"{path}:1", problem, "give it a name to use it", None, "warning")
    if not dialect.header:
        problem = f"no line of column names: its columns are called {', '.join(names)}"
        yield DataIssue(f"{path}:1", problem, "write a header to name them otherwise", None, "warning")
    csv.field_size_limit(MAX_LINE_BYTES)  # images embedded as base64 exceed the default
    with path.open(encoding=dialect.encoding, errors="surrogateescape", newline="") as stream:
        reader = csv.reader(_lines(stream), delimiter=dialect.delimiter, strict=True)
        numbered = _records(reader, path)
        for _ in range(dialect.above + dialect.header):
            next(numbered, None)
        for record in numbered:
            if isinstance(record, DataIssue):
                yield record
            elif any(record[1]):
                yield _row(names, record[1], f"{path}:{record[0]}", split)


def _lines(stream: TextIO) -> Iterator[str]:
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise csv.Error(f"a line of over {MAX_LINE_BYTES:,} characters")
        yield line


def _records(reader: csv._reader, path: Path) -> Iterator[tuple[int, list[str]] | DataIssue]:  # type: ignore[name-defined]
    """(line, values) of every record; an unreadable one is an issue and the next ones are still read."""
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield DataIssue(f"{path}:{line}", f"not a readable row ({error})", "correct its quotes or remove it")
        except UnicodeError:
            yield DataIssue(f"{path}:{line}", "not readable text from here on", "save the file as UTF-8")
            return


def _row(names: tuple[str, ...], values: list[str], source: str, split: str | None) -> Row | DataIssue:
    if len(values) != len(names):
        problem = f"{len(values)} values for {len(names)} columns"
        return DataIssue(source, problem, "put quotes around values that hold the delimiter")
    if any("\udc80" <= character <= "\udcff" for value in values if not value.isascii() for character in value):
        return DataIssue(source, "not UTF-8 text", "save the file as UTF-8")
    return Row(source, {name: value for name, value in zip(names, values, strict=True) if name}, split)
