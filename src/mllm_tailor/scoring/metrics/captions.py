"""Free texts against one or several references: ROUGE-L, BLEU and CIDEr-D, without their Java tokenizer.

Words are runs of letters and digits in lower case, punctuation dropped; the published scorers split contractions too
("do n't"), so figures lie close to theirs without being equal. For METEOR see `meteor`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rapidfuzz.distance import LCSseq

from mllm_tailor.scoring.metrics.base import NOTHING, ByField, Corpus, Ratio
from mllm_tailor.scoring.text import as_text, squeeze

Words = list[str]
Counts = Counter[tuple[str, ...]]

ORDERS = (1, 2, 3, 4)  # n of the n-grams
RECALL_WEIGHT = 1.2  # beta of ROUGE-L as the COCO captions are scored
LENGTH_SIGMA = 6.0  # words; how fast CIDEr-D falls with another length


def words(text: str) -> Words:
    """Runs of letters and digits in lower case, an apostrophe inside them kept.

    >>> words("Don't stir: the pan's HOT.")
    ["don't", 'stir', 'the', "pan's", 'hot']
    """
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", squeeze(text))


def counts(text: Words, order: int) -> Counts:
    """Counts of the n-grams of a text, n = `order`."""
    return Counter(tuple(text[start : start + order]) for start in range(len(text) - order + 1))


def rouge_l(reference: Words, said: Words) -> float:
    """0..1: F of the longest common subsequence (Lin 2004, ACL W04-1013, equations 2 to 4) with beta 1.2."""
    common = LCSseq.similarity(reference, said)
    if not common:
        return 0.0
    precision, recall, weight = common / len(said), common / len(reference), RECALL_WEIGHT**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def bleu(references: Sequence[Words], said: Words) -> float:
    """0..1: BLEU-4 of one text (Papineni et al. 2002); for n > 1, one is added to matches and totals.

    The smoothing is that of Lin and Och (2004); without it a text without a common 4-gram scores 0. The mean over texts
    is not corpus BLEU, which sums the matches first.
    """
    if not said:
        return 0.0
    logs = 0.0
    for order in ORDERS:
        predicted, allowed = counts(said, order), Counter[tuple[str, ...]]()
        for reference in references:
            allowed |= counts(reference, order)
        added = order > 1
        hits, tries = (predicted & allowed).total() + added, predicted.total() + added
        if not hits:
            return 0.0
        logs += math.log(hits / tries) / len(ORDERS)
    nearest = min((abs(len(reference) - len(said)), len(reference)) for reference in references)[1]
    return math.exp(logs + min(0.0, 1 - nearest / len(said)))


@dataclass(frozen=True)
class Rarity:
    """Inverse document frequency of each n-gram: the logarithm of texts over texts that contain it."""

    texts: int
    containing: Mapping[tuple[str, ...], int]

    @classmethod
    def of(cls, samples: Sequence[Sequence[Words]]) -> Rarity:
        """From the references of every sample; an n-gram counts once a sample."""
        ngrams = (
            {ngram for reference in references for order in ORDERS for ngram in counts(reference, order)}
            for references in samples
        )
        return cls(len(samples), Counter(ngram for sample in ngrams for ngram in sample))

    def weigh(self, text: Words, order: int) -> dict[tuple[str, ...], float]:
        """Count times rarity of every n-gram (TF-IDF)."""
        return {
            ngram: count * math.log(self.texts / max(1, self.containing.get(ngram, 0)))
            for ngram, count in counts(text, order).items()
        }


def cider(references: Sequence[Words], said: Words, rarity: Rarity) -> float:
    """0..1: CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726, section 7); published figures are ten times this.

    Values of n for which a reference has no n-gram of positive weight are left out, so that a right answer of fewer
    than four words scores 1; the published scorer counts them as 0.
    """
    return sum(_cider(reference, said, rarity) for reference in references) / len(references)


def _cider(reference: Words, said: Words, rarity: Rarity) -> float:
    shares: list[float] = []
    for order in ORDERS:
        expected, actual = rarity.weigh(reference, order), rarity.weigh(said, order)
        size, said_size = math.hypot(*expected.values()), math.hypot(*actual.values())
        shared = sum(
            min(weight, expected[ngram]) * expected[ngram] for ngram, weight in actual.items() if ngram in expected
        )
        if size:
            shares.append(shared / (size * said_size) if said_size else 0.0)
    mean = sum(shares) / len(shares) if shares else 0.0
    return mean * math.exp(-((len(reference) - len(said)) ** 2) / (2 * LENGTH_SIGMA**2))


def references_of(label: Any) -> list[Words]:
    """The accepted texts of a label, one or a list of texts, that have any word."""
    texts = label if isinstance(label, list) and all(isinstance(text, str) for text in label) else [label]
    return [split for text in texts if (split := words(as_text(text)))]


def _rouge_l(label: Any, predicted: Any, _kind: str) -> Ratio:
    references, said = references_of(label), words(as_text(predicted))
    return Ratio(max(rouge_l(reference, said) for reference in references), 1.0) if references else NOTHING


def _bleu(label: Any, predicted: Any, _kind: str) -> Ratio:
    references = references_of(label)
    return Ratio(bleu(references, words(as_text(predicted))), 1.0) if references else NOTHING


def _cider_of(rarity: Rarity, label: Any, predicted: Any, _kind: str) -> Ratio:
    """A text whose n-grams all have weight 0 (every label contains them) is not scored."""
    references = [
        text for text in references_of(label) if any(any(rarity.weigh(text, order).values()) for order in ORDERS)
    ]
    return Ratio(cider(references, words(as_text(predicted)), rarity), 1.0) if references else NOTHING


def _over(labels: Sequence[Mapping[str, Any]]) -> ByField:
    """CIDEr with n-gram weights computed from these labels."""
    texts: Iterator[list[Words]] = (references_of(value) for label in labels for value in label.values())
    return ByField(
        partial(_cider_of, Rarity.of([references for references in texts if references])), takes_references=True
    )


ROUGE_L = ByField(_rouge_l, takes_references=True)
BLEU = ByField(_bleu, takes_references=True)
CIDER = Corpus(_over)
