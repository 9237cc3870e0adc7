"""Stage two: the language model learns to read grids of characters, without pixels, from lines to whole pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from pretraining import (
    architecture,
    attention_supervision,
    checkpoint,
    glyph_slots,
    optim,
    pages,
    questions,
    tower,
    vision,
)
from pretraining.architecture import IMAGE, Beliefs, SymbolEmbedding
from pretraining.stage import Stage

WHOLE = 64  # tokens that the length of a batch is a multiple of
FIRST = architecture.prompt_ids(1, "").index(IMAGE)  # position of the first visual token in a conversation


@dataclass(frozen=True)
class Example:
    """Slots of the visual tokens [n, 12], the place of the first one in its tile, questions and answers about them.

    `places` holds for each answer where its characters are shown (see `attention_supervision.answer_places`);
    empty: not known.
    """

    tokens: np.ndarray
    first: int
    turns: tuple[tuple[str, str], ...]
    places: tuple[np.ndarray, ...] = ()


def strip(page: pages.Page, rng: np.random.Generator, most: int) -> Example | None:
    """A few neighbouring lines alone in the rows of visual tokens they touch: the shortest reading there is.

    None where a character lies outside them: a line that is not straight, or one no slot could name.
    """
    count = int(rng.integers(1, most + 1))
    start = int(rng.integers(max(1, len(page.lines) - count + 1)))
    tokens = pages.to_tokens(page.labels)
    rows = tokens.reshape(-1, architecture.SIDE, tokens.shape[1])
    middles = page.middles[start : start + count]
    top, bottom = int(middles[0] // 28) - 1, int(middles[-1] // 28) + 2
    low, high = (middles[0] + page.middles[start - 1]) / 2 if start else -1e9, 1e9
    if start + count < len(page.middles):
        high = (middles[-1] + page.middles[start + count]) / 2
    top, bottom = max(0, top), min(len(rows), bottom)
    part = rows[top:bottom].copy()
    height = (
        np.arange(top, bottom)[:, None] * 28 + np.repeat([7, 21], 2 * glyph_slots.SLOTS)[None]
    )  # px of each slot's patch
    part[np.broadcast_to(((height < low) | (height > high))[:, None], part.shape)] = glyph_slots.NONE
    text = "\n".join(page.lines[start : start + count])
    shown = attention_supervision.text_places(page.places[start : start + count])
    shown = np.where(shown >= 0, shown - top * architecture.SIDE * attention_supervision.SLOTS, -1)
    shown[(shown < 0) | (shown >= part.size)] = -1
    places = np.full((len(text), attention_supervision.MOST), -1)
    places[:, 0] = np.where(part.ravel()[shown] > glyph_slots.NONE, shown, -1)
    if any(place < 0 and not character.isspace() for character, place in zip(text, places[:, 0], strict=True)):
        return None
    return Example(part.reshape(-1, tokens.shape[1]), top * architecture.SIDE, (("Read the text.", text),), (places,))


def random_example(rng: np.random.Generator, level: float) -> Example:
    """At `level` 0 single lines, then strips of more lines, from 0.1 on more and more whole pages with questions."""
    while True:
        page = pages.text_page(rng)
        if rng.random() > min(0.85, max(0.0, level - 0.1) * 2):
            if page.labels.shape[0] > 3 or page.kind == "tables":
                continue
            if found := strip(page, rng, 1 + round(min(level, 0.8) * 15 * rng.random())):
                return found
            continue
        turns = questions.conversation(page, rng)
        if turns:
            places = tuple(attention_supervision.answer_places(page, answer) for _, answer in turns)
            return Example(pages.to_tokens(page.labels), 0, turns, places)


def next_level(level: float, right: float) -> float:
    """Harder once most is right (or slowly in any case, at the end of the curve): copying appears suddenly."""
    return min(1.0, level + (0.004 if right > 0.9 else 0.002 if right > 0.75 else 0.001 if right > 0.65 else 0.0))


class Examples(IterableDataset):
    """Batches of about `budget` ids; their difficulty follows a level shared with the trainer."""

    def __init__(self, seed: int, first: int, level: torch.Tensor, budget: int) -> None:
        self.seed, self.first, self.level, self.budget = seed, first, level, budget

    def __iter__(self):
        number = self.first
        while True:
            rng = np.random.default_rng([self.seed, number])
            number += 1
            pool = [random_example(rng, float(self.level)) for _ in range(40)]
            pool.sort(key=length)
            batch: list[Example] = []
            batches = []
            for example in pool:
                if batch and length(example) * (len(batch) + 1) > self.budget:
                    batches.append(batch)
                    batch = []
                batch.append(example)
            batches.append(batch)
            for index in rng.permutation(len(batches)):
                yield batches[index]


def length(example: Example) -> int:
    return len(example.tokens) + sum(len(question) + len(answer) + 20 for question, answer in example.turns)


def assemble(examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, padded on the right (causal attention then needs no mask) to one of few lengths.

    A length never met has its kernels built anew on a CPU, which costs as much as a layer's products.
    """
    rows = [architecture.conversation_ids(len(example.tokens), example.turns) for example in examples]
    longest = -(-max(len(ids) for ids, _ in rows) // WHOLE) * WHOLE
    pad = architecture.TOKENIZER.pad_token_id
    ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])
    return ids, labels


