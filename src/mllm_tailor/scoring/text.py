"""Text normalisation before values are compared. Every normalisation of the project is defined here."""

from __future__ import annotations

import json
import math
import unicodedata
from typing import Any

from rapidfuzz import fuzz

from mllm_tailor.tasks.values import read_amount


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


def typed_text(value: Any, kind: str = "string") -> str:
    """`as_text`, with text in a `number` or `integer` field read as the number it writes: 12, 12.0 and "12.0" agree.

    >>> typed_text("12.0", "number"), typed_text(12.5, "number"), typed_text("12.0", "string")
    ('12', '12.5', '12.0')
    """
    if kind in ("number", "integer") and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return as_text(number) if math.isfinite(number) else value
    return as_text(value)


def is_empty(value: Any) -> bool:
    """Whether a value is empty: null, blank text, an empty list or object."""
    return value is None or value in ([], {}) or (isinstance(value, str) and not value.strip())


def is_reference_list(label: Any) -> bool:
    """Whether a label is a list of texts: all right answers."""
    return isinstance(label, list) and bool(label) and all(isinstance(answer, str) for answer in label)


def nearest_reference(label: Any, predicted: Any) -> Any:
    """Of a label with several right answers the one most similar to the reply; any other label as it is.

    >>> nearest_reference(["x-ray", "radiograph"], "xray")
    'x-ray'
    """
    if not is_reference_list(label):
        return label
    text = as_text(predicted)
    return max(label, key=lambda answer: (answer == text, fuzz.ratio(answer, text)))


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
