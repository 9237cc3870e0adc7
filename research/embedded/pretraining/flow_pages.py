"""Pages for reading practice as flows of cells: drawn documents and loose lines, with words that nobody has seen."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, replace

import numpy as np
from mllm_tailor.synthetic import DrawnText, text_layout
from mllm_tailor.synthetic.page import MONO, SANS

from pretraining import attention_supervision, flow, pages, questions, words
from pretraining.language import Example

RUN = re.compile(r"[A-Za-z]{2,}|[0-9]+")
UPPER, LOWER, DIGITS = (
    np.array(list(letters)) for letters in (string.ascii_uppercase, string.ascii_lowercase, string.digits)
)
NAMED = ("company", "address")  # the fields whose words the probe and the practice invent


@dataclass(frozen=True)
class FlowPage:
    """A page as a flow; `kind`, `lines` and `fields` are what `questions` asks about."""

    kind: str
    shown: flow.Flow
    fields: dict[str, str]

    @property
    def lines(self) -> tuple[str, ...]:
        return self.shown.lines

    def example(self, turns: tuple[tuple[str, str], ...]) -> Example:
        places = tuple(
            attention_supervision.places_in(self.shown.text, self.shown.known, answer) for _, answer in turns
        )
        return Example(self.shown.cells, 0, turns, places)


def invented(run: str, rng: np.random.Generator) -> str:
    """Letters for letters of the same case, digits for digits: as long, and never seen."""
    upper = np.array([letter.isupper() for letter in run])
    if run[0].isdigit():
        return "".join(rng.choice(DIGITS, len(run)))
    return "".join(np.where(upper, rng.choice(UPPER, len(run)), rng.choice(LOWER, len(run))))


def reworded(text: DrawnText, rng: np.random.Generator, share: float, only: set[str] | None = None) -> DrawnText:
    """The document with a share of its words (those in `only`) replaced by invented ones, in its fields alike."""
    known: dict[str, str] = {}

    def one(match: re.Match[str]) -> str:
        run = match[0]
        if only is not None and run not in only:
            return run
        if run not in known:
            known[run] = invented(run, rng) if rng.random() < share else run
        return known[run]

    cells = tuple(cell._replace(text=RUN.sub(one, cell.text)) for cell in text.cells)
    fields = {key: RUN.sub(one, value) for key, value in text.fields.items()}
    return replace(text, cells=cells, fields=fields)


def named_words(text: DrawnText) -> set[str]:
    """Words of the fields that name somebody or some place."""
    return {run for key in NAMED for run in RUN.findall(text.fields.get(key, "")) if run.isalpha()}


def drawn(rng: np.random.Generator, held_out: bool = False) -> DrawnText:
    """A placed document with fields in ASCII; held-out ones are receipts of layouts never trained on."""
    while True:
        kind = "receipts" if held_out else str(rng.choice(pages.KINDS, p=pages.SHARES))
        layouts = pages.receipt_layouts(held_out) if kind == "receipts" else None
        text = text_layout(kind, int(rng.integers(1 << 40)), layouts=layouts)
        if pages.is_ascii(text.fields):
            return text


def document(rng: np.random.Generator, held_out: bool = False, invent: float = 0.5) -> FlowPage:
    """A document whose fields can be asked for; with probability `invent` names and streets are invented words."""
    text = drawn(rng, held_out)
    if rng.random() < invent:
        text = reworded(text, rng, 0.8, named_words(text))
    shown = flow.set_flow(flow.lines_of(text), rng, whole_tiles=rng.random() < 0.7)
    return FlowPage(text.kind, shown, text.fields)


def few_lines(rng: np.random.Generator, most: int) -> FlowPage:
    """Some neighbouring lines of a document, most of their words and numbers invented, or lines of any kind."""
    count = int(rng.integers(1, most + 1))
    if rng.random() < 0.5:
        text = drawn(rng)
        lines = flow.lines_of(reworded(text, rng, rng.choice([0.0, 0.6, 1.0])))
        start = int(rng.integers(max(1, len(lines) - count + 1)))
        lines = lines[start : start + count]
    else:
        metrics, size = (MONO, SANS)[int(rng.integers(2))], rng.uniform(10, 24)
        lines = tuple(loose(words.snippet(rng)[:60].split(), metrics.starts, size, rng) for _ in range(count))
    return FlowPage("lines", flow.set_flow(lines, rng), {})


def loose(texts: list[str], starts, size: float, rng: np.random.Generator) -> flow.Line:
    """A line of words set with a font's advances."""
    x, found = 0.0, []
    for text in texts:
        edges = [x + size * start for start in starts(text)]
        found.append(flow.Word(text, tuple(edges)))
        x = edges[-1] + size * rng.uniform(0.25, 0.7)
    return flow.Line(tuple(found), size)


def random_example(rng: np.random.Generator, level: float) -> Example:
    """At `level` 0 one or two lines, then more, from 0.1 on more and more whole documents with questions."""
    while True:
        if rng.random() > min(0.85, max(0.0, level - 0.1) * 2):
            page = few_lines(rng, 2 + round(min(level, 0.8) * 14 * rng.random()))
            text = page.shown.text
            if not text.strip() or not text.isascii():
                continue
            return page.example((("Read the text.", text),))
        page = document(rng)
        if len(page.shown.cells) > 3 * flow.TOKENS:
            continue
        turns = questions.conversation(page, rng)
        if turns:
            return page.example(turns)
