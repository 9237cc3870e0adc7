"""Common Voice: recordings in `clips/`, and a .tsv for each split with `client_id`, `path` and `sentence`.

`validated.tsv` repeats the splits, `invalidated.tsv` was voted down and `other.tsv` was not voted on: they are not read
where there are splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mllm_tailor.core.sample import Sample
from mllm_tailor.data.columns import samples_of
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row, build
from mllm_tailor.data.layouts.base import Folder, LabelFile, Layout, Roots, adjusted, recognised

LEARNED = ("train", "dev", "test")
_tables = recognised(lambda first: {"client_id", "path", "sentence"} <= set(first), (".tsv", ".csv"))


def _files(folder: Folder) -> list[LabelFile]:
    tables = _tables(folder)
    splits = [table for table in tables if table.path.stem in LEARNED]
    validated = [table for table in tables if table.path.stem == "validated"]
    return splits or validated or tables


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample a recording; the recordings of a speaker are a group."""
    for file in _files(folder):
        roots = folder.roots(file.path)
        yield from build(file.rows(), lambda row, roots=roots: _samples(row, roots))  # type: ignore[misc]
    for file in _tables(folder):
        if file not in _files(folder):
            problem = "not read: its recordings repeat the splits, or were not voted to be right"
            yield DataIssue(str(file.path), problem, "name the file itself as data.train to use it", None, "warning")


def _samples(row: Row, roots: Roots) -> Iterator[Sample | DataIssue]:
    values = dict(row.values)
    path, sentence, speaker = values.pop("path", ""), values.pop("sentence", None), values.pop("client_id", None)
    labels = {"audio": path, "text": sentence, "group": speaker}
    known = {**values, "client_id": speaker}
    samples = samples_of(Row(row.source, labels, row.split), roots)
    return adjusted(samples, lambda sample: replace(sample, extra={**sample.extra, **known}))


LAYOUT = Layout(lambda folder: bool(_files(folder)), read, _tables)
