"""Labels that do not occur in the text of their page: a transcript that the data bring, or the text layer of a PDF."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rapidfuzz import fuzz

from mllm_tailor.audit.columns import Column
from mllm_tailor.audit.evidence import PRIOR, Evidence, LabelledPage, quoted
from mllm_tailor.tasks.printed import NOT_PRINTED, letters_and_digits, same_meaning

SCATTERED = 0.1  # weight, against that of missing words, of words that are there but not side by side


@dataclass(frozen=True)
class _Absence:
    page: LabelledPage
    value: str
    degree: float  # 1: nothing of it is on the page
    nearest: str


def find_absent(columns: Sequence[Column]) -> Iterator[Evidence]:
    """Evidence for every printed value that its page's text does not hold.

    How much that says depends on how usual it is: where every third label of a field is absent, the text is read
    badly or labels are not copied from it.
    """
    for column in columns:
        if column.kind in NOT_PRINTED:
            continue
        checked = [value for value in column.values if value.page.text]
        absent = [
            _Absence(value.page, value.text, degree, _nearest(value.text, value.page.text or ""))
            for value in checked
            if (degree := _degree(value.text, column.kind, value.page.text or "")) > 0
        ]
        missing = sum(item.degree > SCATTERED for item in absent)
        if not missing:
            continue
        trust = min(1.0, 2 * PRIOR * len(checked) / missing)
        for item in absent:
            nearest = f"; the nearest is {quoted(item.nearest)}" if item.nearest else ""
            reason = f"{quoted(item.value)} is not in the text of the page{nearest}"
            yield Evidence(item.page.id, column.name, "page text", 0.9 * trust * item.degree, reason, item.nearest)


def _degree(value: str, kind: str, text: str) -> float:
    """0 for a value that the text holds, `SCATTERED` for one whose words it holds, up to 1 for one it does not."""
    whole = letters_and_digits(text)
    if letters_and_digits(value) in whole or same_meaning(value, kind, text):
        return 0.0
    if kind != "string":
        return 1.0
    words = [letters_and_digits(word) for word in re.split(r"\W+", value)]
    words = [word for word in words if word]
    missing = sum(len(word) for word in words if word not in whole)
    return SCATTERED if not missing else 0.6 + 0.4 * missing / sum(map(len, words))


def _nearest(value: str, text: str) -> str:
    """The piece of the text most like a value."""
    flat = " ".join(text.split())
    if not value.strip() or not flat:
        return ""
    alignment = fuzz.partial_ratio_alignment(value.casefold(), flat.casefold(), score_cutoff=60)
    if alignment is None or len(flat) < len(value):
        return ""
    start, end = alignment.dest_start, alignment.dest_end
    start = flat.rfind(" ", 0, start + 1) + 1
    end = len(flat) if (stop := flat.find(" ", max(end - 1, 0))) < 0 else stop
    return flat[start:end]
