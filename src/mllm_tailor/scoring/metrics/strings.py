"""Similarity and equality of single values."""

from __future__ import annotations

from typing import Any

from rapidfuzz import fuzz

from mllm_tailor.scoring.metrics.base import ByField, Ratio, right
from mllm_tailor.scoring.text import normalise, typed_text


def published_similarity(label: str, predicted: str) -> int:
    """0..100: `thefuzz.fuzz.ratio`, which is rapidfuzz's ratio, rounded.

    Source: the published receipt recipe (CVxTz/doc-llm, evaluation_utils.py): no normalisation, a missing predicted key
    is the empty string, only labelled keys count. Followed exactly
    for text, so that figures are comparable; numbers, which the recipe does not have, are compared by value.

    >>> published_similarity("13/03/2018", "13/03/2016")
    90
    """
    return round(fuzz.ratio(label, predicted))


def _fuzzy(label: Any, predicted: Any, kind: str) -> Ratio:
    return Ratio(published_similarity(typed_text(label, kind), typed_text(predicted, kind)) / 100, 1.0)


def _exact(label: Any, predicted: Any, kind: str) -> Ratio:
    return right(typed_text(label, kind) == typed_text(predicted, kind))


def _normalised(label: Any, predicted: Any, kind: str) -> Ratio:
    return right(normalise(typed_text(label, kind), kind) == normalise(typed_text(predicted, kind), kind))


FUZZY = ByField(_fuzzy)
EXACT = ByField(_exact)
NORMALISED_EXACT = ByField(_normalised)  # see text.normalise for what is made equal
