"""Average normalised Levenshtein similarity (Biten et al. 2019, "Scene Text Visual Question Answering", section 5)."""

from __future__ import annotations

from typing import Any

from rapidfuzz.distance import Levenshtein

from mllm_tailor.scoring.metrics.base import ByField, Ratio
from mllm_tailor.scoring.text import is_reference_list, typed_text

THRESHOLD = 0.5  # a similarity below it counts as 0


def similarity(answer: str, predicted: str) -> float:
    """0..1, ignoring case and spaces; divided by the length of the raw strings, as in the official scorer.

    >>> similarity("Acme  Ltd", "acme ltd"), similarity("abcd", "xbcd"), similarity("abcd", "wxyd")
    (1.0, 0.75, 0.0)
    """
    distance = Levenshtein.distance(" ".join(answer.lower().split()), " ".join(predicted.lower().split()))
    longest = max(len(answer), len(predicted))
    score = 1.0 - distance / longest if longest else 1.0
    return score if score >= THRESHOLD else 0.0


def _anls(label: Any, predicted: Any, kind: str) -> Ratio:
    accepted = label if is_reference_list(label) else [label]
    return Ratio(max(similarity(typed_text(answer, kind), typed_text(predicted, kind)) for answer in accepted), 1.0)


ANLS = ByField(_anls, takes_references=True)
