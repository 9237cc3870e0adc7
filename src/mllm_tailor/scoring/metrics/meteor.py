"""METEOR without Java and without WordNet: equal words and equal stems count as matches, synonyms do not.

Formula and weights are those of Banerjee and Lavie 2005 (ACL W05-0909, section 2); the later versions for Java (1.5)
weigh function words and paraphrases too, so figures of theirs cannot be compared with these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mllm_tailor.scoring.metrics.base import NOTHING, ByField, Ratio
from mllm_tailor.scoring.metrics.captions import Words, references_of, words
from mllm_tailor.scoring.stems import stem
from mllm_tailor.scoring.text import as_text


def meteor(reference: Words, said: Words) -> float:
    """0..1: F that weighs recall nine times as much as precision, less up to half for words out of order.

    Equal texts score 1; by the letter of the paper one of n words would score 1 - 0.5 / n^3.
    """
    if reference == said:
        return 1.0
    runs = list(common_runs([stem(word) for word in reference], [stem(word) for word in said]))
    matched = sum(runs)
    if not matched:
        return 0.0
    precision, recall = matched / len(said), matched / len(reference)
    weighed = 10 * precision * recall / (recall + 9 * precision)
    return weighed * (1 - 0.5 * (len(runs) / matched) ** 3)


def common_runs(reference: Words, said: Words) -> Iterator[int]:
    """Lengths of the runs of words two texts share, the longest first, no word used twice.

    As many words are matched as can be, and long runs keep the number of runs small; the paper's own search for the
    fewest crossings is as greedy as this.
    """
    left, right = list(range(len(reference))), list(range(len(said)))
    while True:
        length, first, second = _longest_run(reference, said, set(left), set(right))
        if not length:
            return
        yield length
        left = [place for place in left if not first <= place < first + length]
        right = [place for place in right if not second <= place < second + length]


def _longest_run(reference: Words, said: Words, left: set[int], right: set[int]) -> tuple[int, int, int]:
    """(length, start, start) of the longest run both texts share among the places left; of equals the first."""
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


def _meteor(label: Any, predicted: Any, kind: str) -> Ratio:
    references, said = references_of(label), words(as_text(predicted))
    return Ratio(max(meteor(reference, said) for reference in references), 1.0) if references else NOTHING


METEOR = ByField(_meteor)
