"""The reader's tower: it learns to name the characters in every cell of lines brought to one height."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mllm_tailor.core.device import fast_bf16
from mllm_tailor.models.patches.fused_layers import fused_layers
from mllm_tailor.training import distributed as processes
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

from pretraining import checkpoint, flow, flow_pictures, flow_tiles, fonts, glyph_slots, optim, tower, vision
from pretraining.stage import Stage

FONTS, SHARING = 12, 24  # so many fonts are rendered for as many tiles that follow each other
PROBE_EVERY = 300  # seconds
EMPTY = 0.5  # weight of a slot that names nothing: whether a character at its rim is the cell's own is half of reading


def build(**sizes: int) -> nn.ModuleDict:
    eye = tower.build_tower(**(flow.TOWER | sizes))
    attend_plainly(eye)
    return nn.ModuleDict({"tower": eye, "head": tower.GlyphHead(eye.config.hidden_size, flow.SLOTS, flow.CLASSES)})


def attend_plainly(eye: nn.Module) -> None:
    """Where bf16 is fast, attend among the 257 tokens of a tile in plain products: the fused kernel is slower there."""
    if fast_bf16(torch.device("cpu")):
        eye.config._attn_implementation = "eager"


class Tiles(IterableDataset):
    """Tiles without end, each `every`th from the `first`; number i depends only on the seed and i.

    A share `documents` of them shows drawn documents as the reader sees them, the others loose lines.
    """

    def __init__(
        self, seed: int, first: int = 0, held_out: bool = False, documents: float = 0.0, every: int = 1
    ) -> None:
        self.seed, self.first, self.held_out = seed, first, held_out
        self.documents, self.every = documents, every

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        torch.set_num_threads(1)
        group, pool = -1, ()
        for number in itertools.count(self.first, self.every):
            rng = np.random.default_rng([self.seed, number])
            if self.documents and rng.random() < self.documents:
                yield flow_pictures.random_tile(rng)
                continue
            if number // (SHARING * self.every) != group:
                group = number // (SHARING * self.every)
                fonts_of_group = np.random.default_rng([self.seed, group, self.first % self.every, SHARING])
                pool = tuple(flow_tiles.random_atlas(fonts_of_group, self.held_out) for _ in range(FONTS))
            yield flow_tiles.flow_tile(rng, self.held_out, pool)


def stacked(tiles: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    grey, labels = zip(*tiles, strict=True)
    return torch.from_numpy(np.stack(grey)), torch.from_numpy(np.stack(labels))


def features(eye: nn.Module, grey: torch.Tensor) -> torch.Tensor:
    """Grey tiles [n, 448, 448] uint8 to the features of their cells [n, 256, width]."""
    return tower.patch_features(eye, tower.normalise(grey))


@torch.no_grad()
def named(parts: nn.ModuleDict, tiles: np.ndarray) -> torch.Tensor:
    """The classes named in every cell of tiles [cells, SLOTS]; the weight of empty slots in training is taken back."""
    logits = parts["head"](features(parts["tower"], torch.from_numpy(tiles)))
    logits[..., glyph_slots.NONE] -= math.log(EMPTY)
    return logits.argmax(-1).flatten(0, 1)


@torch.no_grad()
def measure(parts: nn.ModuleDict, grey: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Shares of characters, blanks and marks named right in their slot, and of cells right in all slots."""
    guess = torch.cat([parts["head"](features(parts["tower"], part)).argmax(-1) for part in grey.split(4)])
    right = guess == labels
    inked = (labels > 0).any(-1)
    kinds = {"glyphs": (labels > 1) & (labels < flow.NEWLINE), "spaces": labels == 1, "marks": labels == flow.NEWLINE}
    shares = {name: float(right[where].float().mean()) for name, where in kinds.items()}
    return shares | {"cells": float(right.all(-1)[inked].float().mean())}


def tests(count: int = 8) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The same tiles every time, in fonts learned from and in fonts held out."""
    sets = {}
    for name, held_out in (("seen", False), ("held out", True)):
        sets[name] = stacked(list(itertools.islice(Tiles(9, held_out=held_out), count)))
    return sets


def fit_head(parts: nn.ModuleDict, count: int = 96, steps: int = 200) -> None:
    """Fit the fresh head to a trained tower's features of `count` tiles, so that its errors do not spoil the tower."""
    grey, labels = stacked(list(itertools.islice(Tiles(12), count)))
    with torch.no_grad():
        seen = torch.cat([features(parts["tower"], part) for part in grey.split(8)])
    vision.fit_to_features(parts["head"], seen, labels, steps, batch=6)


def train(
    minutes: float,
    resume: bool,
    rate: float = 1e-3,
    batch: int = 8,
    seed: int = 23,
    name: str = "lines",
    documents: float = 0.12,
    start: str = "../../src/mllm_tailor/models/bundled/embedded",
    until: float = math.inf,
    **sizes: int,
) -> None:
    """Train for `minutes` of the wall clock in all or until the moment `until`; goes on from the checkpoint `name`.

    It starts from the tower of the model folder `start`, which reads pages.
    """
    torch.manual_seed(seed)
    parts = build(**sizes)
    fresh = not (resume and checkpoint.exists(name))
    if fresh:
        tower.start_from(parts["tower"], Path(start))
        fit_head(parts)
    average = AveragedModel(parts, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    modules = {**dict(parts.items()), "average": average}
    optimizers = optim.make_optimizers([parts["tower"], parts["head"]], rate)
    stage = Stage(name, minutes, modules, optimizers, rate, flat=0.6, every=50, until=until)
    stage.facts["tiles"] = 0
    if not fresh:
        stage.resume()
        print(f"resumed at step {stage.facts['step']:.0f}", flush=True)
    count = sum(p.numel() for p in parts.parameters())
    print(f"{count:,} parameters, {len(fonts.font_files())} font files", flush=True)
    ranks = processes.world_size()
    tiles = Tiles(seed, int(stage.facts["tiles"]) + processes.rank(), documents=documents, every=ranks)
    sets, probed = tests(), time.time()
    batches = iter(DataLoader(tiles, batch_size=batch, num_workers=1, prefetch_factor=4, collate_fn=stacked))
    with fused_layers(parts):
        for _ in stage.steps():
            grey, labels = next(batches)
            with optim.computing("cpu"):
                loss = vision.glyph_loss(parts["head"](features(parts["tower"], grey)), labels, EMPTY)
            stage.facts["tiles"] += batch * ranks
            stage.learn(loss, {"loss": loss}, f"tiles {stage.facts['tiles']:.0f}")
            average.update_parameters(parts)
            if time.time() - probed > PROBE_EVERY and processes.rank() == 0:
                for which, test in sets.items():
                    shares = " ".join(f"{key} {value:.3f}" for key, value in measure(average.module, *test).items())
                    print(f"probe {which}: {shares}", flush=True)
                probed = time.time()
