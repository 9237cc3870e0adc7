"""In how many ways a field is written: dates come in a dozen, amounts with and without a currency."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_DAY = "|".join(
    (
        r"\d{1,4}\s*[-/. ]\s*\d{1,2}\s*[-/. ]\s*\d{1,4}",
        r"\d{8}",
        rf"\d{{1,2}}\W*{_MONTH}\W*\d{{2,4}}",
        rf"{_MONTH}\W*\d{{1,2}}\W+\d{{2,4}}",
    )
)
_CLOCK = r"(?:[ T,]+\d{1,2}:\d{2}(?::\d{2})?\s*(?:am|pm)?)?"
_DATE = re.compile(rf"(?:{_DAY}){_CLOCK}(?:\s*\(?[a-z]{{3,9}}\)?)?", re.IGNORECASE)
_AMOUNT = re.compile(r"[-(]?\s*(?:[A-Z]{1,3}\$?|[$€£¥₹])?\s*-?\d[\d,. ']*\s*(?:[A-Z]{2,3}|[$€£¥₹])?\)?", re.IGNORECASE)


@dataclass(frozen=True)
class Pattern:
    """One way a field is written: digits as 9, letters as A or a."""

    shape: str
    count: int
    examples: tuple[str, ...]  # ids of samples written so


def is_date(text: str) -> bool:
    """Whether a text is a date as people print them.

    >>> [is_date(text) for text in ("25/12/2018", "1 Jan 2018", "2018-03-04 10:22", "9.00")]
    [True, True, True, False]
    """
    return _DATE.fullmatch(text.strip()) is not None


def is_amount(text: str) -> bool:
    """Whether a text is a sum of money, with or without its currency.

    >>> [is_amount(text) for text in ("9.00", "RM 9.00", "$1,200.50", "nine")]
    [True, True, True, False]
    """
    return _AMOUNT.fullmatch(text.strip()) is not None


def shape(value: str) -> str:
    """How a value is written, whatever it says: the currency stays, whole digits of an amount count as one.

    >>> shape("25/12/2018"), shape("RM 1,234.50"), shape("3 Mar 2018")
    ('99/99/9999', 'RM 9,999.99', '9 Aaa 9999')
    """
    if is_date(value):
        return re.sub(r"[a-z]", "a", re.sub(r"[A-Z]", "A", re.sub(r"\d", "9", value)))
    if is_amount(value):
        whole, dot, cents = value.rpartition(".")
        digits = re.sub(r"\d+", "9", whole if dot else cents)
        digits = re.sub(r"9(,9)+", "9,999", digits)
        return digits + dot + (re.sub(r"\d", "9", cents) if dot else "")
    return re.sub(r"[A-Z]+", "A", re.sub(r"[a-z]+", "a", re.sub(r"\d+", "9", value)))


def patterns(values: Iterable[tuple[str, str]], kept: int = 3) -> tuple[Pattern, ...]:
    """Ways in which (sample id, value) pairs are written, the most frequent first."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for identifier, value in values:
        form = shape(value)
        counts[form] += 1
        if len(found := examples.setdefault(form, [])) < kept:
            found.append(identifier)
    return tuple(Pattern(form, count, tuple(examples[form])) for form, count in counts.most_common())
