"""Line items: precision, recall and F1 of the rows and of the cells of list fields.

The rows of the reply are aligned with those of the label so that as many cells as possible are equal (ties: the most
similar text), whatever their order; a field of kind `ordered_list` keeps the order. A cell is right when it is equal
after normalisation, a row when all its cells are. Cells that are empty in both are not counted.

For order-free exact cells the cell F1 is the field F1 of CORD (Kim et al. 2022, "OCR-free Document Understanding
Transformer", section 3.2.1), except that a cell counts only beside the other cells of its row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rapidfuzz import fuzz

from mllm_tailor.core.sample import Prediction
from mllm_tailor.scoring.assignment import best_alignment, best_assignment
from mllm_tailor.scoring.metrics.base import NOTHING, Better, Ratio, add
from mllm_tailor.scoring.text import is_empty, normalise, typed_text

ORDERED = "ordered_list"  # the kind of a list field whose order matters
SIMILAR = 1e-3  # weight of similar text against one equal cell

Cells = Mapping[str, str]  # normalised text of the cells that are not empty


@dataclass(frozen=True)
class Counts:
    """Right, predicted and labelled rows or cells."""

    right: int
    predicted: int
    labelled: int


def rows_of(value: Any, field: str, kinds: Mapping[str, str]) -> list[Cells] | None:
    """The rows of a list of objects, empty ones left out; a lone object is one row; None for anything else."""
    rows = [value] if isinstance(value, Mapping) else value
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        return None
    return [filled for row in rows if (filled := cells_of(row, field, kinds))]


def cells_of(row: Mapping[str, Any], field: str, kinds: Mapping[str, str]) -> Cells:
    """The cells of one row of a list field that are not empty."""
    cells = {str(name): _cell(cell, kinds.get(f"{field}.{name}", "string")) for name, cell in row.items()}
    return {name: text for name, text in cells.items() if text}


def _cell(value: Any, kind: str) -> str:
    return "" if is_empty(value) else normalise(typed_text(value, kind), kind)


def align(labelled: Sequence[Cells], predicted: Sequence[Cells], *, ordered: bool) -> list[tuple[int, int]]:
    """Pairs of indices (labelled row, predicted row)."""
    if not labelled or not predicted:
        return []
    similarity = np.array([[_similarity(row, other) for other in predicted] for row in labelled])
    return best_alignment(similarity) if ordered else best_assignment(similarity)


def _similarity(labelled: Cells, predicted: Cells) -> float:
    shared = labelled.keys() & predicted.keys()
    close = sum(fuzz.ratio(labelled[name], predicted[name]) for name in shared) / (100 * max(1, len(labelled)))
    return sum(labelled[name] == predicted[name] for name in shared) + SIMILAR * close


@dataclass(frozen=True)
class LineItems:
    """One figure of rows or of cells, summed over samples and list fields. `items.price` names a column."""

    level: Literal["row", "cell"]
    figure: Literal["precision", "recall", "f1"]
    better: Better = "higher"

    def sample(self, labels: Mapping[str, Any], prediction: Prediction, kinds: Mapping[str, str]) -> Ratio:
        """All list fields of one sample; a sample without one is not scored."""
        return add(self.field(labels, prediction, name, kinds) for name in labels)

    def field(self, labels: Mapping[str, Any], prediction: Prediction, name: str, kinds: Mapping[str, str]) -> Ratio:
        """One list field or one column of it."""
        field, _, column = (name, "", "") if name in labels else name.partition(".")
        if field not in labels or (column and self.level == "row"):
            return NOTHING
        labelled = _labelled_rows(labels[field], field, kinds)
        if labelled is None:
            return NOTHING
        predicted = rows_of(prediction.fields.get(field), field, kinds) or []
        pairs = align(labelled, predicted, ordered=kinds.get(field) == ORDERED)
        if self.level == "row":
            right = sum(labelled[first] == predicted[second] for first, second in pairs)
            return self._ratio(Counts(right, len(predicted), len(labelled)))
        return self._ratio(_cells(labelled, predicted, pairs, column))

    def _ratio(self, counts: Counts) -> Ratio:
        if self.figure == "precision":
            return Ratio(float(counts.right), float(counts.predicted))
        if self.figure == "recall":
            return Ratio(float(counts.right), float(counts.labelled))
        return Ratio(2.0 * counts.right, float(counts.predicted + counts.labelled))


def _labelled_rows(value: Any, field: str, kinds: Mapping[str, str]) -> list[Cells] | None:
    if value == [] and kinds.get(field) in ("list", ORDERED):
        return []
    return rows_of(value, field, kinds)


def _cells(
    labelled: Sequence[Cells], predicted: Sequence[Cells], pairs: Sequence[tuple[int, int]], column: str
) -> Counts:
    """Cells of all columns, or of one."""

    def count(rows: Sequence[Cells]) -> int:
        return sum((name == column or not column) for row in rows for name in row)

    right = sum(
        labelled[first][name] == predicted[second].get(name)
        for first, second in pairs
        for name in labelled[first]
        if name == column or not column
    )
    return Counts(right, count(predicted), count(labelled))


def columns_of(labels: Sequence[Mapping[str, Any]], field_names: Sequence[str]) -> list[str]:
    """The columns of every list field, as `items.price`, in the order of the labels."""
    names: dict[str, None] = {}
    for field in field_names:
        for label in labels:
            value = label.get(field)
            rows = [value] if isinstance(value, Mapping) else value if isinstance(value, list) else []
            names |= {f"{field}.{key}": None for row in rows if isinstance(row, Mapping) for key in row}
    return list(names)


ROW_PRECISION, ROW_RECALL, ROW_F1 = LineItems("row", "precision"), LineItems("row", "recall"), LineItems("row", "f1")
CELL_PRECISION, CELL_RECALL, CELL_F1 = (
    LineItems("cell", "precision"),
    LineItems("cell", "recall"),
    LineItems("cell", "f1"),
)
