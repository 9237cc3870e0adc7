"""The values of one field over all pages, and what kind they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mllm_tailor.audit.evidence import LabelledPage
from mllm_tailor.data.formats import is_amount, is_date
from mllm_tailor.scoring.text import as_text, is_empty, normalise, typed_text
from mllm_tailor.tasks.printed import letters_and_digits

MOSTLY = 0.9  # share of the values that makes it a field of dates or of amounts
SCALARS = (str, int, float)


@dataclass(frozen=True)
class Value:
    """One filled value."""

    page: LabelledPage
    text: str
    key: str  # equal for values that mean the same

    @property
    def loose(self) -> str:
        """Without punctuation, case and spaces."""
        return letters_and_digits(self.text)


@dataclass(frozen=True)
class Column:
    """A field of single values."""

    name: str
    kind: str  # string, date, amount, number, integer, boolean, choice
    values: tuple[Value, ...]  # filled ones only
    empty: tuple[LabelledPage, ...]

    @property
    def by_page(self) -> dict[str, Value]:
        """Values by the id of their page."""
        return {value.page.id: value for value in self.values}


def columns(pages: Sequence[LabelledPage], kinds: Mapping[str, str]) -> list[Column]:
    """Every field that holds single values; lists and objects are left to other checks."""
    names = dict.fromkeys(name for page in pages for name in page.labels)
    return [column for name in names if (column := _column(name, pages, kinds.get(name, "string"))) is not None]


def _column(name: str, pages: Sequence[LabelledPage], kind: str) -> Column | None:
    filled = [page for page in pages if not is_empty(page.labels.get(name))]
    if not filled or not all(isinstance(page.labels[name], SCALARS) for page in filled):
        return None
    texts = [as_text(page.labels[name]) for page in filled]
    kind = _seen_kind(texts) if kind == "string" else kind
    values = tuple(
        Value(page, text, normalise(typed_text(page.labels[name], kind), kind))
        for page, text in zip(filled, texts, strict=True)
    )
    empty = tuple(page for page in pages if name in page.labels and is_empty(page.labels[name]))
    return Column(name, kind, values, empty)


def _seen_kind(texts: Sequence[str]) -> str:
    for kind, check in (("date", is_date), ("amount", is_amount)):
        if sum(map(check, texts)) >= MOSTLY * len(texts):
            return kind
    return "string"
