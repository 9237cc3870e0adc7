"""Files at a URL: copied into the cache to be read, and finished files copied back. The one place that opens stores.

Everything else reads and writes local files. A copy lies at `TAILOR_CACHE/remote/s3/BUCKET/KEY`, whole or not at all,
and is used again while the store states the same size and entity tag, and the copy has not been touched. Drivers are
those of fsspec; none is imported unless a URL is used.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from mllm_tailor.core.errors import DataError, StorageError, TailorError
from mllm_tailor.core.io import PARTIAL, atomic_file, cache_folder, fingerprint, read_json, write_json
from mllm_tailor.core.optional import need
from mllm_tailor.core.progress import progress

Item = TypeVar("Item")
_URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]+)://(?P<rest>.*)", re.DOTALL)
_PASSWORD = re.compile(r"[^/@:]*:[^/@]*@")
_SAME = {"s3a": "s3", "gcs": "gs"}  # names of one store
# Protocols that a row of a user's own manifest may name, as it may name an absolute path. Never the web: it would be
# fetched from wherever a row says, with this machine's access.
STORES = frozenset({"s3", "gs", "az", "abfs", "abfss", "memory"})
DRIVERS = {"s3": "s3fs", "gs": "gcsfs"}  # brought by the extra
MARKS = ("ETag", "etag", "md5Hash", "checksum", "LastModified", "last_modified", "mtime", "created")
AT_ONCE = 16  # copies
LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
DOCS = "docs/scale.md"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a store as it was when it was listed."""

    url: str
    size: int | None  # bytes; None where the store does not state them
    mark: str  # changes when the content does: an entity tag, or a time

    @property
    def path(self) -> Path:
        """Its copy."""
        return copy_of(self.url)


class MissingURLError(DataError):
    """A URL under which nothing lies."""


def is_url(name: str | Path) -> bool:
    """Whether a name is the URL of a store, not a local path. (`file://` names local files.)

    >>> is_url("s3://bucket/scans"), is_url("scans/a.png"), is_url("file:///scans/a.png"), is_url("data:image/png;x")
    (True, False, False, False)
    """
    match = _URL.match(str(name))
    return match is not None and match["protocol"].lower() != "file"


def local(name: str | Path) -> Path:
    """The path itself, or the copy of the file or folder at a URL."""
    return fetch(str(name)) if is_url(name) else Path(name)


# --- Names -----------------------------------------------------------------------------------------------------------


def copy_of(url: str) -> Path:
    """Where the copy of a file or folder lies, be it there or not.

    Raises:
        DataError: for a URL that holds a password, and a name that no file here can have.
    """
    match = _URL.fullmatch(url)
    assert match is not None, url
    protocol = match["protocol"].lower()
    if _PASSWORD.match(match["rest"]):
        raise DataError(f"{protocol}://…: a URL with a password would be logged — set it in the store's own settings")
    names = match["rest"].rstrip("/").split("/")
    if not names[0] or any(_unusable(name) for name in names):
        raise DataError(f"{url!a}: no file of this machine can have this name — rename it in the store")
    return _root() / _SAME.get(protocol, protocol) / "/".join(names)


def url_of(path: Path) -> str | None:
    """The URL whose copy lies, or would lie, at a path; None for any other path."""
    try:
        protocol, *names = Path(os.path.realpath(path)).relative_to(_root()).parts
    except ValueError:
        return None
    return f"{protocol}://{'/'.join(names)}" if names else None


def with_urls(text: str) -> str:
    """A message in which copies are named by their URLs."""
    return re.sub(re.escape(f"{_root()}{os.sep}") + r"([a-z0-9+.-]+)" + re.escape(os.sep), r"\1://", text)


def copy_within(url: str, folders: Iterable[Path]) -> Path | None:
    """The copy of a URL that a row names, if one of the folders is the copy of a folder around it; else None."""
    path = copy_of(url)
    copies = (os.path.realpath(folder) for folder in folders if url_of(folder))  # not a folder that holds the cache
    return path if any(map(path.is_relative_to, copies)) else None


def refuse_web(url: str, where: str) -> None:
    """See that a URL of a row names a store.

    Raises:
        DataError: for a web address.
    """
    if url.partition("://")[0].lower() not in STORES:
        raise DataError(f"{where}: `{url[:80]}` is a web address — fetch the file and name it by its path")


def _root() -> Path:
    return Path(os.path.realpath(cache_folder() / "remote"))


def _unusable(name: str) -> bool:
    long = len(name.encode("utf-8", "surrogatepass")) > 200  # leaves room for what is being written beside it
    return name in ("", ".", "..") or "\0" in name or "\\" in name or long or name.endswith(PARTIAL)


