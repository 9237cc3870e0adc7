"""Rates of parsed replies, of absent values and of invented values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mllm_tailor.core.sample import Prediction
from mllm_tailor.scoring.metrics.base import NOTHING, ByField, Ratio, Whole, right
from mllm_tailor.scoring.text import is_empty


def _parsed(_labels: Mapping[str, Any], prediction: Prediction) -> Ratio:
    return right(prediction.problem is None)


def _absent(label: Any, predicted: Any, _kind: str) -> Ratio:
    """Over the labelled values."""
    return NOTHING if is_empty(label) else right(is_empty(predicted))


def _invented(label: Any, predicted: Any, _kind: str) -> Ratio:
    """Over the values that the label leaves empty."""
    return right(not is_empty(predicted)) if is_empty(label) else NOTHING


PARSE_RATE = Whole(_parsed)
ABSENT_RATE = ByField(_absent, pool="sum", better="lower")
INVENTED_RATE = ByField(_invented, pool="sum", better="lower")
