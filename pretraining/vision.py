"""Stage one: the vision tower alone learns to name the characters in every patch of a tile."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from pretraining import checkpoint, optimizing, slots, tiles, tower


class Tiles(IterableDataset):
    """Endless drawn tiles; tile number i depends only on the seed and i."""

    def __init__(self, seed: int, first: int = 0, held_out: bool = False, easy_until: int = 0) -> None:
        self.seed, self.first, self.held_out, self.easy_until = seed, first, held_out, easy_until

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        info = torch.utils.data.get_worker_info()
        number, every = self.first + (info.id if info else 0), info.num_workers if info else 1
        while True:
            rng = np.random.default_rng([self.seed, number])
            easy = not self.held_out and rng.random() > number / self.easy_until if self.easy_until else False
            grey, labels = draw_tile(rng, self.held_out, easy)
            yield torch.from_numpy(np.ascontiguousarray(grey)), torch.from_numpy(labels)
            number += every


def draw_tile(rng: np.random.Generator, held_out: bool = False, easy: bool = False) -> tuple[np.ndarray, np.ndarray]:
    return tiles.text_tile(rng, held_out, easy)


def glyph_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the slots; an empty slot counts a sixth, so that paper does not drown print."""
    flat, target = logits.float().reshape(-1, slots.CLASSES), labels.reshape(-1)
    loss = nn.functional.cross_entropy(flat, target, ignore_index=slots.IGNORED, reduction="none")
    weight = torch.where(target == slots.NONE, 1 / 6, 1.0) * (target != slots.IGNORED)
    return (loss * weight).sum() / weight.sum()


@torch.no_grad()
def measure(vision: nn.Module, head: nn.Module, grey: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Share of glyph slots named right (spaces apart), and of empty slots left empty."""
    with torch.autocast(grey.device.type, torch.bfloat16):
        guess = torch.cat(
            [head(tower.patch_features(vision, tower.normalise(part))).argmax(-1) for part in grey.split(4)]
        )
    guess, target = guess.reshape(-1), labels.reshape(-1)
    glyph, space, none = target > 1, target == 1, target == slots.NONE
    return {
        "glyphs": float((guess == target)[glyph].float().mean()),
        "spaces": float((guess == target)[space].float().mean()),
        "empty": float((guess == target)[none].float().mean()),
    }


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
    **sizes: int,
) -> None:
    """Train for `minutes` of the wall clock in all, over any number of restarts."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    vision = tower.build_tower(**sizes)
    if local:
        sample = torch.stack([tile for (tile, _), _ in zip(Tiles(seed + 100), range(16), strict=False)])
        tower.initialise_local(vision, sample)
    head = tower.GlyphHead(vision.config.hidden_size)
    vision.to(device).train()
    head.to(device).train()
    modules = {"tower": vision, "head": head}
    optimizers = optimizing.make_optimizers([vision, head], rate, muon)
    facts = {"step": 0, "seconds": 0.0, "tiles": 0}
    if resume and checkpoint.exists(name):
        facts = checkpoint.load(name, modules, optimizers)
    tests = [
        (torch.stack(a).to(device), torch.stack(b).to(device))
        for held_out in (False, True)
        for a, b in [zip(*[pair for pair, _ in zip(Tiles(9, held_out=held_out), range(12), strict=False)], strict=True)]
    ]
    loader = iter(
        DataLoader(Tiles(seed, facts["tiles"], easy_until=1500), batch_size=batch, num_workers=1, prefetch_factor=8)
    )
    started, saved, running = time.time() - facts["seconds"], time.time(), []
    print(f"{sum(p.numel() for p in vision.parameters()):,} parameters", flush=True)
    while (progress := (time.time() - started) / 60 / minutes) < 1:
        grey, labels = (part.to(device) for part in next(loader))
        with torch.autocast(device.type, torch.bfloat16):
            logits = head(tower.patch_features(vision, tower.normalise(grey), 4 if progress < windowed else 1))
        loss = glyph_loss(logits, labels.flatten(1, 2))
        loss.backward()
        optimizing.step(optimizers, rate * optimizing.rate_at(progress))
        facts["step"] += 1
        facts["tiles"] += batch
        running.append(float(loss.detach()))
        if facts["step"] % 100 == 0:
            shown = ""
            if facts["step"] % 400 == 0:
                shown = str([{k: round(v, 3) for k, v in measure(vision, head, *test).items()} for test in tests])
            clock = f"{(time.time() - started) / 60:.1f} min step {facts['step']} tiles {facts['tiles']}"
            print(clock, f"loss {np.mean(running):.3f}", shown, flush=True)
            running = []
        if time.time() - saved > 120:
            facts["seconds"] = time.time() - started
            checkpoint.save(name, modules, optimizers, facts)
            saved = time.time()
    facts["seconds"] = time.time() - started
    checkpoint.save(name, modules, optimizers, facts)
    print([measure(vision, head, *test) for test in tests], flush=True)
