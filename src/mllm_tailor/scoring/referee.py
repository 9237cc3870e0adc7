"""Score predictions of any origin: rows of another trainer, a hosted service or an OCR pipeline against labels.

Rows are matched by id, by the stem of a file name where no id is equal, or, if asked, by their order. Nothing is
skipped silently: samples without a prediction count as unanswered, and rows and columns that take no part are named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

from mllm_tailor.core.errors import DataError, nearest
from mllm_tailor.core.sample import Prediction
from mllm_tailor.scoring.foreign_rows import (
    FIELD_KEYS,
    LABEL_KEYS,
    OTHER_KEYS,
    TEXT_KEYS,
    TRUTH_KEYS,
    Row,
    Values,
    decoded,
    free_text,
    held_fields,
    id_column,
    read_values,
    spelling,
)
from mllm_tailor.scoring.text import as_text
from mllm_tailor.tasks.reply import read_object

BASE_METRICS = ("fuzzy", "exact", "normalised_exact", "f1", "anls")
LIST_METRICS = ("cell_f1", "cell_precision", "cell_recall", "row_f1", "row_precision", "row_recall")
NO_PREDICTION = "no prediction"
SHOWN = 12  # columns in a message
NO_NAMES: Mapping[str, str] = MappingProxyType({})


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
    labels = [_labels(row) for row in rows]
    if not any(labels):
        raise DataError(f"{name}: no labels — write a column for each field, or an object `fields` in each row")
    if group_by is not None and not any(
        group_by in row or group_by in label for row, label in zip(rows, labels, strict=True)
    ):
        raise DataError(
            f"{name}: no column `{group_by}` — {nearest(group_by, {str(key) for row in rows for key in row})}"
        )
    by = group_by or "group"
    groups = [_group(row, label.get(by), by) for row, label in zip(rows, labels, strict=True)]
    if group_by is not None:
        labels = [{key: value for key, value in label.items() if key != group_by} for label in labels]
    return LabelledSet(ids, tuple(labels), tuple(groups))


def _labels(row: Row) -> dict[str, Any]:
    held = held_fields(row, LABEL_KEYS)
    if held is None:
        return {key: decoded(value) for key, value in row.items() if key not in OTHER_KEYS}
    return dict(read_values(held, list(held)).fields)


def match_predictions(
    labelled: LabelledSet,
    rows: Sequence[Row],
    name: str,
    *,
    columns: Mapping[str, str] = NO_NAMES,
    in_order: bool = False,
) -> MatchedPredictions:
    """Predictions from rows of the same forms, or with one text (`text`, `response`, …) that is or holds the answer.

    `columns` names the column of a field that has another name; `id` may be among them. With `in_order` the rows are
    those of the labels, one for one.

    Raises:
        DataError: without rows or ids, for an id that occurs twice, when no id is one of the labels', or when no row
            holds any labelled field.
    """
    if in_order and len(rows) != len(labelled.ids):
        raise DataError(f"{name}: {len(rows)} rows for {len(labelled.ids)} labels, so their order does not match them")
    ids = labelled.ids if in_order else _ids(rows, name, columns.get("id"))
    by_id = dict(zip(ids, rows, strict=True))
    keys = list(labelled.ids)
    if not set(keys) & set(ids):
        by_id, keys = _by_stem(by_id, name), [_stem(key) for key in keys]
        if len(set(keys)) < len(keys) or not set(keys) & set(by_id):
            raise DataError(
                f"{name}: no id of these predictions (such as `{ids[0]}`) is one of the labels' (`{labelled.ids[0]}`)"
            )
    fields = labelled.field_names
    _check_columns(columns, rows, fields, name)
    predictions = [
        _prediction(identifier, by_id.get(key), fields, columns)
        for identifier, key in zip(labelled.ids, keys, strict=True)
    ]
    if not any(prediction.fields or prediction.text or _is_broken(prediction) for prediction in predictions):
        raise DataError(_no_field(rows, fields, name))
    known = set(keys)
    return MatchedPredictions(
        tuple(predictions),
        missing=tuple(identifier for identifier, key in zip(labelled.ids, keys, strict=True) if key not in by_id),
        unknown=tuple(key for key in by_id if key not in known),
        unused=tuple(_unused(rows, fields, columns)),
    )


def _is_broken(prediction: Prediction) -> bool:
    return prediction.problem not in (None, NO_PREDICTION)


def _holder_names(fields: Sequence[str]) -> list[str]:
    """Columns that may hold the fields; one that is itself a labelled field is a value."""
    spelt = set(map(spelling, fields))
    return [name for name in FIELD_KEYS if spelling(name) not in spelt]


def _check_columns(columns: Mapping[str, str], rows: Sequence[Row], fields: Sequence[str], name: str) -> None:
    known = {str(key) for row in rows for key in row}
    for field, chosen in columns.items():
        if field not in (*fields, "id"):
            raise DataError(f"{name}: the labels have no field `{field}` — {nearest(field, fields)}")
        if chosen not in known:
            raise DataError(f"{name}: no column `{chosen}` — {nearest(chosen, known)}")


def _no_field(rows: Sequence[Row], fields: Sequence[str], name: str) -> str:
    found = list(dict.fromkeys(str(key) for row in rows for key in row))[:SHOWN]
    return (
        f"{name}: no row holds a labelled field ({', '.join(fields)}); its columns are {', '.join(found)} — name the "
        f'column of a field: --column "{fields[0]}=COLUMN"'
    )


def _unused(rows: Sequence[Row], fields: Sequence[str], columns: Mapping[str, str]) -> list[str]:
    """Columns that are neither a labelled field nor known to stand beside fields."""
    beside = {spelling(key) for key in (*fields, *OTHER_KEYS, *FIELD_KEYS, *TEXT_KEYS, *TRUTH_KEYS)}
    beside |= {spelling(chosen) for chosen in columns.values()}
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(map(str, held_fields(row, _holder_names(fields)) or row))
    return [name for name in names if spelling(name) not in beside]


def _prediction(identifier: str, row: Row | None, fields: Sequence[str], columns: Mapping[str, str]) -> Prediction:
    if row is None:
        return Prediction(identifier, "", problem=NO_PREDICTION)
    problem = str(row["problem"]) if row.get("problem") else None
    text = free_text(row)
    own = {field: row[chosen] for field, chosen in columns.items() if field != "id" and chosen in row}
    held = held_fields(row, _holder_names(fields))
    values = read_values({**(row if held is None else held), **own}, fields)
    if not values.fields and text:
        reply = read_object(text)
        values = read_values(reply.fields, fields)
        if not values.fields and len(fields) == 1:
            values = Values({fields[0]: text})
        else:
            problem = problem or reply.problem
    if not values.fields and not text and (truth := held_fields(row, TRUTH_KEYS)) is not None:
        values = read_values(truth, fields)  # predictions under the name of labels
    stated = row.get("confidence")
    confidence = dict(stated) if isinstance(stated, Mapping) else dict(values.confidence)
    return Prediction(identifier, text, dict(values.fields), confidence, problem=problem)


def _ids(rows: Sequence[Row], name: str, chosen: str | None = None) -> tuple[str, ...]:
    if not rows:
        raise DataError(f"{name}: no rows")
    key = chosen or id_column(rows)
    if key is None or key not in rows[0]:
        found = ", ".join(list(dict.fromkeys(str(key) for row in rows for key in row))[:SHOWN])
        raise DataError(
            f"{name}: no column names the sample in every row (its columns are {found}) — add `id` or `file`, or name "
            "the column: --column id=COLUMN; rows in the order of the labels: --in-order"
        )
    ids = tuple(str(row.get(key, "")) for row in rows)
    twice = [f"{identifier} occurs {count} times" for identifier, count in Counter(ids).items() if count > 1]
    if twice:
        more = ", …" if len(twice) > SHOWN else ""
        raise DataError(f"{name}: `{key}` {', '.join(twice[:SHOWN])}{more} — keep one row a sample")
    return ids


def _group(row: Row, label: Any, by: str) -> str | None:
    value = row.get(by, label)
    return None if value is None or value == "" else as_text(value)


def _stem(identifier: str) -> str:
    return PurePath(identifier.replace("\\", "/")).stem


def _by_stem(rows: Mapping[str, Row], name: str) -> dict[str, Row]:
    stems = Counter(_stem(identifier) for identifier in rows)
    twice = next((stem for stem, count in stems.items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{name}: several files are called `{twice}` — give predictions the ids of the labels")
    return {_stem(identifier): row for identifier, row in rows.items()}
