"""What reviewers decided, as files: labelled rows that `tailor run` reads, and the decisions themselves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import atomic_file, write_jsonl
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data.reviews.documents import COPIES
from mllm_tailor.data.reviews.labels import AUDITED, REJECTED, labelled_samples
from mllm_tailor.data.reviews.store import ReviewStore


def export_labels(store: ReviewStore, path: Path) -> int:
    """Write a row for each finished document, with a copy of its files in `documents` beside `path`.

    Returns the number of rows.

    Raises:
        DataError: for an ending that is not `.jsonl`, or a recording or video of which a span was read.
    """
    if path.suffix.lower() != ".jsonl":
        raise DataError(f"{path}: rows are written as JSON lines — let the name end in .jsonl")
    rows = []
    for sample in labelled_samples(store):
        copy_files(sample, path.parent)
        rows.append(_row(sample))
    write_jsonl(path, rows)
    return len(rows)


def copy_files(sample: Sample, folder: Path) -> None:
    """Copies of a sample's files in `documents` of a folder, unless they lie there."""
    for file in {file for media in sample.media for file in _files(media)}:
        target = folder / COPIES / file.name
        if not target.is_file():
            with atomic_file(target) as partial:
                shutil.copyfile(file, partial)


def _row(sample: Sample) -> dict[str, Any]:
    row: dict[str, Any] = {"id": sample.id, **_media(sample)}
    if sample.prompt:
        row["question"] = sample.prompt
    if sample.options:
        row["options"] = list(sample.options)
    if sample.system:
        row["system"] = sample.system
    row |= {"fields": dict(sample.fields)} if sample.fields else {"answer": sample.answer}
    row |= {name: sample.extra[name] for name in (REJECTED, AUDITED) if name in sample.extra}
    return row


def _media(sample: Sample) -> dict[str, Any]:
    """The columns that name the files. All pages of a document are one file; part of its pages cannot be named."""
    if len(sample.media) == 1 and sample.media[0].views:
        return {"views": [f"{COPIES}/{view.name}" for view in sample.media[0].views]}
    names = list(dict.fromkeys(f"{COPIES}/{file.name}" for media in sample.media for file in _files(media)))
    row: dict[str, Any] = {"file_name": names[0]} if len(names) == 1 else {"file_names": names}
    spans = {media.span for media in sample.media if media.span is not None}
    if spans:
        if len(sample.media) > 1:
            raise DataError(f"{sample.id}: spans of several recordings have no row — read the database itself instead")
        row |= dict(zip(("start", "end"), spans.pop(), strict=True))
    return row


def _files(media: Media) -> Iterator[Path]:
    yield from media.views or ((media.path,) if media.path is not None else ())


def decision_rows(store: ReviewStore) -> Iterator[dict[str, Any]]:
    """Every action in its order, undone ones marked."""
    decisions = store.decisions()
    undone = {decision.undoes for decision in decisions if decision.undoes is not None}
    for decision in decisions:
        yield decision.row() | {"undone": decision.number in undone}
