"""The reader's tower: it learns to name the characters in every cell of lines brought to one height."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pretraining import checkpoint, flow, flow_tiles, fonts, optim, tower, vision
from pretraining.stage import Stage

OFFSETS = ((0, -1), (0, 1), (0, -2), (0, 2), (0, -1), (0, 1), (0, 0), (0, 0))  # lines are level: along the row alone
SHARING = 6  # tiles that share one group of as many fonts
PROBE_EVERY = 900  # seconds


def build(ratio: int = 4, **sizes: int) -> nn.ModuleDict:
    eye = tower.build_tower(ratio=ratio, patch=flow.CELL, **sizes)
    return nn.ModuleDict({"tower": eye, "head": tower.GlyphHead(eye.config.hidden_size, flow.SLOTS, flow.CLASSES)})


def drawn(seed: int, first: int, held_out: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tiles without end; number i depends only on the seed and i."""
    number, group, pool = first, -1, ()
    while True:
        if number // SHARING != group:
            group = number // SHARING
            rng = np.random.default_rng([seed, group, SHARING])
            pool = tuple(flow_tiles.random_atlas(rng, held_out) for _ in range(SHARING))
        yield flow_tiles.flow_tile(np.random.default_rng([seed, number]), held_out, pool)
        number += 1


def stacked(tiles: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    grey, labels = zip(*tiles, strict=True)
    return torch.from_numpy(np.stack(grey)), torch.from_numpy(np.stack(labels))


@torch.no_grad()
def measure(parts: nn.ModuleDict, grey: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Shares of characters, blanks and marks named right in their slot, and of cells right in all slots."""
    guess = torch.cat([parts["head"](tower.patch_features(parts["tower"], tower.normalise(part))).argmax(-1)
                       for part in grey.split(4)])  # fmt: skip
    right = guess == labels
    inked = (labels > 0).any(-1)
    kinds = {"glyphs": (labels > 1) & (labels < flow.NEWLINE), "spaces": labels == 1, "marks": labels == flow.NEWLINE}
    shares = {name: float(right[where].float().mean()) for name, where in kinds.items()}
    return shares | {"cells": float(right.all(-1)[inked].float().mean())}


def tests(count: int = 8) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The same tiles every time, in fonts learned from and in fonts held out."""
    sets = {}
    for name, held_out in (("seen", False), ("held out", True)):
        tiles = drawn(9, 0, held_out)
        sets[name] = stacked([next(tiles) for _ in range(count)])
    return sets


def train(
    minutes: float,
    resume: bool,
    rate: float = 2.5e-3,
    batch: int = 8,
    seed: int = 23,
    name: str = "lines",
    until: float = math.inf,
    **sizes: int,
) -> None:
    """Train for `minutes` of the wall clock in all or until the moment `until`; goes on from the checkpoint `name`."""
    torch.manual_seed(seed)
    parts = build(**sizes)
    if not (resume and checkpoint.exists(name)):
        tiles = drawn(seed + 100, 0)
        sample, _ = stacked([next(tiles) for _ in range(24)])
        tower.initialise_local(parts["tower"], sample, offsets=OFFSETS)
    average = AveragedModel(parts, multi_avg_fn=get_ema_multi_avg_fn(0.997))
    modules = {**dict(parts.items()), "average": average}
    optimizers = optim.make_optimizers([parts["tower"], parts["head"]], rate)
    stage = Stage(name, minutes, modules, optimizers, rate, flat=0.6, every=50, until=until)
    stage.facts["tiles"] = 0
    if resume and checkpoint.exists(name):
        stage.resume()
        print(f"resumed at step {stage.facts['step']:.0f}", flush=True)
    count = sum(p.numel() for p in parts.parameters())
    print(f"{count:,} parameters, {len(fonts.font_files())} font files", flush=True)
    sets, tiles, probed = tests(), drawn(seed, int(stage.facts["tiles"])), time.time()
    for _ in stage.steps():
        grey, labels = stacked([next(tiles) for _ in range(batch)])
        loss = vision.glyph_loss(parts["head"](tower.patch_features(parts["tower"], tower.normalise(grey))), labels)
        stage.facts["tiles"] += batch
        stage.learn(loss, {"loss": loss}, f"tiles {stage.facts['tiles']:.0f}")
        average.update_parameters(parts)
        if time.time() - probed > PROBE_EVERY:
            for which, test in sets.items():
                shares = " ".join(f"{key} {value:.3f}" for key, value in measure(average.module, *test).items())
                print(f"probe {which}: {shares}", flush=True)
            probed = time.time()
