"""Every wrong value of the tuned model, for the report: sorted, filtered by field and kind of error, and as CSV."""

from __future__ import annotations

import base64
import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mllm_tailor.core.terminal import printable
from mllm_tailor.reporting.diff import mark_difference, shorten
from mllm_tailor.reporting.report_data import ReportData
from mllm_tailor.scoring.errors import KINDS, kind_of_error
from mllm_tailor.scoring.text import as_text, nearest_reference

LONGEST_SHOWN = 300  # characters of a value in the table; the CSV file has the whole


@dataclass(frozen=True)
class WrongValue:
    """One value of the tuned model that differs from its label."""

    id: str
    field: str
    label: str
    tuned: str
    base: str
    kind: str
    confidence: float | None

    @property
    def marked(self) -> tuple[Markup, Markup]:
        """Label and reply, escaped, with the differing characters marked."""
        return mark_difference(shorten(self.label, LONGEST_SHOWN), shorten(self.tuned, LONGEST_SHOWN))


@dataclass(frozen=True)
class Choice:
    """One option of a filter: `index` names it in the rows."""

    index: int
    name: str
    count: int


@dataclass(frozen=True)
class WrongValues:
    """All of them, the most confident first, with the options of both filters."""

    rows: tuple[WrongValue, ...]
    fields: tuple[Choice, ...]
    kinds: tuple[Choice, ...]

    def indices(self, row: WrongValue) -> tuple[int, int]:
        """The options (field, kind) that a row belongs to."""
        field = next(choice.index for choice in self.fields if choice.name == row.field)
        return field, next(choice.index for choice in self.kinds if choice.name == row.kind)

    @property
    def has_confidence(self) -> bool:
        """Whether any value has a confidence."""
        return any(row.confidence is not None for row in self.rows)

    @property
    def filter_style(self) -> Markup:
        """CSS rules that hide the rows of other options; filters work without a script."""
        rules = [
            Markup('#wrong:has(#{a}{i}:checked) tbody tr:not([data-{a}="{i}"]) {{ display: none; }}').format(
                a=axis, i=choice.index
            )
            for axis, choices in (("field", self.fields), ("kind", self.kinds))
            for choice in choices
        ]
        return Markup("\n").join(rules)

    @property
    def csv(self) -> str:
        """A data URI of the table as CSV."""
        head = ("sample", "field", "kind of error", "confidence", "label", "tuned", "base")
        body = (
            (
                row.id,
                row.field,
                row.kind,
                "" if row.confidence is None else row.confidence,
                row.label,
                row.tuned,
                row.base,
            )
            for row in self.rows
        )
        return csv_uri([head, *body])


def find_wrong_values(data: ReportData) -> WrongValues:
    """Compare every labelled value with the tuned model's, exactly."""
    rows: list[WrongValue] = []
    pairs = zip(data.labels, data.predictions[data.base], data.predictions[data.tuned], strict=True)
    for labels, base, tuned in pairs:
        for name, label in labels.items():
            kind = kind_of_error(name, labels, tuned.fields)
            if kind != "right":
                reply = tuned.fields.get(name)
                nearest = as_text(nearest_reference(label, reply))
                confidence = tuned.likelihood(name)
                rows.append(
                    WrongValue(
                        tuned.id, name, nearest, as_text(reply), as_text(base.fields.get(name)), kind, confidence
                    )
                )
    rows.sort(key=lambda row: -1.0 if row.confidence is None else row.confidence, reverse=True)
    kinds = Counter(row.kind for row in rows)
    fields = Counter(row.field for row in rows)
    names = dict.fromkeys(name for labels in data.labels for name in labels)
    return WrongValues(tuple(rows), _choices(names, fields), _choices(KINDS, kinds))


def _choices(names: Iterable[str], counts: Counter[str]) -> tuple[Choice, ...]:
    present = [name for name in names if counts[name]]
    return tuple(Choice(index, name, counts[name]) for index, name in enumerate(present))


def scores_csv(data: ReportData) -> str:
    """A data URI of every metric of every system, over all fields and for each, as CSV."""
    rows: list[Sequence[object]] = [("system", "metric", "field", "samples", "value")]
    for system, scores in data.systems.items():
        for metric, score in scores.metrics.items():
            for field, ratios in (("", score.samples), *score.fields.items()):
                rows.append((system, metric, field, ratios.count, f"{ratios.value:.4f}" if ratios.count else ""))
    return csv_uri(rows)


def csv_uri(rows: Iterable[Sequence[object]]) -> str:
    """The rows as a data URI; text that a spreadsheet would run as a formula is quoted."""
    stream = io.StringIO()
    csv.writer(stream).writerows([_cell(value) for value in row] for row in rows)
    encoded = base64.b64encode(("\ufeff" + stream.getvalue()).encode("utf-8")).decode("ascii")
    return f"data:text/csv;charset=utf-8;base64,{encoded}"


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = printable(value)
    if not text.startswith(("=", "+", "-", "@")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
