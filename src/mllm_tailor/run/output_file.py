"""The file that a prediction writes: one writer at a time, and never in the place of something that is read or kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.io import parse_line, read_lines
from mllm_tailor.core.manifest import MANIFEST, was_recorded
from mllm_tailor.core.remote import copy_of, exists, fetch, is_url, publish
from mllm_tailor.core.sample import Sample
from mllm_tailor.core.summed_rows import is_growing
from mllm_tailor.run.lock import take


@contextmanager
def output_path(out: Path | str) -> Iterator[Path]:
    """The file to write; for the URL of a store a copy of it, which is published when the block ends without an error.

    Raises:
        StorageError: for a store that cannot be read or written.
    """
    if not is_url(out):
        yield Path(out)
        return
    url = str(out)
    path = copy_of(url)
    if not path.exists() and exists(url):
        fetch(url)
    yield path
    publish(path, url)


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Hold `out` for this process; its folder is made if need be.

    Raises:
        RunError: when another process writes it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_name(f".{out.name}.lock")
    lock = FileLock(file)
    if not take(
        lock, lambda: f"{out}: another process writes this file — wait until it has ended, or name another one"
    ):
        yield
        return
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()


def check_output(out: Path, samples: Iterable[Sample], run: Path | None) -> None:
    """Refuse to replace a file that is to be read, that belongs to the run, or that holds no predictions.

    Raises:
        RunError: naming the file.
    """
    fix = "name another file for the predictions"
    if os.path.realpath(out) in _files_read(samples):
        raise RunError(f"{out}: one of the files to be read — {fix}")
    if run is not None and (run / MANIFEST).is_file() and _belongs_to(run, out):
        raise RunError(f"{out}: a file of the run itself — {fix}")
    if out.exists() and not out.is_file():
        raise RunError(f"{out}: a folder, pipe or device — {fix}")
    if out.is_file() and not is_growing(out) and not _holds_predictions(out):
        raise RunError(f"{out}: holds something else than predictions — {fix}, or remove it")


def _files_read(samples: Iterable[Sample]) -> set[str]:
    files: set[str | Path] = set()
    for sample in samples:
        files |= {sample.source, sample.source.rpartition(":")[0]}
        for media in sample.media:
            files |= {path for path in (media.path, *media.views) if path is not None}
    return {os.path.realpath(file) for file in files if str(file)}


def _belongs_to(run: Path, out: Path) -> bool:
    folder, path = run.resolve(), out.resolve()
    return path.is_relative_to(folder) and was_recorded(folder, path)


def _holds_predictions(out: Path) -> bool:
    """Whether the file is empty or begins with a prediction, be it one that was damaged further on."""
    try:
        number, line = next(iter(read_lines(out)), (1, b"{}"))
        row = parse_line(line, number)
    except (DataError, ValueError):
        return False
    return isinstance(row, Mapping) and (not row or ("id" in row and ("text" in row or "problem" in row)))
