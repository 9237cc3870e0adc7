"""Short free answers: accuracy of closed questions, token recall of open questions."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from mllm_tailor.scoring.metrics.base import NOTHING, ByField, Ratio, right
from mllm_tailor.scoring.text import as_text, squeeze

_NUMBERS = ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = {word: str(max(0, index - 1)) for index, word in enumerate(_NUMBERS)}
_ARTICLES = {"a", "an", "the"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'


def words(text: str) -> list[str]:
    """Lower case, punctuation and articles dropped, numbers up to ten as digits, `x ray` as one word.

    The rules of the VQA v2 scorer (Goyal et al. 2017) as medical question answering uses them; a point or comma
    between digits stays, so that 1.5 is not 15.

    >>> words("The X-ray shows two nodules, 1.5 cm.")
    ['xray', 'shows', '2', 'nodules', '1.5', 'cm']
    """
    text = re.sub(r"\bx[ -]ray", "xray", squeeze(text)).replace("'", "").replace("’", "")
    text = re.sub(r"(?<!\d)[.,:]|[.,:](?!\d)", " ", text)
    text = re.sub(r"[^\w\s.,:%+-]|_", " ", text)
    text = re.sub(r"(?<=[^\W\d])-(?=\w)", " ", text)
    return [_DIGITS.get(word, word) for word in text.split() if word not in _ARTICLES]


def published(text: str) -> list[str]:
    """Words as compared in medical question answering: VQA v2's scorer (Goyal et al. 2017) with two more rules.

    Line breaks become spaces; each of the marks below vanishes where one stands beside a space (or a comma between
    digits anywhere), else it becomes a space; points vanish unless a digit follows; numbers up to ten become digits,
    `none` 0, and articles go. PeFoMed (He et al. 2024, arXiv 2401.02797) adds: commas vanish, `x ray` is `xray`.

    Two things differ from the code in circulation. Its pattern for points is called with a flag where the number of
    replacements belongs (`re.UNICODE` is 32), so the 33rd point of a long answer survives: here all are treated alike.
    Its table of contractions, which puts apostrophes back (`dont`, `don't`), is done by dropping apostrophes.

    >>> published("The X ray shows two nodules, 1.5 cm.")
    ['xray', 'shows', '2', 'nodules', '1.5', 'cm']
    """
    text = " ".join(text.split())
    spread = re.search(r"\d,\d", text) is not None
    plain = text
    for mark in _MARKS:
        beside = f"{mark} " in text or f" {mark}" in text or spread
        plain = plain.replace(mark, "" if beside else " ")
    plain = re.sub(r"\.(?!\d)", "", plain).lower()
    plain = plain.replace(",", "").replace("'", "").replace("’", "")
    plain = re.sub(r"\bx[ -]ray", "xray", plain)
    return [_DIGITS.get(word, word) for word in plain.split() if word not in _ARTICLES]


def _accuracy(label: Any, predicted: Any, _kind: str) -> Ratio:
    return right(published(as_text(label)) == published(as_text(predicted)))


def _token_recall(label: Any, predicted: Any, _kind: str) -> Ratio:
    """The convention of LLaVA-Med (Li et al. 2023) for open questions; repeated words must be repeated."""
    expected, actual = Counter(words(as_text(label))), Counter(words(as_text(predicted)))
    return Ratio(float((expected & actual).total() / expected.total()), 1.0) if expected else NOTHING


ACCURACY = ByField(_accuracy)
TOKEN_RECALL = ByField(_token_recall)
