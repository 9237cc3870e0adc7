"""Recall at k: whether the right item is among the first k of a ranking (Karpathy and Fei-Fei 2015, 1412.2306)."""

from __future__ import annotations

from typing import Any

from mllm_tailor.scoring.metrics.base import ByField, Ratio, right


def recall_at(k: int) -> ByField:
    """Each field is a ranking, such as texts for an image or images for a text; a sample's score is their mean."""

    def compare(label: Any, ranking: Any, _kind: str) -> Ratio:
        first = ranking[:k] if isinstance(ranking, list) else [ranking]
        return right(label in first)

    return ByField(compare)


RECALL_1, RECALL_5, RECALL_10 = recall_at(1), recall_at(5), recall_at(10)
