"""Error rates of transcription: edits needed over the length of the label, summed over all samples.

An insertion counts also where the label is empty, as in the corpus rate of jiwer and NIST sclite; a rate over 100 % is
not clipped.
"""

from __future__ import annotations

from typing import Any

from rapidfuzz.distance import Levenshtein

from mllm_tailor.scoring.metrics.base import ByField, Ratio
from mllm_tailor.scoring.text import as_text


def _words(label: Any, predicted: Any, _kind: str) -> Ratio:
    """Words are separated by white space and compared as written."""
    expected, actual = as_text(label).split(), as_text(predicted).split()
    return Ratio(float(Levenshtein.distance(expected, actual)), float(len(expected)))


def _characters(label: Any, predicted: Any, _kind: str) -> Ratio:
    """Characters as written, with white space reduced to single spaces."""
    expected, actual = (" ".join(as_text(value).split()) for value in (label, predicted))
    return Ratio(float(Levenshtein.distance(expected, actual)), float(len(expected)))


WORD_ERRORS = ByField(_words, pool="sum", better="lower")
CHARACTER_ERRORS = ByField(_characters, pool="sum", better="lower")
