"""The database of `tailor review`: its finished documents are labelled samples; the others are named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.layouts.base import Folder, Layout
from mllm_tailor.data.reviews.database import is_database
from mllm_tailor.data.reviews.labels import labelled_samples
from mllm_tailor.data.reviews.store import DATABASE, ReviewStore


def _database(folder: Folder) -> Path:
    return folder.path / DATABASE if folder.path.is_dir() else folder.path


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """The finished documents, and a warning that counts those that are not."""
    path = _database(folder)
    try:
        store = ReviewStore(path)
        yield from labelled_samples(store)
        progress = store.progress()
    except DataError as error:
        yield DataIssue.of(error, str(path))
        return
    for count, state, fix in (
        (progress.waiting, "wait for a decision", "finish them in `tailor review`, or leave it so"),
        (progress.skipped, "were skipped by a reviewer", "leave it so, or label them elsewhere"),
        (progress.accepted, "need no eye, and nobody looked at them", "leave it so"),
    ):
        if count:
            problem = f"{count:,} documents {state}: they are not learned"
            yield DataIssue(str(path), problem, fix, None, "warning")


LAYOUT = Layout(lambda folder: is_database(_database(folder)), read)
