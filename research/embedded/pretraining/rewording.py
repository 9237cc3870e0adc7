"""Documents in words that nobody has seen: names and streets of random letters, as long and in the same case."""

from __future__ import annotations

import re
import string
from dataclasses import replace

import numpy as np
from mllm_tailor.synthetic import DrawnText
from mllm_tailor.synthetic.page import Sheet

RUN = re.compile(r"[A-Za-z]{2,}|[0-9]+")
UPPER, LOWER, DIGITS = (
    np.array(list(letters)) for letters in (string.ascii_uppercase, string.ascii_lowercase, string.digits)
)
NAMED = ("company", "address")  # the fields whose words the probe and the practice invent


def invented(run: str, rng: np.random.Generator) -> str:
    """Letters for letters of the same case, digits for digits: as long, and never seen."""
    upper = np.array([letter.isupper() for letter in run])
    if run[0].isdigit():
        return "".join(rng.choice(DIGITS, len(run)))
    return "".join(np.where(upper, rng.choice(UPPER, len(run)), rng.choice(LOWER, len(run))))


class Rewording:
    """Replaces a share of the words (those in `only`, else all) by invented ones, the same word always alike."""

    def __init__(self, rng: np.random.Generator, share: float, only: set[str] | None = None) -> None:
        self.rng, self.share, self.only = rng, share, only
        self.known: dict[str, str] = {}

    def text(self, text: str) -> str:
        return RUN.sub(self._word, text)

    def fields(self, fields: dict[str, str]) -> dict[str, str]:
        return {key: self.text(value) for key, value in fields.items()}

    def _word(self, match: re.Match[str]) -> str:
        run = match[0]
        if self.only is not None and run not in self.only:
            return run
        if run not in self.known:
            self.known[run] = invented(run, self.rng) if self.rng.random() < self.share else run
        return self.known[run]


def reworded(text: DrawnText, words: Rewording) -> DrawnText:
    """A placed document in other words, in its fields alike; every character stays where it stood."""
    cells = tuple(cell._replace(text=words.text(cell.text)) for cell in text.cells)
    return replace(text, cells=cells, fields=words.fields(text.fields))


def reworded_sheet(sheet: Sheet, words: Rewording) -> Sheet:
    """A composed document in other words, to be drawn."""
    rows = [row._replace(cells=tuple(cell._replace(text=words.text(cell.text)) for cell in row.cells))
            for row in sheet.rows]  # fmt: skip
    return replace(sheet, rows=rows, fields=words.fields(sheet.fields), facts=words.fields(sheet.facts))


def named_words(fields: dict[str, str]) -> set[str]:
    """Words of the fields that name somebody or some place."""
    return {run for key in NAMED for run in RUN.findall(fields.get(key, "")) if run.isalpha()}
