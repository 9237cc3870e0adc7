"""Score predictions of any origin: rows of another trainer, a hosted service or an OCR pipeline against labels.

Rows are matched by id, or by the stem of a file name where no id is equal. Nothing is skipped silently: samples without
a prediction count as unanswered, and rows and columns that take no part are named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from mllm_tailor.core.errors import DataError, nearest
from mllm_tailor.core.sample import Prediction
from mllm_tailor.core.strict_json import parse_json
from mllm_tailor.scoring.text import as_text
from mllm_tailor.tasks.reply import read_object

ID_KEYS = ("id", "file", "file_name", "filename", "path", "image", "image_id")
FIELD_KEYS = ("fields", "labels", "entities", "ground_truth", "gt_parse")
TEXT_KEYS = ("text", "prediction", "response", "output", "answer", "generated_text")
# Columns beside the fields, in labels and in predictions of this and other tools.
OTHER_KEYS = {*ID_KEYS, "group", "split", "confidence", "raw", "accept", "where", "seconds", "problem", "cut"}
OTHER_KEYS |= {"question", "prompt", "sample", "source", "width", "height", "ocr"}
BASE_METRICS = ("fuzzy", "exact", "normalised_exact", "f1", "anls")
LIST_METRICS = ("cell_f1", "row_f1", "row_precision", "row_recall")
NO_PREDICTION = "no prediction"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class LabelledSet:
    """Labels by sample, in one order; `groups` as for intervals."""

    ids: tuple[str, ...]
    labels: tuple[Mapping[str, Any], ...]
    groups: tuple[str | None, ...]

    @property
    def field_names(self) -> tuple[str, ...]:
        """Every field that any sample has."""
        return tuple(dict.fromkeys(name for label in self.labels for name in label))

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Those of single values, and those of line items where a label holds rows."""
        values = [value for label in self.labels for value in label.values()]
        rows = any(isinstance(value, list) and value and isinstance(value[0], Mapping) for value in values)
        return (*BASE_METRICS, *(LIST_METRICS if rows else ()))


@dataclass(frozen=True)
class MatchedPredictions:
    """Predictions in the order of the labels, and what took no part."""

    predictions: tuple[Prediction, ...]
    missing: tuple[str, ...]  # ids without a prediction; they count as unanswered
    unknown: tuple[str, ...]  # ids of predictions that no label has
    unused: tuple[str, ...]  # columns that are no field of the labels


def read_labels(rows: Sequence[Row], name: str, group_by: str | None = None) -> LabelledSet:
    """Labels from rows with an id and either one key that holds the fields (`fields`, `labels`, …) or a key a field.

    `name` is the file's, for messages; `group_by` a column or field whose values group the samples (default `group`).

    Raises:
        DataError: without rows, ids or fields, for an id that occurs twice, or when no row has the column `group_by`.
    """
    ids = _ids(rows, name)
    labels = [
        _fields(row) or {key: _value(value) for key, value in row.items() if key not in OTHER_KEYS} for row in rows
    ]
    if not any(labels):
        raise DataError(f"{name}: no labels — write a column for each field, or an object `fields` in each row")
    if group_by is not None and not any(
        group_by in row or group_by in label for row, label in zip(rows, labels, strict=True)
    ):
        raise DataError(
            f"{name}: no column `{group_by}` — {nearest(group_by, {str(key) for row in rows for key in row})}"
        )
    column = group_by or "group"
    groups = [_group(row, label.get(column), column) for row, label in zip(rows, labels, strict=True)]
    if group_by is not None:
        labels = [{key: value for key, value in label.items() if key != group_by} for label in labels]
    return LabelledSet(ids, tuple(labels), tuple(groups))


def match_predictions(labelled: LabelledSet, rows: Sequence[Row], name: str) -> MatchedPredictions:
    """Predictions from rows of the same forms, or with one text (`text`, `response`, …) that is or holds the answer.

    Raises:
        DataError: without rows or ids, for an id that occurs twice, or when no id is one of the labels'.
    """
    ids = _ids(rows, name)
    by_id = dict(zip(ids, rows, strict=True))
    keys = list(labelled.ids)
    if not set(keys) & set(ids):
        by_id, keys = _by_stem(by_id, name), [_stem(key) for key in keys]
        if len(set(keys)) < len(keys) or not set(keys) & set(by_id):
            raise DataError(
                f"{name}: no id of these predictions (such as `{ids[0]}`) is one of the labels' (`{labelled.ids[0]}`)"
            )
    fields = labelled.field_names
    predictions = [
        _prediction(identifier, by_id.get(key), fields) for identifier, key in zip(labelled.ids, keys, strict=True)
    ]
    missing = [identifier for identifier, key in zip(labelled.ids, keys, strict=True) if key not in by_id]
    known = set(keys)
    columns = dict.fromkeys(key for row in rows for key in (_fields(row) or row))
    unused = [key for key in columns if key not in {*fields, *OTHER_KEYS, *FIELD_KEYS, *TEXT_KEYS}]
    unknown = tuple(key for key in by_id if key not in known)
    return MatchedPredictions(tuple(predictions), tuple(missing), unknown, tuple(unused))


def _prediction(identifier: str, row: Row | None, fields: Sequence[str]) -> Prediction:
    if row is None:
        return Prediction(identifier, "", problem=NO_PREDICTION)
    text = next((as_text(row[key]) for key in TEXT_KEYS if row.get(key) is not None), "")
    problem = str(row["problem"]) if row.get("problem") else None
    values = _fields(row)
    if values is None:
        values = {key: _value(row[key]) for key in fields if key in row}
    if not values and text:
        if len(fields) == 1:
            values = {fields[0]: text}
        else:
            reply = read_object(text)
            values, problem = dict(reply.fields), problem or reply.problem
    confidence = row.get("confidence")
    known = {name: values[name] for name in fields if name in values}
    return Prediction(
        identifier, text, known, dict(confidence) if isinstance(confidence, Mapping) else {}, problem=problem
    )


def _ids(rows: Sequence[Row], name: str) -> tuple[str, ...]:
    if not rows:
        raise DataError(f"{name}: no rows")
    key = next((key for key in ID_KEYS if all(row.get(key) not in (None, "") for row in rows)), None)
    if key is None:
        raise DataError(f"{name}: no column names the sample in every row — add `id` or `file`")
    ids = tuple(str(row[key]) for row in rows)
    twice = [identifier for identifier, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(f"{name}: `{key}` {twice[0]} occurs {Counter(ids)[twice[0]]} times — keep one row a sample")
    return ids


def _fields(row: Row) -> dict[str, Any] | None:
    """The object that holds the fields, if there is one."""
    for key in FIELD_KEYS:
        value = _value(row.get(key))
        if isinstance(value, Mapping):
            return dict(value)
    return None


def _value(value: Any) -> Any:
    """A cell of a table may hold a list or an object as JSON."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


def _group(row: Row, label: Any, column: str) -> str | None:
    value = row.get(column, label)
    return None if value is None or value == "" else as_text(value)


def _stem(identifier: str) -> str:
    return PurePath(identifier.replace("\\", "/")).stem


def _by_stem(rows: Mapping[str, Row], name: str) -> dict[str, Row]:
    stems = Counter(_stem(identifier) for identifier in rows)
    twice = next((stem for stem, count in stems.items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{name}: several files are called `{twice}` — give predictions the ids of the labels")
    return {_stem(identifier): row for identifier, row in rows.items()}
