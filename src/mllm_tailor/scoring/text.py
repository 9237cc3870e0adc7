"""Text normalisation before values are compared. Every normalisation of the project is defined here."""

from __future__ import annotations

import json
import re
import unicodedata
from decimal import Decimal
from typing import Any

# At most one currency sign or code before and after the digits; what else surrounds a number makes it no amount.
_CURRENCY = r"(?:[a-z]{1,3}|[^\w\s.,()+-])?"
_AMOUNT = re.compile(rf"{_CURRENCY} ?(?P<sign>[-+]?) ?(?P<number>\d[\d.,' ]*){_CURRENCY}")


def as_text(value: Any) -> str:
    """A value as a string: empty for null, `9` for 9.0, JSON with sorted keys for lists and objects.

    >>> as_text(9.0), as_text(None), as_text(True), as_text(["a", 1])
    ('9', '', 'true', '["a", 1]')
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    except RecursionError:
        return "(nested too deeply to compare)"


def is_empty(value: Any) -> bool:
    """Whether a value is empty: null, blank text, an empty list or object."""
    return value is None or value in ([], {}) or (isinstance(value, str) and not value.strip())


def squeeze(text: str) -> str:
    """NFKC, casefold, and single spaces between words.

    >>> squeeze("  Ａｃｍｅ\\tSDN  BHD ")
    'acme sdn bhd'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def normalise(text: str, kind: str = "string") -> str:
    """`squeeze`, and for an `amount` its number alone: currency and thousands marks are dropped.

    Dates are not reinterpreted: `12/01/2018` and `12 JAN 2018` stay different.

    >>> normalise("RM 1,234.50", "amount"), normalise("12 Jan  2018", "date")
    ('1234.5', '12 jan 2018')
    """
    number = read_amount(text) if kind == "amount" else None
    if number is None:
        return squeeze(text)
    digits = f"{number:f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def read_amount(text: str) -> Decimal | None:
    """The number of a written amount, or None when it is not one.

    The last mark is the decimal mark unless exactly three digits follow it and no other mark differs from it.

    >>> read_amount("$1.234,50"), read_amount("9"), read_amount("1,234"), read_amount("12/01/2018")
    (Decimal('1234.50'), Decimal('9'), Decimal('1234'), None)
    """
    match = _AMOUNT.fullmatch(squeeze(text))
    if match is None:
        return None
    digits = re.sub(r"[ ']", "", match["number"]).rstrip(".,")
    marks = re.findall(r"[.,]", digits)
    whole, _, fraction = digits.rpartition(marks[-1]) if marks else (digits, "", "")
    grouped = bool(marks) and len(set(marks)) == 1 and (len(fraction) == 3 or len(marks) > 1)
    if not marks or grouped:
        whole, fraction = digits, ""
    return Decimal(match["sign"] + re.sub(r"[.,]", "", whole) + (f".{fraction}" if fraction else ""))
