"""Rows that are appended one by one, each with a checksum in a file beside them.

A file that is still growing has no checksum of its own yet. The sums of its rows show what was damaged between two
calls of a command; once the file is complete and has a checksum in a manifest, they are dropped.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mllm_tailor.core.io import write_atomic
from mllm_tailor.core.strict_json import dump_json

logger = logging.getLogger(__name__)
SUMS = ".sums"
DIGITS = 16  # of the SHA-256 of a line


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append the sum of a JSON line, then the line: one that was cut off has another sum."""
    line = _line(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not is_growing(path):
        keep_lines(path, intact_lines(path))  # written before rows had sums
    for file, content in ((_sums(path), _sum(line)), (path, line)):
        with file.open("ab") as stream:
            stream.write(content)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Begin a file with these rows."""
    keep_lines(path, [_line(row) for row in rows])


def keep_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Replace a growing file by some of its lines."""
    lines = list(lines)
    write_atomic(_sums(path), b"".join(map(_sum, lines)))  # first: lines that leave are then no longer known
    write_atomic(path, b"".join(lines))


def intact_lines(path: Path) -> list[bytes]:
    """The lines of a file as they were written; others are logged and taken out of it.

    A complete file, which has no sums, only loses a last line that was cut off.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    if not is_growing(path):
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < len(lines):
            write_atomic(path, b"".join(whole))
        return whole
    known = set(_sums(path).read_bytes().splitlines(keepends=True))
    kept = [line for line in lines if _sum(line) in known]
    for number, line in enumerate(lines, 1):
        if _sum(line) not in known and line.endswith(b"\n"):
            logger.warning("%s:%d: damaged or unfinished; this row is made again", path, number)
    if len(kept) < len(lines):
        keep_lines(path, kept)
    return kept


def is_growing(path: Path) -> bool:
    """Whether the file has sums of its rows, which is until it is complete."""
    return _sums(path).is_file()


def finish_rows(path: Path) -> None:
    """Drop the sums of a file that is complete."""
    _sums(path).unlink(missing_ok=True)


def _line(row: Mapping[str, Any]) -> bytes:
    return dump_json(row, indent=None).encode() + b"\n"


def _sum(line: bytes) -> bytes:
    return hashlib.sha256(line).hexdigest()[:DIGITS].encode() + b"\n"


def _sums(path: Path) -> Path:
    return path.with_name(f".{path.name}{SUMS}")
