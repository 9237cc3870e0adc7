"""Every value of a reply judged right or wrong against its label: what a calibration is fitted on and checked by."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mllm_tailor.core.sample import Prediction
from mllm_tailor.scoring.metrics import METRICS, Metric
from mllm_tailor.scoring.metrics.line_items import ORDERED, align, cells_of
from mllm_tailor.scoring.text import is_empty

# Metrics that call a single value right or wrong, the strictest meaning of a task first.
DECIDING = ("iou_50", "mask_iou_50", "accuracy", "normalised_exact", "exact")
_ROW = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True)
class JudgedValue:
    """One value of a reply."""

    path: str  # `total`, `items.0.price`
    scores: Mapping[str, float]  # raw scores of the reply
    right: bool
    sample: int  # index of its sample
    unit: int  # independent unit: its group, else its sample

    @property
    def name(self) -> str:
        """Field or column, without the number of the row."""
        return value_name(self.path)


def value_name(path: str) -> str:
    """The field or column that a path belongs to.

    >>> value_name("items.12.price"), value_name("total")
    ('items.price', 'total')
    """
    return _ROW.sub("", path)


def deciding_metric(metrics: Sequence[str]) -> str | None:
    """The metric that decides what is right, among those that a run is scored by; None for captions and rankings."""
    return next((name for name in DECIDING if name in metrics), None)


def judge(
    labels: Sequence[Mapping[str, Any]],
    predictions: Sequence[Prediction],
    units: Sequence[int],
    metric: str,
    kinds: Mapping[str, str],
) -> list[JudgedValue]:
    """Every value that has raw scores and a label, in the order of the samples."""
    decide: Metric = METRICS.load(metric)
    values = []
    for index, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
        right = dict(_verdicts(label, prediction, decide, kinds))
        values += [
            JudgedValue(path, scores, right[path], index, int(units[index]))
            for path, scores in prediction.raw.items()
            if path in right
        ]
    return values


def _verdicts(
    label: Mapping[str, Any], prediction: Prediction, metric: Metric, kinds: Mapping[str, str]
) -> Iterator[tuple[str, bool]]:
    for name in label:
        value = prediction.fields.get(name)
        if name not in prediction.fields:
            continue
        if _has_rows(label[name], value, kinds.get(name)):
            yield from _list_verdicts(name, label[name], value, kinds)
            continue
        ratio = metric.field(label, prediction, name, kinds)
        if ratio.denominator:
            yield name, ratio.numerator >= ratio.denominator
        if isinstance(value, Mapping) and isinstance(label[name], Mapping):
            told, true = (cells_of(cells, name, kinds) for cells in (value, label[name]))
            yield from ((f"{name}.{member}", told.get(member) == true.get(member)) for member in map(str, value))


def _has_rows(label: Any, value: Any, kind: str | None) -> bool:
    if kind in ("list", ORDERED):
        return True
    return any(isinstance(rows, list) and any(isinstance(row, Mapping) for row in rows) for rows in (label, value))


def _list_verdicts(name: str, label: Any, value: Any, kinds: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """The whole list: every row there, and right; then each cell, beside the labelled row that its row is aligned with.

    A cell of a row that the label lacks is wrong.
    """
    told, true = ([cells_of(row, name, kinds) for row in _rows(rows)] for rows in (value, label))
    filled = [[index for index, row in enumerate(rows) if row] for rows in (told, true)]
    pairs = align(
        [true[index] for index in filled[1]], [told[index] for index in filled[0]], ordered=kinds.get(name) == ORDERED
    )
    partner = {filled[0][second]: true[filled[1][first]] for first, second in pairs}
    whole = len(filled[0]) == len(filled[1]) == len(pairs)
    yield name, whole and all(told[index] == row for index, row in partner.items())
    for index, row in enumerate(_rows(value)):
        for column in map(str, row):
            right = index in partner and told[index].get(column) == partner[index].get(column)
            yield f"{name}.{index}.{column}", right


def _rows(value: Any) -> list[Mapping[str, Any]]:
    rows = [value] if isinstance(value, Mapping) else value
    if not isinstance(rows, list) or is_empty(rows):
        return []
    return [row if isinstance(row, Mapping) else {} for row in rows]
