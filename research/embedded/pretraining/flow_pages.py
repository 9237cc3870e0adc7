"""Pages for reading practice as flows of cells: drawn documents and loose lines, with words that nobody has seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mllm_tailor.synthetic import DrawnText, text_layout
from mllm_tailor.synthetic.page import MONO, SANS

from pretraining import attention_supervision, flow, pages, questions, rewording, words
from pretraining.language import Example


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
        text = rewording.reworded(text, rewording.Rewording(rng, 0.8, rewording.named_words(text.fields)))
    shown = flow.set_flow(flow.lines_of(text), rng, whole_tiles=rng.random() < 0.7)
    return FlowPage(text.kind, shown, text.fields)


def few_lines(rng: np.random.Generator, most: int) -> FlowPage:
    """Some neighbouring lines of a document, most of their words and numbers invented, or lines of any kind."""
    count = int(rng.integers(1, most + 1))
    if rng.random() < 0.5:
        text = drawn(rng)
        lines = flow.lines_of(rewording.reworded(text, rewording.Rewording(rng, rng.choice([0.0, 0.6, 1.0]))))
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
    """At `level` 0 one or two lines, then more, to a page's length; from 0.35 on ever more documents with questions.

    A document is as long as dozens of lines: were it asked for sooner, most of a batch would be beyond what is learned.
    """
    while True:
        if rng.random() > min(0.85, max(0.0, level - 0.35) * 2):
            page = few_lines(rng, 2 + round(min(level, 0.6) * 40 * rng.random()))
            text = page.shown.text
            if not text.strip() or not text.isascii() or len(page.shown.cells) > 2 * flow.TOKENS:
                continue
            return page.example((("Read the text.", text),))
        page = document(rng)
        if len(page.shown.cells) > 3 * flow.TOKENS:
            continue
        turns = questions.conversation(page, rng)
        if turns:
            return page.example(turns)