def assemble_places(examples: list[Example], labels: torch.Tensor) -> torch.Tensor:
    """[batch, length, MOST]: at each position, where the character to be said next is shown; -1: not known."""
    places = torch.full((*labels.shape, attention_supervision.MOST), -1)
    for row, example in enumerate(examples):
        nowhere = np.full((1, attention_supervision.MOST), -1)  # the end of an answer
        shown = np.concatenate([part for places_ in example.places for part in (places_, nowhere)])
        at = (labels[row] != -100).nonzero().flatten()
        if len(at) == len(shown):  # a character beyond ASCII is several bytes
            places[row, at - 1] = torch.from_numpy(shown)
    return places


def answer_loss(
    language: nn.Module, head: nn.Module, embeds: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Mean cross entropy of the answers' tokens, and the share of them guessed right."""
    hidden = language(inputs_embeds=embeds, use_cache=False).last_hidden_state
    asked = labels[:, 1:] != -100
    logits = head(hidden[:, :-1][asked]).float()
    target = labels[:, 1:][asked]
    return nn.functional.cross_entropy(logits, target), float((logits.argmax(-1) == target).float().mean())


def symbol_embeds(
    model: nn.Module,
    symbols: SymbolEmbedding,
    ids: torch.Tensor,
    examples: list[Example],
    beliefs: Beliefs | None = None,
) -> torch.Tensor:
    """Input embeddings [batch, length, width] with the oracle's visual tokens in place, or a doubting tower's."""
    device = ids.device
    embedding = model.get_input_embeddings()
    tokens = torch.cat([torch.from_numpy(example.tokens) for example in examples])
    first = torch.cat([torch.arange(len(example.tokens)) + example.first for example in examples])
    believed = None
    if beliefs is not None:
        qualities = [0.0 if draw < 0.4 else (draw - 0.4) / 0.6 for draw in torch.rand(len(examples)).tolist()]
        sampled = [
            beliefs.sample(torch.from_numpy(example.tokens), quality)
            for example, quality in zip(examples, qualities, strict=True)
        ]
        believed = torch.cat(sampled).to(device)
    visual = symbols(tokens.to(device), embedding, first.to(device), believed)
    if beliefs is not None:
        visual = visual + 0.1 * visual.detach().std() * torch.randn_like(visual)
    embeds = embedding(ids)
    return embeds.masked_scatter((ids == IMAGE).unsqueeze(-1), visual.to(embeds.dtype))


def language_parts(model: nn.Module, symbols: SymbolEmbedding) -> dict[str, nn.Module]:
    """What this stage trains and hands on, by the names it has in checkpoints."""
    language = model.model.language_model
    return {
        "language": language,
        "lm_head": model.lm_head,
        "symbols": symbols,
        "guide": attention_supervision.Guide(language),
    }


def tower_beliefs(vision_name: str, tiles: int = 60) -> Beliefs | None:
    """How the tower of a checkpoint doubts, measured on drawn tiles; None without one."""
    if not checkpoint.exists(vision_name):
        return None
    vision_tower, head = tower.load_tower(vision_name)
    pairs = [pair for pair, _ in zip(vision.Tiles(21, documents=0.5), range(tiles), strict=False)]
    return Beliefs.measured(vision_tower, head, pairs)


def train(
    minutes: float,
    resume: bool,
    rate: float = 2e-3,
    budget: int = 2500,
    seed: int = 2,
    name: str = "language",
    start: str = "",
    vision_name: str = "vision",
    level: float = 0.0,
    steady: bool = False,
    guide: float = 0.3,
    **sizes: int,
) -> None:
    """Train the language model and the symbol embedding for `minutes` of the wall clock in all.

    `start` is a model folder whose language model is the start instead of a fresh one, or `kept`; `level` (0..1) how
    hard the examples are at first, and with `steady` to the end; where the checkpoint `vision_name` exists, symbols are
    doubted as that tower doubts. `guide` weighs how much the heads are told where to look (0: not at all).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    model = architecture.build_model(**sizes).to(device)
    language, head = model.model.language_model, model.lm_head
    symbols = SymbolEmbedding(language.config.hidden_size).to(device)
    attention_supervision.look_back(language)
    modules = language_parts(model, symbols)
    guided = modules["guide"].to(device)
    optimizers = optim.make_optimizers([nn.ModuleDict({name: module}) for name, module in modules.items()], rate)
    stage = Stage(name, minutes, modules, optimizers, rate, flat=0.6, every=50)
    stage.facts["level"] = level
    if resume and checkpoint.exists(name):
        stage.resume()
    elif start == "kept":
        checkpoint.step(checkpoint.LANGUAGE, modules)
    elif start:
        architecture.start_language(modules, Path(start))
    beliefs = tower_beliefs(vision_name)
    shared_level = torch.tensor(stage.facts["level"]).share_memory_()
    found = Examples(seed, int(stage.facts["step"]), shared_level, budget)
    loader = iter(DataLoader(found, batch_size=None, num_workers=1, prefetch_factor=4, collate_fn=lambda batch: batch))
    print(f"{sum(p.numel() for p in language.parameters()):,} parameters", flush=True)
    for _ in stage.steps():
        examples = next(loader)
        ids, labels = (part.to(device) for part in assemble(examples))
        doubts = beliefs if stage.facts["level"] > 0.3 else None
        with optim.computing(device):
            embeds = symbol_embeds(model, symbols, ids, examples, doubts)
            loss, right = answer_loss(language, head, embeds, labels)
            look, slot, landed = guided(assemble_places(examples, labels).to(device), FIRST)
        figures = {"loss": loss, "right": right, "look": look, "slot": slot, "landed": landed, "ids": ids.numel()}
        stage.learn(loss + guide * (look + slot), figures, f"level {stage.facts['level']:.3f}")
        stage.facts["level"] = stage.facts["level"] if steady else next_level(stage.facts["level"], right)
        shared_level.fill_(stage.facts["level"])
