"""Similarity and equality of single values."""

from __future__ import annotations

from typing import Any

from rapidfuzz import fuzz

from mllm_tailor.scoring.metrics.base import ByField, Ratio, right
from mllm_tailor.scoring.text import as_text, normalise


def published_similarity(label: Any, predicted: Any) -> int:
    """0..100: `thefuzz.fuzz.ratio` of `str()` of both values, which is rapidfuzz's ratio, rounded.

    Source: the published receipt recipe (CVxTz/doc-llm, evaluation_utils.py): no normalisation, a missing predicted key
    is the empty string, only labelled keys count. Followed exactly, so that figures are comparable.

    >>> published_similarity("13/03/2018", "13/03/2016")
    90
    """
    return round(fuzz.ratio(str(label), str(predicted)))


def _fuzzy(label: Any, predicted: Any, kind: str) -> Ratio:
    return Ratio(published_similarity(label, predicted) / 100, 1.0)


def _exact(label: Any, predicted: Any, kind: str) -> Ratio:
    return right(as_text(label) == as_text(predicted))


def _normalised(label: Any, predicted: Any, kind: str) -> Ratio:
    return right(normalise(as_text(label), kind) == normalise(as_text(predicted), kind))


FUZZY = ByField(_fuzzy)
EXACT = ByField(_exact)
NORMALISED_EXACT = ByField(_normalised)  # see text.normalise for what is made equal
