"""The reader as a whole: tower, projector and language model learn together on drawn documents set line after line."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from mllm_tailor.models.patches.fused_layers import fused_layers
from mllm_tailor.training import distributed as processes
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from pretraining import (
    architecture,
    attention_supervision,
    checkpoint,
    flow,
    flow_language,
    flow_pictures,
    flow_vision,
    optim,
    stage3_joint,
    tower,
    vision,
)
from pretraining.architecture import IMAGE, SymbolEmbedding
from pretraining.language import FIRST, Example, answer_loss, assemble, assemble_places, length
from pretraining.stage import Stage


@dataclass(frozen=True)
class Sample:
    """Grey tiles [n, 448, 448] of a document, the conversation about them, and tiles with labels to practise on.

    Only tower and projector learn from these: naming characters takes longest, and the language model costs most.
    """

    tiles: np.ndarray
    example: Example
    practice: tuple[np.ndarray, np.ndarray] | None = None


def build(**sizes: int) -> dict[str, nn.Module]:
    """The whole model, and what helps to train it: glyph head, symbols and guide."""
    model = architecture.build_model(**sizes, vision=flow.TOWER, downsample=1.0)
    flow_vision.attend_plainly(model.model.vision_tower)
    text = model.model.language_model
    return {
        "model": model,
        "head": tower.GlyphHead(model.config.vision_config.hidden_size, flow.SLOTS, flow.CLASSES),
        "symbols": SymbolEmbedding(text.config.hidden_size, flow.SLOTS, flow_language.CHARACTERS),
        "guide": attention_supervision.Guide(text, flow_language.GUIDED, flow.SLOTS),
    }


def take_stages(parts: dict[str, nn.Module], lines: str, copy: str) -> None:
    """Take the averaged weights of the two stages that came before."""
    model = parts["model"]
    eye = nn.ModuleDict({"tower": model.model.vision_tower, "head": parts["head"]})
    text = nn.ModuleDict(
        {"language": model.model.language_model, "lm_head": model.lm_head, "symbols": parts["symbols"]}
    )
    for name, module in ((lines, eye), (copy, text)):
        averaged = torch.optim.swa_utils.AveragedModel(module)
        checkpoint.load(name, {"average": averaged})
        module.load_state_dict(averaged.module.state_dict())
    checkpoint.load(copy, {"guide": parts["guide"]})


def visual_tokens(model: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Features of the cells [tiles, 256, width] to [tiles * 256, text width]; a cell is a token."""
    return model.model.multi_modal_projector(features).flatten(0, 1)


def align(parts: dict[str, nn.Module], count: int = 120, steps: int = 400) -> None:
    """Teach the fresh projector what the symbols of the language model are, on features computed once."""
    model, tiles = parts["model"], iter(flow_vision.Tiles(31))
    grey, labels = flow_vision.stacked([next(tiles) for _ in range(count)])
    with torch.no_grad():
        features = torch.cat([flow_vision.features(model.model.vision_tower, part) for part in grey.split(4)])
        oracle = parts["symbols"](labels.flatten(0, 1), model.get_input_embeddings()).unflatten(0, labels.shape[:2])
    optimizers = optim.make_optimizers([model.model.multi_modal_projector], 3e-3)
    for step in range(steps):
        chosen = torch.randint(count, (6,))
        known = (labels[chosen] >= 0).all(-1).flatten()
        target = oracle[chosen].flatten(0, 1)[known]
        distance = (visual_tokens(model, features[chosen])[known] - target).pow(2).mean() / target.pow(2).mean()
        distance.backward()
        optim.step(optimizers, 3e-3 * optim.rate_at(step / steps))
        if step % 100 == 99:
            print(f"projector step {step + 1} distance {distance.item():.3f}", flush=True)


