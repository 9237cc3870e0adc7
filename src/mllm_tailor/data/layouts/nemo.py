"""NeMo manifests: JSON lines with `audio_filepath`, `text` and `duration`; with `offset` a row is a span of a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row
from mllm_tailor.data.layouts.base import Folder, Roots, adjusted, folder_layout, recognised
from mllm_tailor.data.layouts.columns import read_columns


def samples_of(row: Row, folder: Folder, roots: Roots) -> Iterable[Sample | DataIssue]:
    """One sample a row.

    Raises:
        DataError: naming the row.
    """
    values = dict(row.values)
    labels: dict[str, Any] = {"audio": values.pop("audio_filepath", None)}
    if "answer" in values and "context" in values and "question" not in values:  # a manifest of NeMo's speech models
        labels["question"] = values.pop("context")
    labels |= {name: values.pop(name) for name in ("text", "question", "answer", "id", "group") if name in values}
    if "speaker" in values and "group" not in labels:
        labels["group"] = values["speaker"]
    if values.get("offset"):
        labels |= {name: values.pop(name) for name in ("offset", "duration") if name in values}
    samples = read_columns(Row(row.source, labels, row.split), folder, roots)
    return adjusted(samples, lambda sample: replace(sample, extra={**sample.extra, **values}))


LAYOUT = folder_layout(recognised(lambda first: "audio_filepath" in first), samples_of)
