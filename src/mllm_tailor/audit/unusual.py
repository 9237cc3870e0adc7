"""Values that do not look like the others of their field: empty, of another kind, rarely written so, far off."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from mllm_tailor.audit.columns import Column, Value
from mllm_tailor.audit.evidence import Evidence, quoted
from mllm_tailor.data.formats import is_amount, is_date, shape
from mllm_tailor.tasks.values import read_amount, read_date

ENOUGH = 20  # values from which a habit can be told
RARE = 0.02  # share of the values
REGULAR = 0.1  # a field is written regularly if it has at most this many shapes a value
MOST_OF_GROUP = 0.8  # of its values written alike make a habit of a group
GROUP = 4  # other values of a group from which its habit can be told
FAR_DAYS = 3 * 366  # beyond the quartiles of the dates, and four times their distance
FAR_RATIO = 50.0  # beyond the quartiles of the amounts


def find_unusual(columns: Sequence[Column]) -> Iterator[Evidence]:
    """Evidence from the values of each field alone."""
    for column in columns:
        yield from _empty(column)
        yield from _other_kind(column)
        yield from _rare_shapes(column)
        yield from _group_shapes(column)
        yield from _far_off(column)


def _empty(column: Column) -> Iterator[Evidence]:
    filled = len(column.values) / (len(column.values) + len(column.empty))
    if len(column.values) < ENOUGH or filled <= 0.5:
        return
    for page in column.empty:
        reason = f"empty, while {filled:.1%} of the samples have {column.name}"
        yield Evidence(page.id, column.name, "empty", 0.9 * (2 * filled - 1), reason)


def _other_kind(column: Column) -> Iterator[Evidence]:
    check, name = {"date": (is_date, "a date"), "amount": (is_amount, "an amount")}.get(column.kind, (None, ""))
    if check is None:
        return
    for value in column.values:
        if not check(value.text):
            yield Evidence(value.page.id, column.name, "format", 0.8, f"{quoted(value.text)} is not {name}")


def _rare_shapes(column: Column) -> Iterator[Evidence]:
    """Shapes of a regularly written field that few values have."""
    if column.kind in ("choice", "boolean", "number", "integer"):
        return
    count = len(column.values)
    shapes = Counter(shape(value.text) for value in column.values)
    if count < ENOUGH or len(shapes) > REGULAR * count:
        return
    usual = shapes.most_common(1)[0][0]
    for value in column.values:
        same = shapes[shape(value.text)]
        if same < RARE * count:
            reason = f"written as {shape(value.text)} by {same} of {count}; the most usual is {usual}"
            yield Evidence(value.page.id, column.name, "format", 0.3 * (1 - same / (RARE * count)), reason)


def _group_shapes(column: Column) -> Iterator[Evidence]:
    """A value written unlike all others of its group, which are written alike."""
    if column.kind not in ("date", "amount"):
        return
    groups: dict[str, list[Value]] = defaultdict(list)
    for value in column.values:
        if value.page.group is not None:
            groups[value.page.group].append(value)
    for group, values in groups.items():
        shapes = Counter(shape(value.text) for value in values)
        usual, count = shapes.most_common(1)[0]
        if count < GROUP or count < MOST_OF_GROUP * len(values):
            continue
        for value in values:
            if shape(value.text) != usual:
                reason = f"written as {shape(value.text)}; {count} others of {quoted(group)} are written as {usual}"
                yield Evidence(value.page.id, column.name, "format", 0.25, reason)


def _far_off(column: Column) -> Iterator[Evidence]:
    """Dates and amounts far beyond the middle half of their field."""
    numbers = [(value, number) for value in column.values if (number := _number(value, column.kind)) is not None]
    if len(numbers) < ENOUGH:
        return
    low, _, high = statistics.quantiles([number for _, number in numbers])
    if column.kind == "date":
        low, high = low - 4 * (high - low) - FAR_DAYS, high + 4 * (high - low) + FAR_DAYS
    else:
        low, high = low / FAR_RATIO, high * FAR_RATIO
    far = [value for value, number in numbers if not low <= number <= high]
    for value in far:
        reason = f"{quoted(value.text)} is far from all other values of {column.name}"
        yield Evidence(value.page.id, column.name, "far off", 0.4, reason)


def _number(value: Value, kind: str) -> float | None:
    """Days of a date, the size of an amount other than zero."""
    if kind == "date":
        date = read_date(value.text, "dmy")
        return None if date is None else float(date.toordinal())
    amount = read_amount(value.text) if kind in ("amount", "number", "integer") else None
    return abs(float(amount)) if amount else None
