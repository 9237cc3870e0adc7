"""Micro F1 of exact values, as SROIE ranks its task 3."""

from __future__ import annotations

from typing import Any

from mllm_tailor.scoring.metrics.base import ByField, Ratio
from mllm_tailor.scoring.text import is_empty, typed_text


def _counts(label: Any, predicted: Any, kind: str) -> Ratio:
    """2·hits over submitted + true, whose ratio of sums is 2PR/(P+R).

    Precision is over the submitted non-empty values, recall over the labelled ones; a hit is an equal string
    (ICDAR 2019 SROIE, task 3 evaluation protocol).
    """
    submitted, true = not is_empty(predicted), not is_empty(label)
    hit = submitted and true and typed_text(label, kind) == typed_text(predicted, kind)
    return Ratio(2.0 * hit, float(submitted) + float(true))


F1 = ByField(_counts, pool="sum")
