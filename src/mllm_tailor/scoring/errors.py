"""Error classification: one kind for every field of every reply, from harmless to wrong."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein

from mllm_tailor.core.sample import Prediction
from mllm_tailor.scoring.text import as_text, is_empty, nearest_reference, squeeze
from mllm_tailor.tasks.values import read_amount

# In the order in which they are tested; the first that applies is taken.
KINDS: dict[str, str] = {
    "right": "equal to the last character",
    "absent": "labelled, but the reply leaves it empty",
    "invented": "the label is empty, but the reply has a value",
    "case or spaces": "equal except for case, spaces or character width",
    "amount format": "the same number with another currency sign or separator",
    "date format": "the same day in another order or notation",
    "another field's value": "the value of another field of the same sample",
    "one or two characters": "at most two characters differ",
    "truncated": "the reply is a substring of the label",
    "extra text": "the label is a substring of the reply",
    "different": "none of the above",
}

SMALL = 2  # characters
SHORTEST_PART = 3  # characters; a shorter substring can occur by chance
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def kind_of_error(name: str, labels: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    """The key of `KINDS` for field `name` of one reply."""
    label = as_text(nearest_reference(labels.get(name), fields.get(name)))
    predicted = as_text(fields.get(name))
    if label == predicted:
        return "right"
    if is_empty(predicted):
        return "right" if is_empty(label) else "absent"
    if is_empty(label):
        return "invented"
    others = [squeeze(as_text(value)) for key, value in labels.items() if key != name]
    return _kind(label, predicted, others)


def _kind(label: str, predicted: str, others: Sequence[str]) -> str:
    expected, actual = squeeze(label), squeeze(predicted)
    amount, day = read_amount(label), date_parts(label)
    if expected == actual:
        return "case or spaces"
    if amount is not None and amount == read_amount(predicted):
        return "amount format"
    if day is not None and day == date_parts(predicted):
        return "date format"
    if actual in others:
        return "another field's value"
    if Levenshtein.distance(expected, actual, score_cutoff=SMALL) <= SMALL < len(expected):
        return "one or two characters"
    if len(actual) >= SHORTEST_PART and actual in expected:
        return "truncated"
    if len(expected) >= SHORTEST_PART and expected in actual:
        return "extra text"
    return "different"


def date_parts(text: str) -> Counter[int] | None:
    """The three numbers of a date in any order (month names read, years cut to two digits); None if it is no date.

    Order is ignored on purpose: this only classifies a wrong date, it never makes a date right.

    >>> date_parts("30 DEC 2017") == date_parts("2017-12-30")
    True
    """
    text = squeeze(text)
    if "," in text and not re.search("[a-z]", text):  # 1,049.00
        return None
    parts: list[int] = []
    for word in re.findall(r"\d+|[a-z]+", text):
        if word.isdigit() and len(word) <= 4:
            parts.append(int(word) % 100)
        elif word[:3] in _MONTHS:
            parts.append(_MONTHS.index(word[:3]) + 1)
        else:
            return None
    return Counter(parts) if len(parts) == 3 else None


def count_errors(
    labels: Sequence[Mapping[str, Any]], predictions: Sequence[Prediction], field_names: Sequence[str]
) -> dict[str, dict[str, int]]:
    """How often each kind occurs in each field: `{field: {kind: count}}`, every kind present."""
    counts = {name: dict.fromkeys(KINDS, 0) for name in field_names}
    for label, prediction in zip(labels, predictions, strict=True):
        for name in field_names:
            if name in label:
                counts[name][kind_of_error(name, label, prediction.fields)] += 1
    return counts
