"""NeMo manifests: JSON lines with `audio_filepath`, `text` and `duration`; with `offset` a row is a span of a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.jsonl import Row, kind_of
from mllm_tailor.data.layouts.base import Folder, Roots, folder_layout, recognised
from mllm_tailor.data.layouts.columns import read_columns


def samples_of(row: Row, folder: Folder, roots: Roots) -> Iterable[Sample | DataIssue]:
    """One sample a row.

    Raises:
        DataError: naming the row.
    """
    values = dict(row.values)
    labels: dict[str, Any] = {"audio": values.pop("audio_filepath", None)}
    labels |= {name: values.pop(name) for name in ("text", "question", "answer", "id", "group") if name in values}
    if "speaker" in values and "group" not in labels:
        labels["group"] = values["speaker"]
    span = _span(values.pop("offset", None), values.get("duration"), row.source)
    for sample in read_columns(Row(row.source, labels, row.split), folder, roots):
        if isinstance(sample, DataIssue):
            yield sample
            continue
        media = tuple(replace(item, span=span) if isinstance(item, Media) and span else item for item in sample.media)
        yield replace(sample, media=media, extra={**sample.extra, **values})


def _span(offset: Any, duration: Any, source: str) -> tuple[float, float] | None:
    """From where to where in seconds; None for the whole file."""
    if offset in (None, 0, 0.0):
        return None
    for name, value in (("offset", offset), ("duration", duration)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise DataError(f"{source}: `{name}` should be seconds, found {kind_of(value)} — correct this row")
    return float(offset), float(offset) + float(duration)


LAYOUT = folder_layout(recognised(lambda first: "audio_filepath" in first), samples_of)
