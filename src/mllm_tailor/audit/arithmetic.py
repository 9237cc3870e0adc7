"""Sums and products that hold for nearly all samples, and the few for which they do not.

The relations are found in the labels, not declared: a field that is the sum of two others, the sum of a column of line
items, a cell that is the product of two others of its row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import combinations, permutations
from typing import Any

from mllm_tailor.audit.evidence import Evidence, LabelledPage
from mllm_tailor.scoring.text import as_text
from mllm_tailor.tasks.values import read_amount

ENOUGH = 10  # samples in which a relation can be tried
HOLDS = 0.8  # share of them in which it must hold
WIDEST = 12  # number fields; more are not tried, since triples grow with their cube
ROUNDING = Decimal("0.015")  # of each amount

Numbers = dict[str, Decimal]


@dataclass(frozen=True)
class _Trial:
    """A relation tried on one sample."""

    page: LabelledPage
    blamed: str  # the field to look at
    stated: Decimal
    computed: Decimal
    holds: bool


def find_false_sums(pages: Sequence[LabelledPage]) -> Iterator[Evidence]:
    """Evidence against labels that break a relation which holds elsewhere."""
    for formula, trials in _relations(pages):
        right = sum(trial.holds for trial in trials)
        if len(trials) < ENOUGH or right < HOLDS * len(trials):
            continue
        weight = 0.8 * right / len(trials)
        for trial in trials:
            if not trial.holds:
                reason = (
                    f"{formula} gives {trial.computed:f}, and the label is {trial.stated:f}; "
                    f"it holds for {right} of {len(trials)}"
                )
                yield Evidence(trial.page.id, trial.blamed, "arithmetic", weight, reason, f"{trial.computed:f}")


def _relations(pages: Sequence[LabelledPage]) -> Iterator[tuple[str, list[_Trial]]]:
    numbers = {page.id: _numbers(page.labels) for page in pages}
    fields = list(dict.fromkeys(name for known in numbers.values() for name in known))[:WIDEST]
    for total in fields:
        for first, second in combinations([name for name in fields if name != total], 2):
            trials = [
                _trial(page, total, known[total], known[first] + known[second], terms=2)
                for page in pages
                if {total, first, second} <= (known := numbers[page.id]).keys() and known[first] and known[second]
            ]
            yield f"{first} + {second}", trials
    yield from _column_sums(pages, numbers, fields)
    yield from _row_products(pages)


def _column_sums(
    pages: Sequence[LabelledPage], numbers: Mapping[str, Numbers], fields: Sequence[str]
) -> Iterator[tuple[str, list[_Trial]]]:
    rows = {page.id: _rows(page.labels) for page in pages}
    columns = dict.fromkeys(
        (name, column)
        for lists in rows.values()
        for name, entries in lists.items()
        for row in entries
        for column in row
    )
    for name, column in columns:
        for total in fields:
            trials = []
            for page in pages:
                entries = rows[page.id].get(name, [])
                if total in numbers[page.id] and entries and all(column in row for row in entries):
                    computed = sum((row[column] for row in entries), Decimal(0))
                    trials.append(_trial(page, total, numbers[page.id][total], computed, terms=len(entries)))
            yield f"the sum of {name}.{column}", trials


def _row_products(pages: Sequence[LabelledPage]) -> Iterator[tuple[str, list[_Trial]]]:
    cells = [(page, name, row) for page in pages for name, entries in _rows(page.labels).items() for row in entries]
    for name in dict.fromkeys(name for _, name, _ in cells):
        names = list(dict.fromkeys(column for _, field, row in cells if field == name for column in row))[:WIDEST]
        for product, first, second in permutations(names, 3):
            if first > second:
                continue
            trials = [
                _trial(page, name, row[product], row[first] * row[second], terms=1)
                for page, field, row in cells
                if field == name and {product, first, second} <= row.keys() and row[first] != 1 and row[second] != 1
            ]
            yield f"{name}: {first} times {second}", trials


def _trial(page: LabelledPage, blamed: str, stated: Decimal, computed: Decimal, *, terms: int) -> _Trial:
    holds = abs(stated - computed) <= ROUNDING * (1 + terms if terms > 1 else 1)
    return _Trial(page, blamed, stated, computed, holds)


def _numbers(labels: Mapping[str, Any]) -> Numbers:
    return {name: number for name, value in labels.items() if (number := _number(value)) is not None}


def _rows(labels: Mapping[str, Any]) -> dict[str, list[Numbers]]:
    lists = {
        name: value
        for name, value in labels.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    return {name: [_numbers(row) for row in value if isinstance(row, dict)] for name, value in lists.items()}


def _number(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return read_amount(as_text(value))
