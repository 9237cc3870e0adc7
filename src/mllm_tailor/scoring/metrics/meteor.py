"""METEOR without WordNet: equal words and equal stems match, synonyms do not.

Formula and weights are those of Banerjee and Lavie 2005 (ACL W05-0909, section 2); version 1.5 also
weighs function words and paraphrases, so its figures are not comparable.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import snowballstemmer

from mllm_tailor.scoring.metrics.base import NOTHING, ByField, Ratio
from mllm_tailor.scoring.metrics.captions import Words, references_of, words
from mllm_tailor.scoring.text import as_text

_PORTER = snowballstemmer.stemmer("porter")


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem of a lower-case word by Porter's algorithm (1980), which the paper names.

    >>> [stem(word) for word in ("stirring", "potatoes", "relational", "happy")]
    ['stir', 'potato', 'relat', 'happi']
    """
    return str(_PORTER.stemWord(word))


def meteor(reference: Words, said: Words) -> float:
    """0..1: F with recall weighted nine times as much as precision, reduced by up to half for word order.

    Equal texts score 1; by the formula of the paper a text of n words would score 1 - 0.5 / n^3.
    """
    if reference == said:
        return 1.0
    runs = list(common_runs([stem(word) for word in reference], [stem(word) for word in said]))
    matched = sum(runs)
    if not matched:
        return 0.0
    precision, recall = matched / len(said), matched / len(reference)
    f_mean = 10 * precision * recall / (recall + 9 * precision)
    return f_mean * (1 - 0.5 * (len(runs) / matched) ** 3)


def common_runs(reference: Words, said: Words) -> Iterator[int]:
    """Lengths of the runs of words that two texts share, longest first; no word is used twice.

    This greedy alignment matches as many words as possible in few runs; the search of the paper is greedy too.
    """
    left, right = list(range(len(reference))), list(range(len(said)))
    while True:
        length, first, second = _longest_run(reference, said, set(left), set(right))
        if not length:
            return
        yield length
        left = [index for index in left if not first <= index < first + length]
        right = [index for index in right if not second <= index < second + length]


def _longest_run(reference: Words, said: Words, left: set[int], right: set[int]) -> tuple[int, int, int]:
    """(length, start, start) of the longest run both texts share among the unmatched words; ties: the first."""
    best = (0, 0, 0)
    for first in sorted(left):
        for second in sorted(right):
            length = 0
            while (
                first + length in left
                and second + length in right
                and reference[first + length] == said[second + length]
            ):
                length += 1
            best = max(best, (length, -first, -second))
    return best[0], -best[1], -best[2]


def _meteor(label: Any, predicted: Any, _kind: str) -> Ratio:
    references, said = references_of(label), words(as_text(predicted))
    return Ratio(max(meteor(reference, said) for reference in references), 1.0) if references else NOTHING


METEOR = ByField(_meteor, takes_references=True)
