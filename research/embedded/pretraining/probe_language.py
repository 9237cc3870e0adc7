"""How well the language model reads perfect symbols of unseen layouts: the ceiling before pixels come in.

python -m pretraining.probe_language          # the checkpoint `language` of the second stage
python -m pretraining.probe_language NAME
python -m pretraining.probe_language ../../src/mllm_tailor/models/bundled/embedded    # the shipped weights
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from pretraining import architecture, checkpoint, evaluate, language, optim, pages, questions
from pretraining.architecture import IMAGE, SymbolEmbedding
from pretraining.language import Example

DOCUMENTS, PAGES = 20, 60


def open_checkpoint(name: str) -> tuple[torch.nn.Module, SymbolEmbedding]:
    """The model with the language side of a checkpoint or a model folder, and what stands in for its vision side."""
    model = architecture.build_model().eval()
    symbols = SymbolEmbedding(model.config.text_config.hidden_size)
    parts = {"language": model.model.language_model, "lm_head": model.lm_head, "symbols": symbols}
    if Path(name).is_dir():
        architecture.start_language(parts, Path(name))
    else:
        checkpoint.load(name, parts)
    return model, symbols


@torch.no_grad()
def extract(model: torch.nn.Module, symbols: SymbolEmbedding, count: int = DOCUMENTS) -> dict[str, float]:
    """Scores of the fields the model writes by itself."""
    pairs = []
    for index, page in enumerate(evaluate.held_out_examples(count)):
        question, _ = questions.extraction(page, np.random.default_rng(index), plain=True)
        tokens = torch.from_numpy(pages.to_tokens(page.labels))
        ids = torch.tensor([architecture.prompt_ids(len(tokens), question)])
        embeds = model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter((ids == IMAGE).unsqueeze(-1), symbols(tokens, model.get_input_embeddings()))
        with optim.computing("cpu"):
            reply = model.generate(
                inputs_embeds=embeds, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=320
            )
        text = architecture.TOKENIZER.decode(reply[0], skip_special_tokens=True)
        pairs.append((text, page.fields))
        if index < 4:
            print(text, "\n   ", page.fields)
    return evaluate.field_scores(pairs)


@torch.no_grad()
def bytes_right(model: torch.nn.Module, symbols: SymbolEmbedding, examples: list[Example]) -> float:
    """Share of the answers' bytes guessed right, the ones before given."""
    right, count = 0.0, 0
    for start in range(0, len(examples), 4):
        part = examples[start : start + 4]
        ids, labels = language.assemble(part)
        with optim.computing("cpu"):
            embeds = language.symbol_embeds(model, symbols, ids, part)
            share = language.answer_loss(model.model.language_model, model.lm_head, embeds, labels)[1]
        asked = int((labels[:, 1:] != -100).sum())
        right, count = right + share * asked, count + asked
    return right / count


def readings(count: int = PAGES) -> dict[str, list[Example]]:
    """The same pages asked in several ways, from one line alone to the fields of the page."""
    rng = np.random.default_rng(5)
    found: dict[str, list[Example]] = {}
    for held_out in (False, True):
        side = "layouts never seen" if held_out else "layouts seen"
        drawn = [pages.text_page(np.random.default_rng([7 + held_out, index]), held_out) for index in range(count)]
        narrow = [page for page in drawn if page.labels.shape[0] <= 3 and page.kind != "tables"]
        for most in (1, 5):
            strips = [language.strip(page, rng, most) for page in narrow]
            found[f"up to {most} lines alone, {side}"] = [strip for strip in strips if strip]
        for name in ("line", "passage", "whole", "extraction"):
            turns = [getattr(questions, name)(page, rng) for page in drawn]
            found[f"{name} of a page, {side}"] = [
                Example(pages.to_tokens(page.labels), 0, (turn,))
                for page, turn in zip(drawn, turns, strict=True)
                if len(turn[1]) < 900
            ]
    return found


def main(name: str = "language") -> None:
    model, symbols = open_checkpoint(name)
    for what, examples in readings().items():
        print(f"{what}: {bytes_right(model, symbols, examples):.1%} of the bytes ({len(examples)} pages)", flush=True)
    print(extract(model, symbols))


if __name__ == "__main__":
    main(*sys.argv[1:])