def losses(
    parts: dict[str, nn.Module], batch: list[Sample], guided: bool = True
) -> tuple[dict[str, torch.Tensor], float]:
    """Answer loss, distance of the projector from the symbols and glyph loss of a few documents.

    `guided`: also whether heads look at what they copy, and at the right slot of it.
    """
    model = parts["model"]
    examples, practice = [sample.example for sample in batch], [sample.practice for sample in batch if sample.practice]
    grey = torch.from_numpy(np.concatenate([*(sample.tiles for sample in batch), *(tiles for tiles, _ in practice)]))
    shown = [*(example.tokens for example in examples), *(labels.reshape(-1, flow.SLOTS) for _, labels in practice)]
    cells = torch.from_numpy(np.concatenate(shown))
    ids, targets = assemble(examples)
    with optim.computing("cpu"):
        features = flow_vision.features(model.model.vision_tower, grey)
        glyph = vision.glyph_loss(
            parts["head"](features), cells.view(len(grey), flow.TOKENS, flow.SLOTS), flow_vision.EMPTY
        )
        visual = visual_tokens(model, features).float()
        with torch.no_grad():
            oracle = parts["symbols"](cells, model.get_input_embeddings()).float()
        filled, known = (cells > 0).any(1), (cells >= 0).all(1)
        weight = known.float() * torch.where(filled, 1.0, 0.2)
        distance = ((visual - oracle).pow(2).mean(-1) * weight).sum() / weight.sum() / oracle[filled].pow(2).mean()
        embeds = model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter((ids == IMAGE).unsqueeze(-1), visual)  # the documents' come first
        answer, right = answer_loss(model.model.language_model, model.lm_head, embeds, targets)
        result = {"answer": answer, "oracle": distance, "glyph": glyph}
        if guided:
            look, slot, _ = parts["guide"](assemble_places(examples, targets), FIRST)
            result |= {"look": look, "slot": slot}
    parts["guide"].heard.clear()  # else the step's graph lives on in what was heard
    return result, right


class Documents(IterableDataset):
    """Endless drawn documents, each `every`th from the `first`; number i depends only on the seed and i.

    `practice` tiles of loose lines come with each, at least one.
    """

    def __init__(self, seed: int, first: int, every: int = 1, practice: int = 1) -> None:
        self.seed, self.first, self.every, self.practice = seed, first, every, practice

    def __iter__(self) -> Iterator[Sample]:
        torch.set_num_threads(1)
        loose = iter(flow_vision.Tiles(self.seed + 1 + self.first % self.every, self.practice * self.first))
        for number in itertools.count(self.first, self.every):
            tiles, example = flow_pictures.random_example(np.random.default_rng([self.seed, number]))
            grey, labels = zip(*itertools.islice(loose, self.practice), strict=True)
            yield Sample(tiles, example, (np.stack(grey), np.stack(labels)))


def alike(pools: Iterable[list[Sample]], batch: int) -> Iterator[list[Sample]]:
    """Batches of documents of like length, out of pools of several batches: little of a batch is padding."""
    for pool in pools:
        pool.sort(key=lambda sample: length(sample.example))
        yield from (pool[start : start + batch] for start in range(0, len(pool), batch))


def train(
    minutes: float,
    resume: bool,
    rate: float = 1e-3,
    batch: int = 4,
    seed: int = 24,
    name: str = "read",
    lines: str = "lines",
    copy: str = "copy",
    until: float = math.inf,
    guide: float = 0.0,
    practice: int = 1,
    **sizes: int,
) -> None:
    """Join the checkpoints `lines` and `copy` and train for `minutes` in all or until the moment `until`.

    `guide` weighs how much heads are told where to look: a sixth of a step, and they know it from the stage before.
    `practice` tiles of loose lines come with a document: three were most of the tower's work and moved the glyph
    loss little.
    """
    torch.manual_seed(seed)
    parts = build(**sizes)
    resumed = resume and checkpoint.exists(name)
    if not resumed:
        take_stages(parts, lines, copy)
        align(parts)
    parts["symbols"].requires_grad_(False)
    optimizers = stage3_joint.make_optimizers(parts, rate)
    stage = Stage(name, minutes, parts, optimizers, rate, flat=0.5, every=25, until=until)
    if resumed:
        stage.resume()
    stage.facts.setdefault("documents", 0)
    first = int(stage.facts["documents"]) + processes.rank()
    documents = Documents(seed, first, processes.world_size(), practice)
    samples = alike(DataLoader(documents, batch_size=3 * batch, num_workers=1, collate_fn=list), batch)
    with fused_layers(parts["model"]):
        _learn(stage, parts, samples, guide)


def _learn(stage: Stage, parts: dict[str, nn.Module], samples: Iterator[list[Sample]], guide: float) -> None:
    for done in stage.steps():
        found, right = losses(parts, batch := next(samples), guided=guide > 0)
        stage.facts["documents"] += len(batch) * processes.world_size()
        pull = max(0.05, 1 - done / 0.6)
        beside = pull * found["oracle"] + 0.7 * found["glyph"]
        if guide:
            beside = beside + guide * (found["look"] + found["slot"])
        stage.learn(found["answer"] + beside, {"right": right, **found})
