"""Files that are whole or absent: atomic writes of files and folders, JSON documents and lines, checksums."""

from __future__ import annotations

import glob
import gzip
import hashlib
import itertools
import json
import math
import os
import shutil
import socket
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

import psutil

from mllm_tailor.core.errors import DataError, MissingFileError
from mllm_tailor.core.strict_json import dump_json, parse_json

MAX_JSON_BYTES = 2 * 2**30  # of one document, which is read whole
MAX_LINE_BYTES = 256 * 2**20  # of one row; an embedded image of the largest size allowed takes 90 MB
UNPACKED_FREE = 64 * 2**20  # bytes a packed file may unpack to at any ratio
MAX_RATIO = 100  # beyond them; rows of JSON pack 5 to 30 times smaller
PARTIAL = ".partial"  # ends the name of what is still being written
ABANDONED_SECONDS = 86_400.0

_counter = itertools.count()


def cache_folder() -> Path:
    """Where what can be made again is kept: `TAILOR_CACHE`, else a folder of the user's cache."""
    return Path(os.environ.get("TAILOR_CACHE", Path.home() / ".cache" / "mllm-tailor"))


# --- Atomic writes ---------------------------------------------------------------------------------------------------


def fsync_file(path: Path) -> None:
    """Make the content of `path` durable."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable; Windows has no call for it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends without an error.

    A reader finds the old file or the new one, never half of one, also after a crash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, "new")
    try:
        yield partial
        fsync_file(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    fsync_folder(path.parent)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write one file atomically."""
    with atomic_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_folder(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """An empty folder to fill; it becomes `target` when the block ends without an error.

    A reader finds the old folder or the new one, whole; `restore_partials` finishes a replacement that a crash cut
    short. With `replace=False`, for content that follows from the name, a `target` that somebody else wrote meanwhile
    stays and the new one is dropped.
    """
    target = named(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    restore_partials(target.parent, target.name)
    partial = _beside(target, "new")
    partial.mkdir()
    try:
        yield partial
        for file in partial.rglob("*"):
            if not file.is_symlink():
                (fsync_folder if file.is_dir() else fsync_file)(file)
        fsync_folder(partial)
        if replace and target.exists():
            old = _beside(target, "old")
            target.rename(old)
            partial.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            _rename_unless_there(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    fsync_folder(target.parent)


def remove_folder(target: Path) -> None:
    """Remove a folder so that no half of it is ever taken for a whole: it is renamed first."""
    old = _beside(target, "gone")
    target.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def restore_partials(folder: Path, name: str = "") -> None:
    """Clear what killed writers left of targets in `folder` (of one `name`, or all).

    A folder that was renamed away for a replacement which never came is put back. What a living process of this
    machine writes stays, and so does what another machine wrote to within a day.
    """
    pattern = f".{glob.escape(name)}.*{PARTIAL}" if name else f".*{PARTIAL}"
    for leftover in sorted(folder.glob(pattern)):
        target, role, host, process = _parse_partial(leftover.name)
        abandoned = not psutil.pid_exists(process) if host == _host() else _age(leftover) > ABANDONED_SECONDS
        if not target or (name and target != name) or not abandoned:
            continue
        if role == "old" and not (folder / target).exists():
            leftover.rename(folder / target)
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def named(path: Path) -> Path:
    """The path by a name, beside which others can be made: `.` and `..` have none."""
    return path if path.name not in ("", "..") else path.resolve()


def _beside(path: Path, role: str) -> Path:
    return path.with_name(f".{path.name}.{role}.{_host()}.{os.getpid()}.{next(_counter)}{PARTIAL}")


def _parse_partial(name: str) -> tuple[str, str, str, int]:
    """Target, role, host and process of a name made by `_beside`; an empty target for any other name."""
    parts = name.removeprefix(".").removesuffix(PARTIAL).rsplit(".", 4)
    if len(parts) != 5 or not parts[3].isdigit():
        return "", "", "", 0
    return parts[0], parts[1], parts[2], int(parts[3])


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # its owner has finished meanwhile
        return 0.0


def _host() -> str:
    return socket.gethostname().replace(".", "-")[:40]


def _rename_unless_there(partial: Path, target: Path) -> None:
    try:
        partial.rename(target)  # over an empty folder too
    except OSError:
        if not target.is_dir():
            raise


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` in order of name, which does not pass over a folder that cannot be listed.

    Raises:
        DataError: naming that folder.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}) — check its permissions")

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        yield root, folders, sorted(names)


# --- JSON documents and lines ------------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document atomically."""
    write_atomic(path, dump_json(value) + "\n")


def read_limited(path: Path, limit: int) -> bytes:
    """All bytes of a file that has at most `limit`; the size is known before anything is read.

    Raises:
        DataError: naming a larger file.
        OSError: as reading does.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):  # a named pipe would be waited for without end
        raise DataError(f"{path}: a pipe or device, not a file — put the file there, or name another one")
    with path.open("rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            raise DataError(f"{path}: {size:,} bytes, over the limit of {limit:,} for one document — split it")
        return file.read(limit)


def unpacked_limit(path: Path) -> int:
    """Bytes that a packed file may unpack to; beyond them it is taken for a decompression bomb."""
    return UNPACKED_FREE + MAX_RATIO * path.stat().st_size


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """Read one JSON document of at most `limit` bytes.

    Raises:
        DataError: naming the file and what is wrong with it.
        MissingFileError: when there is none.
    """
    try:
        return parse_json(read_limited(path, limit).decode("utf-8-sig"))
    except FileNotFoundError:
        raise MissingFileError(path) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}) — check its permissions") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}) — save the file as UTF-8") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}) — correct the file or leave it out") from None


def read_lines(path: Path, limit: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes]]:
    """Yield `(number, line)` from 1, blank lines left out, of a file that may be packed with gzip (`.gz`).

    Raises:
        DataError: naming the file and row, for a line over `limit` bytes, a packed file that is damaged or cut off,
            or one that unpacks to over `MAX_RATIO` times its size.
    """
    number = 0
    packed = path.suffix.lower() == ".gz"
    allowed = unpacked_limit(path) if packed else math.inf
    try:
        with open_lines(path) as file:
            while line := file.readline(limit + 1):
                number += 1
                allowed -= len(line)
                if len(line) > limit:
                    raise DataError(f"{path}:{number}: a line of over {limit:,} bytes — put one row on each line")
                if allowed < 0:
                    raise DataError(f"{path}:{number}: unpacks to over {MAX_RATIO} times its size — unpack it yourself")
                if line.strip():
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(f"{path}:{number + 1}: packed with gzip, but damaged or cut off here — copy it again") from None


def limited_lines(stream: TextIO, path: Path, limit: int = MAX_LINE_BYTES) -> Iterator[str]:
    """The lines of an open text file, none of them longer than `limit` characters.

    Raises:
        DataError: naming the file and the line.
    """
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) > limit:
            raise DataError(f"{path}:{number}: a line of over {limit:,} characters — put one row on each line")
        yield line


def open_lines(path: Path) -> IO[bytes] | gzip.GzipFile:
    """The bytes of a file of lines, unpacked where it is packed with gzip (`.gz`)."""
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


def parse_line(line: bytes, number: int) -> Any:
    """The JSON value of one line of `read_lines`.

    Raises:
        ValueError: with what is wrong; a UnicodeDecodeError for other text than UTF-8.
    """
    return parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield `(row, value)` with rows from 1, blank lines left out.

    Raises:
        DataError: naming the file and the row that cannot be read.
    """
    for row, line in read_lines(path):
        try:
            yield row, parse_line(line, row)
        except UnicodeDecodeError:
            raise DataError(f"{path}:{row}: not UTF-8 text — save the file as UTF-8") from None
        except ValueError as error:
            raise DataError(f"{path}:{row}: not valid JSON ({error}) — correct or remove this row") from None


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines atomically."""
    write_atomic(path, "".join(dump_json(row, indent=None) + "\n" for row in rows))


# --- Checksums -------------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """The file's SHA-256 in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """SHA-256 in hex of values that JSON can hold, paths and bytes, in their order: the key of a cache or a run.

    Each part is hashed with its kind and length, so that no two lists of parts share a fingerprint.
    """
    digest = hashlib.sha256()
    for part in parts:
        raw = isinstance(part, (bytes, bytearray, memoryview))
        content = memoryview(part).cast("B") if raw else memoryview(_canonical(part))
        digest.update(f"{'b' if raw else 'j'}{content.nbytes}:".encode())
        digest.update(content)
    return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    def default(other: Any) -> Any:
        if isinstance(other, Mapping):
            return dict(other)
        if isinstance(other, (set, frozenset)):
            return sorted(other)
        if isinstance(other, Path):
            return str(other)
        raise TypeError(f"{type(other).__name__} has no fingerprint")

    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=default)
    return text.encode("utf-8", "surrogatepass")


# --- For people ------------------------------------------------------------------------------------------------------


def human_bytes(count: float) -> str:
    """`1536` -> `1.5 KiB`."""
    if count < 1024:
        return f"{count:.0f} B"
    power = min(4, int(math.log(count, 1024)))
    return f"{count / 1024**power:.1f} {['B', 'KiB', 'MiB', 'GiB', 'TiB'][power]}"


def human_time(seconds: float) -> str:
    """`90` -> `1.5 min`."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