# --- Down ------------------------------------------------------------------------------------------------------------


def fetch_run(url: str) -> Path:
    """The copy of a run folder. What commands have added to the copy stays."""
    return fetch_listed(url, list_files(url), keep_others=True)


def fetch(url: str) -> Path:
    """The copy of a file, or of a folder with all that lies in it, as the store holds it now.

    Raises:
        MissingURLError: for a URL under which nothing lies.
        DataError: for a file that was cut off, and names that no file here can have.
        StorageError: for a store that cannot be read: no driver, no credentials, no connection.
    """
    return fetch_listed(url, list_files(url))


def fetch_listed(url: str, files: Mapping[str, RemoteFile], *, keep_others: bool = False) -> Path:
    """As `fetch`, of files that were listed; with `keep_others`, what only the copy of the folder holds stays."""
    _refuse_clashes(url, files)
    path = copy_of(url)
    if "" not in files and not keep_others:
        _remove_others(path, files)
    for _, error in _side_by_side(f"Copying {url}", list(files.values()), _fetch_one):
        raise error
    return path


def fetch_each(paths: Sequence[Path]) -> dict[Path, str]:
    """Bring the copies at these paths up to date; the message of each that cannot be, by its path."""

    def update(path: Path) -> None:
        url = url_of(path)
        assert url is not None, path
        _fetch_one(_file_at(url))

    return {path: str(error) for path, error in _side_by_side("Copying files", paths, update)}


def list_files(url: str) -> dict[str, RemoteFile]:
    """The files below a URL by their names inside it; `{"": file}` where it names a file.

    Raises:
        MissingURLError: for a URL under which nothing lies.
        StorageError: for a store that cannot be read.
    """
    with _named(url):
        system, root = _open(url)
        system.invalidate_cache()
        if not url.endswith("/") and system.isfile(root):
            return {"": _file_at(url)}
        below = root.rstrip("/") + "/"
        entries = system.find(root, detail=True)
    names = {path.removeprefix(below): entry for path, entry in sorted(entries.items())}
    base = url.rstrip("/")
    files = {
        name: RemoteFile(f"{base}/{name}", entry.get("size"), _mark(entry))
        for name, entry in names.items()
        if name and not name.endswith("/") and entry.get("type") != "directory"
    }
    if not files:
        raise MissingURLError(_missing(url))
    return files


def exists(url: str) -> bool:
    """Whether a file or folder lies under a URL.

    Raises:
        StorageError: for a store that cannot be read.
    """
    with _named(url):
        system, path = _open(url)
        system.invalidate_cache()
        return bool(system.exists(path))


def _file_at(url: str) -> RemoteFile:
    with _named(url):
        system, path = _open(url)
        entry = system.info(path)
    if entry.get("type") == "directory":
        raise DataError(f"{url}: a folder, not a file — name a file in it")
    return RemoteFile(url, entry.get("size"), _mark(entry))


def _fetch_one(file: RemoteFile) -> None:
    path, stamp = file.path, _stamp_file(file.url)
    if path.is_file() and stamp.is_file() and read_json(stamp) == _stamp(file, path):
        return
    with _named(file.url):
        system, remote = _open(file.url)
        with atomic_file(path) as partial:
            system.get_file(remote, str(partial))
            size = partial.stat().st_size if partial.is_file() else 0
            if file.size is not None and size != file.size:
                raise DataError(
                    f"{file.url}: cut off, or changed while it was copied ({size:,} of {file.size:,} bytes) — run the "
                    "same command again"
                )
            partial.touch()
    write_json(stamp, _stamp(file, path))


def _stamp(file: RemoteFile, path: Path) -> dict[str, Any]:
    """What the store stated of a file, and its copy as it was left."""
    status = path.stat()
    return {"url": file.url, "size": file.size, "mark": file.mark, "copy": [status.st_size, status.st_mtime_ns]}


def _stamp_file(url: str) -> Path:
    key = fingerprint(str(copy_of(url).relative_to(_root())))
    return _root().with_name("remote-stamps") / key[:2] / f"{key[:40]}.json"


def _remove_others(folder: Path, files: Mapping[str, RemoteFile]) -> None:
    """Remove copies of files that the store holds no more."""
    if folder.is_file():
        folder.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in files and not path.name.endswith(PARTIAL):
            path.unlink(missing_ok=True)


