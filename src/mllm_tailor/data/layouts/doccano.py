"""doccano's exports: rows with `filename` and a list `label`, of classes, of texts or of boxes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row
from mllm_tailor.data.layouts.base import Folder, Roots, adjusted, folder_layout, recognised
from mllm_tailor.data.layouts.columns import read_columns

NOTES = ("Comments", "comments", "meta")


def recognises(first: Mapping[str, Any]) -> bool:
    """Whether a row has a file name and a list of plain labels."""
    label = first.get("label", first.get("labels"))
    return "filename" in first and isinstance(label, list) and all(isinstance(item, str) for item in label)


def samples_of(row: Row, folder: Folder, roots: Roots) -> Iterable[Sample | DataIssue]:
    """One sample a row; several labels are joined by commas.

    Raises:
        DataError: naming the row.
    """
    values = {name: value for name, value in row.values.items() if name not in NOTES}
    name = "label" if "label" in values else "labels"
    label = values.get(name)
    values[name] = ", ".join(map(str, label)) if isinstance(label, list) else label
    notes = {name: row.values[name] for name in NOTES if row.values.get(name)}
    samples = read_columns(Row(row.source, values, row.split), folder, roots)
    return adjusted(samples, lambda sample: replace(sample, extra={**sample.extra, **notes}))


LAYOUT = folder_layout(recognised(recognises), samples_of)
