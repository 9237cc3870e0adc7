"""How well a language model copies words that nobody has seen from perfect symbols: samples and shares."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from mllm_tailor.synthetic import DrawnText
from torch import nn

from pretraining import attention_supervision, flow, flow_pages, language, pages, questions, rewording
from pretraining.language import Example, assemble

Sample = tuple[dict[str, str], Example, Example]  # fields, the page read out, its fields asked for
LONGEST = 1200  # characters of a page


def flow_samples(count: int) -> Iterator[Sample]:
    """Fields, the page read out, and its fields asked for, as lines set one after the other."""
    for text, rng in invented_receipts(count):
        page = flow_pages.FlowPage(text.kind, flow.set_flow(flow.lines_of(text), rng, True), text.fields)
        turns = (("Read the text.", page.shown.text),), (questions.extraction(page, rng, plain=True),)
        yield page.fields, page.example(turns[0]), page.example(turns[1])


def page_samples(count: int) -> Iterator[Sample]:
    """The same as whole pages cut into tiles."""
    for text, rng in invented_receipts(count):
        page = pages.to_page(text, rng)
        turns = (("Read the text.", "\n".join(page.lines)),), (questions.extraction(page, rng, plain=True),)
        cells = pages.to_tokens(page.labels)
        yield page.fields, Example(cells, 0, turns[0]), Example(cells, 0, turns[1])


def invented_receipts(count: int) -> Iterator[tuple[DrawnText, np.random.Generator]]:
    """Receipts of layouts never trained on, every word of names and streets replaced; some of `count` are too long."""
    for index in range(count):
        rng = np.random.default_rng([177, index])
        text = flow_pages.drawn(rng, held_out=True)
        text = rewording.reworded(text, rewording.Rewording(rng, 1.0, rewording.named_words(text.fields)))
        whole = "\n".join(text.lines)
        if whole.isascii() and len(whole) <= LONGEST:
            yield text, rng


@torch.no_grad()
def guesses(parts: nn.ModuleDict, examples: list[Example]) -> Iterator[list[np.ndarray]]:
    """For each example, for each answer, whether each of its characters is guessed right, the ones before given."""
    for example in examples:
        ids, labels = assemble([example])
        embeds = language.symbol_embeds(parts["language"], parts["symbols"], ids, [example])
        hidden = parts["language"](inputs_embeds=embeds, use_cache=False).last_hidden_state
        asked = labels[0, 1:] != -100
        right = (parts["lm_head"](hidden[0, :-1][asked]).argmax(-1) == labels[0, 1:][asked]).numpy()
        ends = np.cumsum([len(answer) + 1 for _, answer in example.turns])
        yield np.split(right, ends[:-1])


def shares(parts: nn.ModuleDict, samples: list[Sample]) -> dict[str, float]:
    """`reading`: characters of pages read out; `names`: of names and addresses in the fields; fields exact."""
    read = [right for (right,) in guesses(parts, [whole for _, whole, _ in samples])]
    exact: dict[str, list[float]] = {}
    letters: list[np.ndarray] = []
    asked = guesses(parts, [example for _, _, example in samples])
    for (fields, _, example), (right,) in zip(samples, asked, strict=True):
        keys = [key for key in questions.MAIN if key in fields]
        pieces = attention_supervision.copied_pieces(example.turns[0][1])
        for key, (start, value) in zip(keys, pieces, strict=True):
            exact.setdefault(key, []).append(float(right[start : start + len(value)].all()))
            if key in rewording.NAMED:
                letters.append(right[start : start + len(value)])
    return {
        "pages": len(samples),
        "reading": float(np.concatenate(read).mean()),
        "names": float(np.concatenate(letters).mean()),
        **{key: float(np.mean(values)) for key, values in exact.items()},
    }
