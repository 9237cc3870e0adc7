"""Files that are either whole or not there: atomic writes, JSON lines, checksums."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError


def cache_folder() -> Path:
    """Where what can be made again is kept: `TAILOR_CACHE`, else a folder of the user's cache."""
    return Path(os.environ.get("TAILOR_CACHE", Path.home() / ".cache" / "mllm-tailor"))


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside, flush to disk, rename over: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    fsync_folder(path.parent)


def dump_json(value: Any, *, indent: int | None = 1) -> str:
    """Compact, readable JSON that refuses NaN (which is not JSON)."""
    return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False, default=str)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document atomically."""
    write_atomic(path, dump_json(value) + "\n")


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON value")


def parse_json(text: str) -> Any:
    """Strict JSON: NaN and Infinity are refused, and so is nesting too deep to read.

    Raises:
        ValueError: with what is wrong and where.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path) -> Any:
    """Read one JSON document; a fault names the file and what is wrong with it."""
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}) — save the file as UTF-8") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}) — mend the file or leave it out") from error


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield `(row, value)` with rows from 1; blank lines are skipped, a bad line is an error naming its row."""
    with path.open("rb") as file:
        for row, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield row, parse_json(line.decode("utf-8-sig" if row == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{row}: not UTF-8 text — save the file as UTF-8") from error
            except ValueError as error:
                raise DataError(f"{path}:{row}: not valid JSON ({error}) — mend or remove this row") from error


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines atomically."""
    write_atomic(path, "".join(dump_json(row, indent=None) + "\n" for row in rows))


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON line in a single write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(dump_json(row, indent=None) + "\n")


def sha256(path: Path) -> str:
    """The file's SHA-256 in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def human_bytes(count: float) -> str:
    """`1536` -> `1.5 KiB`."""
    if count < 1024:
        return f"{count:.0f} B"
    power = min(4, int(math.log(count, 1024)))
    return f"{count / 1024**power:.1f} {['B', 'KiB', 'MiB', 'GiB', 'TiB'][power]}"


def human_time(seconds: float) -> str:
    """`90` -> `1.5 min`."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