def _refuse_clashes(url: str, files: Mapping[str, RemoteFile]) -> None:
    """A store may hold `a` and `a/b`; a file system cannot."""
    folders = {name[:end] for name in files for end in (match.start() for match in re.finditer("/", name))}
    if clash := sorted(folders & files.keys()):
        raise DataError(f"{url.rstrip('/')}/{clash[0]}: a file and a folder in one — rename one of them in the store")


# --- Up --------------------------------------------------------------------------------------------------------------


def publish(path: Path, url: str) -> None:
    """Copy a finished file to a URL, where it appears whole.

    Raises:
        StorageError: for a store that cannot be written, and a file that arrived with another size.
    """
    with _named(url, writing=True):
        system, remote = _open(url)
        system.put_file(str(path), remote)
        system.invalidate_cache()
        file = _file_at(url)
        if file.size is not None and file.size != path.stat().st_size:
            raise StorageError(f"{url}: only {file.size:,} bytes arrived — run the same command again")
    if Path(os.path.realpath(path)) == file.path:
        write_json(_stamp_file(url), _stamp(file, path))


def publish_all(files: Mapping[str, Path], what: str) -> None:
    """Copy finished files to their URLs, many at a time.

    Raises:
        StorageError: as `publish`.
    """
    for _, error in _side_by_side(what, list(files.items()), lambda item: publish(item[1], item[0])):
        raise error


def withdraw(url: str) -> None:
    """Remove a file from a store, if it is there.

    Raises:
        StorageError: for a store that cannot be written.
    """
    with _named(url, writing=True):
        system, path = _open(url)
        if system.exists(path):
            system.rm_file(path)
        system.invalidate_cache()


# --- Stores ----------------------------------------------------------------------------------------------------------


def _open(url: str) -> tuple[Any, str]:
    """The file system of fsspec and the path in it."""
    copy_of(url)  # refuses what has no copy
    core = need("fsspec", "remote", url, StorageError).core
    try:
        system, path = core.url_to_fs(url)
    except ImportError as error:
        protocol = url.partition("://")[0].lower()
        driver = DRIVERS.get(_SAME.get(protocol, protocol))
        fix = "pip install 'mllm-tailor[remote]'" if driver else f"{error}"
        raise StorageError(f"{url}: needs {driver or 'a driver of fsspec'} — {fix}") from None
    except ValueError as error:
        raise StorageError(f"{url}: {error} — see the list of protocols of fsspec") from None
    return system, str(path)


def _mark(entry: Mapping[str, Any]) -> str:
    """The first mark that a store states, written alike whether it lists many files or is asked for one."""
    value = next((entry[name] for name in MARKS if entry.get(name) is not None), "")
    return str(value.timestamp() if isinstance(value, datetime) else value).strip('"')


def _missing(url: str) -> str:
    return f"{url}: no such file or folder — check its name, and that the bucket exists"


@contextmanager
def _named(url: str, *, writing: bool = False) -> Iterator[None]:
    """Failures of a store by its URL, with what to do about them. Drivers raise classes of their own."""
    try:
        yield
    except TailorError:
        raise
    except FileNotFoundError:
        if writing:
            raise StorageError(f"{url}: no such bucket — make it, or correct its name") from None
        raise MissingURLError(_missing(url)) from None
    except OSError as error:
        if error.errno in LOCAL_ERRORS or str(error.filename).startswith(str(_root())):  # of this machine's disk
            raise
        if not isinstance(error, PermissionError):
            raise StorageError(f"{url}: {error} — check the connection and the store's settings ({DOCS})") from error
        verb = "writing" if writing else "reading"
        raise StorageError(f"{url}: {verb} was refused ({error}) — check the credentials and their rights") from error
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        if "credential" in words.lower():
            raise StorageError(
                f"{url}: no usable credentials ({words}) — set those of the store, such as AWS_ACCESS_KEY_ID and "
                f"AWS_SECRET_ACCESS_KEY or GOOGLE_APPLICATION_CREDENTIALS ({DOCS})"
            ) from error
        raise StorageError(f"{url}: {words} — check the connection and the store's settings ({DOCS})") from error


def _side_by_side(what: str, items: Sequence[Item], work: Callable[[Item], None]) -> Iterator[tuple[Item, TailorError]]:
    """Do the work for all items, some at a time; each that fails with its error. What waits is left when one ends."""
    if not items:
        return
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="copy")
    try:
        futures = {pool.submit(work, item): item for item in items}
        with progress(what, len(items)) as shown:
            for future in as_completed(futures):
                error = future.exception()
                shown.advance()
                if isinstance(error, TailorError):
                    yield futures[future], error
                elif error is not None:
                    raise error
    finally:
        pool.shutdown(cancel_futures=True)
