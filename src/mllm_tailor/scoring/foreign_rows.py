"""Rows of other people's tools: where they keep the id of a sample, its fields, a free text, and a confidence.

What is understood is the shape, never a product: a column by its usual name in any spelling, an object or a list of
named values, a value with its confidence, a chat completion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm_tailor.core.strict_json import parse_json
from mllm_tailor.scoring.text import as_text

ID_KEYS = (
    "id", "sample_id", "custom_id", "doc_id", "document_id", "image_id", "file_id", "uid", "key",
    "file", "file_name", "filename", "file_path", "filepath", "path", "image", "image_path", "image_file", "img",
    "document", "doc", "page",
)  # fmt: skip
FIELD_KEYS = ("fields", "entities", "extracted", "extraction", "result", "results", "values", "data", "gt_parse")
LABEL_KEYS = ("fields", "labels", "entities", "ground_truth", "gt_parse")
# Of a row of predictions these hold the right answer, which tools copy beside their own.
TRUTH_KEYS = ("labels", "label", "ground_truth", "gt", "gt_parse", "target", "reference", "expected", "answers")
TEXT_KEYS = (
    "text", "prediction", "predict", "predicted", "response", "output", "answer", "reply", "generated_text",
    "completion", "content",
)  # fmt: skip
NAME_KEYS = ("name", "key", "field", "type", "label")  # of an entry in a list of named values
VALUE_KEYS = ("value", "text", "content", "mention_text", "value_string", "answer")
CONFIDENCE_KEYS = ("confidence", "score", "probability")
# Columns beside the fields, in labels and in predictions of this and other tools.
OTHER_KEYS = {
    *ID_KEYS,
    "group",
    "split",
    "confidence",
    "calibrated",
    "raw",
    "accept",
    "where",
    "seconds",
    "problem",
    "cut",
}
OTHER_KEYS |= {"question", "prompt", "sample", "source", "width", "height", "ocr", "system", "messages", "images"}
OTHER_KEYS |= {"model", "usage", "error", "status", "logprobs", "latency", "duration", "index"}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Values:
    """The values of one row by field, and how sure its maker was."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    confidence: Mapping[str, float] = field(default_factory=dict)


def spelling(name: str) -> str:
    """What is compared of a column's name: `Total Amount`, `total_amount` and `totalAmount` agree."""
    return re.sub(r"[\W_]+", "", name).casefold()


def column(row: Row, names: Sequence[str]) -> str | None:
    """The first of `names` that the row has a value for, in the row's own spelling."""
    spelt = {spelling(key): key for key, value in row.items() if value not in (None, "")}
    return next((spelt[spelling(name)] for name in names if spelling(name) in spelt), None)


def id_column(rows: Sequence[Row]) -> str | None:
    """The column that names the sample in every row."""
    names = {spelling(key): key for key in rows[0]}
    known = (names[spelling(name)] for name in ID_KEYS if spelling(name) in names)
    return next((key for key in known if all(_is_name(row.get(key)) for row in rows)), None)


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def decoded(value: Any) -> Any:
    """A cell of a table may hold a list or an object as JSON."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


def held_fields(row: Row, names: Sequence[str]) -> dict[str, Any] | None:
    """The fields that one column of the row holds, as an object or a list of named values; None where none does."""
    for name in names:
        key = column(row, [name])
        value = decoded(row[key]) if key is not None else None
        if isinstance(value, Mapping) and value:
            return dict(value)
        if named := _named_values(value):
            return named
    return None


def free_text(row: Row) -> str:
    """The reply of a row as text; of a chat completion its message."""
    key = column(row, TEXT_KEYS)
    if key is None:
        return _message(row)
    value = row[key]
    return (_message(value) if isinstance(value, Mapping) else "") or as_text(value)


def _message(value: Any) -> str:
    """The text of the first choice of a chat completion, wherever in the object it lies."""
    while isinstance(value, Mapping):
        choices = value.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
            message = choices[0].get("message", choices[0])
            content = message.get("content", message.get("text")) if isinstance(message, Mapping) else None
            return content if isinstance(content, str) else ""
        value = next((value[key] for key in ("response", "body", "output") if key in value), None)
    return ""


def read_values(value: Row, fields: Sequence[str]) -> Values:
    """The labelled fields that an object or a row of columns holds, each as it is or with facts about it."""
    spelt = {spelling(str(name)): entry for name, entry in value.items()}
    read: dict[str, Any] = {}
    confidence: dict[str, float] = {}
    for name in fields:
        entry = value[name] if name in value else spelt.get(spelling(name), _MISSING)
        if entry is _MISSING:
            continue
        entry = decoded(entry)
        key = _key(entry, VALUE_KEYS) if isinstance(entry, Mapping) and _is_wrapped(entry) else None
        read[name] = entry if key is None else decoded(entry[key])
        sure = _key(entry, CONFIDENCE_KEYS) if isinstance(entry, Mapping) and key is not None else None
        if sure is not None and isinstance(entry[sure], int | float):
            confidence[name] = float(entry[sure])
    return Values(read, confidence)


_MISSING = object()


def _is_wrapped(entry: Mapping[str, Any]) -> bool:
    """Whether an object is one value with facts about it, such as its confidence, and no object of the labels."""
    around = (*NAME_KEYS, *VALUE_KEYS, *CONFIDENCE_KEYS)
    known = {spelling(name) for name in (*around, "box", "bbox", "bounding_box", "page", "quad", "polygon", "kind")}
    return bool(entry) and all(spelling(str(key)) in known for key in entry)


def _named_values(value: Any) -> dict[str, Any]:
    """The entries of a list of named values by their names; empty for anything else."""
    if not isinstance(value, list):
        return {}
    names = [_key(entry, NAME_KEYS) if isinstance(entry, Mapping) else None for entry in value]
    if not all(name is not None and _key(entry, VALUE_KEYS) for name, entry in zip(names, value, strict=True)):
        return {}
    return {str(entry[name]): entry for name, entry in zip(names, value, strict=True)}


def _key(entry: Mapping[str, Any], names: Sequence[str]) -> str | None:
    spelt = {spelling(str(key)): str(key) for key in entry}
    return next((spelt[spelling(name)] for name in names if spelling(name) in spelt), None)
