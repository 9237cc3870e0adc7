"""Stage one: the vision tower alone learns to name the characters in every patch of a tile."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from pretraining import checkpoint, fonts, glyph_slots, optim, pictures, tiles, tower
from pretraining.stage import Stage

SHARING = 6  # tiles that draw on one group of as many fonts: rendering a font costs more than a tile


class Tiles(IterableDataset):
    """Endless drawn tiles; tile number i depends only on the seed and i."""

    def __init__(
        self, seed: int, first: int = 0, held_out: bool = False, easy_until: int = 0, documents: float = 0.0
    ) -> None:
        self.seed, self.first, self.held_out = seed, first, held_out
        self.easy_until, self.documents = easy_until, documents

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        info = torch.utils.data.get_worker_info()
        number, every = self.first + (info.id if info else 0), info.num_workers if info else 1
        while True:
            rng = np.random.default_rng([self.seed, number])
            easy = not self.held_out and rng.random() > number / self.easy_until if self.easy_until else False
            grey, labels = self._draw(rng, number, easy)
            yield torch.from_numpy(np.ascontiguousarray(grey)), torch.from_numpy(labels)
            number += every

    def _draw(self, rng: np.random.Generator, number: int, easy: bool) -> tuple[np.ndarray, np.ndarray]:
        if rng.random() < self.documents:
            return document_tile(rng)
        return tiles.text_tile(rng, self.held_out, easy, self._atlases(number // SHARING) if not easy else None)

    @functools.lru_cache(maxsize=1)  # noqa: B019 - one group of fonts, drawn once for its tiles
    def _atlases(self, group: int) -> tuple[fonts.Atlas, ...]:
        rng = np.random.default_rng([self.seed, group, SHARING])
        return tuple(tiles.random_atlas(rng, self.held_out) for _ in range(SHARING))


def document_tile(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One tile of a drawn document of any kind: grey [448, 448] uint8 and labels [32, 32, SLOTS]."""
    grey, labels, _ = pictures.cut(pictures.drawn_page(rng), most=3)
    index = int(rng.integers(len(grey)))
    return grey[index], labels[index]


def glyph_loss(logits: torch.Tensor, labels: torch.Tensor, empty: float = 1 / 6) -> torch.Tensor:
    """Cross entropy of the slots; an empty slot counts `empty`, so that paper does not drown print."""
    flat, target = logits.float().reshape(-1, logits.shape[-1]), labels.reshape(-1)
    loss = nn.functional.cross_entropy(flat, target, ignore_index=glyph_slots.IGNORED, reduction="none")
    weight = torch.where(target == glyph_slots.NONE, empty, 1.0) * (target != glyph_slots.IGNORED)
    return (loss * weight).sum() / weight.sum()


@torch.no_grad()
def measure(vision: nn.Module, head: nn.Module, grey: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Share of glyph slots named right (spaces apart), and of empty slots left empty."""
    with optim.computing(grey.device):
        guess = torch.cat(
            [head(tower.patch_features(vision, tower.normalise(part))).argmax(-1) for part in grey.split(4)]
        )
    guess, target = guess.reshape(-1), labels.reshape(-1)
    glyph, space, none = target > 1, target == 1, target == glyph_slots.NONE
    return {
        "glyphs": float((guess == target)[glyph].float().mean()),
        "spaces": float((guess == target)[space].float().mean()),
        "empty": float((guess == target)[none].float().mean()),
    }


def fit_head(vision: nn.Module, head: nn.Module, count: int = 48, steps: int = 200) -> None:
    """Fit a fresh head to a trained tower's features of `count` tiles, so that its errors do not spoil the tower."""
    pairs = [pair for pair, _ in zip(Tiles(12), range(count), strict=False)]
    with torch.no_grad(), optim.computing("cpu"):
        features = torch.cat([tower.patch_features(vision, tower.normalise(grey[None])) for grey, _ in pairs]).float()
    fit_to_features(head, features, torch.stack([labels for _, labels in pairs]).flatten(1, 2), steps, batch=4)


def fit_to_features(head: nn.Module, features: torch.Tensor, labels: torch.Tensor, steps: int, batch: int) -> None:
    """Fit a head to features [tiles, patches, width] and labels [tiles, patches, slots], `batch` tiles a step."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    for _ in range(steps):
        chosen = torch.randint(len(features), (batch,))
        loss = glyph_loss(head(features[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"head fitted: loss {loss.item():.3f}", flush=True)


def train(
    minutes: float,
    resume: bool,
    rate: float = 2.5e-3,
    batch: int = 2,
    muon: bool = True,
    local: bool = True,
    seed: int = 1,
    name: str = "vision",
    windowed: float = 0.8,
    documents: float = 0.15,
    easy_until: int = 1500,
    start: str = "",
    compiled: bool = False,
    **sizes: int,
) -> None:
    """Train for `minutes` of the wall clock in all, over any number of restarts.

    `start` is a model folder whose tower is the start instead of a fresh one (widened where `ratio` asks for more);
    `windowed` the share of the time in which patches attend only within strips of rows; `documents` the share of
    tiles cut from drawn documents; `compiled` runs the tower through torch.compile.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    vision = tower.build_tower(**sizes)
    resumed = resume and checkpoint.exists(name)
    if start and not resumed:
        tower.start_from(vision, Path(start))
    elif local and not resumed:
        sample = torch.stack([tile for (tile, _), _ in zip(Tiles(seed + 100), range(16), strict=False)])
        tower.initialise_local(vision, sample)
    head = tower.GlyphHead(vision.config.hidden_size)
    if start and not resumed and not checkpoint.step(checkpoint.HEADS, {"head": head}):
        fit_head(vision, head)
    vision.to(device).train()
    head.to(device).train()
    modules = {"tower": vision, "head": head}
    optimizers = optim.make_optimizers([vision, head], rate, muon)
    stage = Stage(name, minutes, modules, optimizers, rate, flat=0.3, every=100)
    stage.facts["tiles"] = 0
    if resumed:
        stage.resume()
    tests = [
        (torch.stack(a).to(device), torch.stack(b).to(device))
        for held_out in (False, True)
        for a, b in [zip(*[pair for pair, _ in zip(Tiles(9, held_out=held_out), range(12), strict=False)], strict=True)]
    ]
    drawn = Tiles(seed, int(stage.facts["tiles"]), easy_until=easy_until, documents=documents)
    loader = iter(DataLoader(drawn, batch_size=batch, num_workers=1, prefetch_factor=8))
    features = torch.compile(tower.patch_features) if compiled else tower.patch_features
    print(f"{sum(p.numel() for p in vision.parameters()):,} parameters", flush=True)
    for done in stage.steps():
        grey, labels = (part.to(device) for part in next(loader))
        with optim.computing(device):
            logits = head(features(vision, tower.normalise(grey), 4 if done < windowed else 1))
        loss = glyph_loss(logits, labels.flatten(1, 2))
        stage.facts["tiles"] += batch
        stage.learn(loss, {"loss": loss}, f"tiles {stage.facts['tiles']:.0f}")
        if stage.facts["step"] % 400 == 0:
            print([{k: round(v, 3) for k, v in measure(vision, head, *test).items()} for test in tests], flush=True)
    print([measure(vision, head, *test) for test in tests], flush=True)
