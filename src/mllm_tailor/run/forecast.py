"""What a run will cost, before it costs it: memory and minutes from shapes and a measured rate of arithmetic.

The arithmetic of a transformer is about 2 operations per weight and token forward and 4 backward where gradients flow
(Kaplan et al. 2020, section 2.1), plus attention. The forecast is meant to be right within a factor of two; the run
compares it with what it measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

FRAMEWORK_BYTES = 700 * 2**20  # the process with torch and transformers loaded, before any weight
EFFICIENCY = 0.45  # share of the measured matrix rate that a whole step reaches


@dataclass(frozen=True)
class SampleCost:
    """One sample's length."""

    tokens: int
    tiles: int


@dataclass(frozen=True)
class Forecast:
    """Bytes and seconds foreseen."""

    peak_bytes: int
    training_seconds: float
    scoring_seconds: float
    longest_tokens: int

    def row(self) -> dict[str, Any]:
        """Plain values for forecast.json."""
        return asdict(self)


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 768) -> float:
    """Operations per second of a matrix product here and now (about 0.2 s)."""
    left = torch.randn(size, size, device=device, dtype=dtype)
    left @ left
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.2:
        left @ left
        count += 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return count * 2 * size**3 / (time.perf_counter() - start)


@dataclass(frozen=True)
class ModelCost:
    """What the forecast needs to know of a model and a method."""

    weights: int
    weight_bytes: int
    trained: int
    vision_weights: int
    patches_per_tile: int
    vision_width: int
    vision_layers: int
    width: int
    layers: int
    vision_trained: bool


def forecast(
    cost: ModelCost,
    train: Sequence[SampleCost],
    held_out: Sequence[SampleCost],
    *,
    epochs: float,
    minutes: float | None,
    micro_batch: int,
    reply_tokens: int,
    rate: float,
) -> Forecast:
    """Peak bytes and seconds of training and of scoring base and tuned, each constrained and free."""
    longest = max(sample.tokens for sample in (*train, *held_out))
    tiles = max(sample.tiles for sample in (*train, *held_out))
    language = cost.weights - cost.vision_weights
    activations = micro_batch * longest * cost.width * cost.layers * 34 * 2
    if cost.vision_trained:
        activations += micro_batch * tiles * cost.patches_per_tile * cost.vision_width * cost.vision_layers * 34 * 2
    else:
        activations += tiles * cost.patches_per_tile * cost.vision_width * 12 * 4
    peak = FRAMEWORK_BYTES + cost.weight_bytes + cost.trained * 16 + activations
    forward = [_forward(cost, language, sample) for sample in train]
    passes = [(language_ops, vision_ops) for language_ops, vision_ops in forward]
    train_ops = sum(
        3 * language_ops + (3 if cost.vision_trained else 0) * vision_ops for language_ops, vision_ops in passes
    )
    once = 0.0 if cost.vision_trained else sum(vision_ops for _, vision_ops in passes)
    score_ops = sum(sum(_forward(cost, language, sample)) + reply_tokens * 2 * language for sample in held_out)
    speed = rate * EFFICIENCY
    training = (epochs * train_ops + once) / speed
    if minutes is not None:
        training = min(training, 60 * minutes)
    return Forecast(int(peak), training, 4 * score_ops / (speed * 0.5), longest)


def _forward(cost: ModelCost, language: int, sample: SampleCost) -> tuple[float, float]:
    """Forward operations of one sample: language side, vision side."""
    text = sample.tokens * (2 * language + 2 * sample.tokens * cost.width * cost.layers)
    patches = sample.tiles * cost.patches_per_tile
    vision = patches * (2 * cost.vision_weights + 4 * cost.patches_per_tile * cost.vision_width * cost.vision_layers)
    return float(text), float(vision)
