"""PaliGemma's and Florence-2's rows: `prefix` is the question and `suffix` the answer, or a JSON object of fields.

Whether the suffixes are objects is decided for the whole file: where at least nine in ten are, the others are faulty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.core.strict_json import parse_json
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row, build
from mllm_tailor.data.layouts.base import Folder, Layout, Roots, recognised
from mllm_tailor.data.layouts.columns import read_columns

MOSTLY = 0.9

_files = recognised(lambda first: {"prefix", "suffix"} <= set(first))


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample a row."""
    for file in _files(folder):
        suffixes = [row.values.get("suffix") for row in file.rows() if isinstance(row, Row)]
        objects = sum(_object(suffix) is not None for suffix in suffixes) >= MOSTLY * len(suffixes)
        yield from build(file.rows(), partial(_samples, folder=folder, roots=folder.roots(file.path), objects=objects))


def _samples(row: Row, folder: Folder, roots: Roots, *, objects: bool) -> Iterable[Sample | DataIssue]:
    values = {name: value for name, value in row.values.items() if name not in ("prefix", "suffix")}
    suffix = row.values.get("suffix")
    values["question"] = row.values.get("prefix")
    if objects and suffix is not None:
        values["fields"] = _object(suffix)
        if values["fields"] is None:
            raise DataError(f"{row.source}: `suffix` is no JSON object, as it is in the other rows — correct the label")
    else:
        values["answer"] = suffix
    return read_columns(Row(row.source, values, row.split), folder, roots)


def _object(suffix: Any) -> dict[str, Any] | None:
    """The object that a suffix is or holds as JSON text; None where it is something else."""
    if isinstance(suffix, dict):
        return suffix
    if not isinstance(suffix, str) or not suffix.lstrip().startswith("{"):
        return None
    try:
        value = parse_json(suffix)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


LAYOUT = Layout(lambda folder: bool(_files(folder)), read, _files)
