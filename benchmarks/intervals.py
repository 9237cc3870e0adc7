"""How often do the intervals of `mllm_tailor.scoring` err? A simulation of base and tuned scores with known truth.

    python benchmarks/intervals.py                 # 2,000 trials a cell, four minutes, writes results/intervals.json
    python benchmarks/intervals.py --trials 200

Without a true gain at most 7 % of the trials should claim a change; with one the interval should hold it in 93 to 97 %.
A sample has a difficulty that both models share, a group has one too, and the gain differs between groups (standard
deviation 0.4 on the latent scale). Kinds of score: `smooth` (continuous, within 0 to 100), `fuzzy` (about half at 100),
`fields` (share of four fields right), `exact` (right or wrong), `high` (95 % at 100, a rare and skewed gain), `rare`
(right or wrong, 95 % right). Kinds of group: `single` (samples without groups), `equal` (six samples each), `unequal`
(from the largest with about 24 down to one or two).

Intervals of continuous scores cover 93 to 97 % at any number of groups. Those of scores that are right or wrong, or
mostly at 100, cover more where there are few units, because there the data cannot show how rare the unseen outcome is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_tailor.scoring.intervals import confidence_interval, linearise
from mllm_tailor.scoring.scores import Ratios

Array = NDArray[np.float64]
RESULT = Path(__file__).parent / "results" / "intervals.json"
GROUPS = (3, 5, 8, 12, 20, 60)
SCORES = ("smooth", "fuzzy", "fields", "exact", "high", "rare")
SIZES = ("single", "equal", "unequal")
GAIN, GAIN_DEVIATION = 0.9, 0.4  # on the latent scale
TRUTH_SAMPLES = 400_000


def group_sizes(kind: str, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Samples of each group."""
    if kind == "unequal":
        sizes = 24 / np.arange(1, count + 1) ** 0.8 * generator.uniform(0.6, 1.4, count)
        return np.maximum(1, np.round(sizes)).astype(np.int64)
    return np.full(count, 1 if kind == "single" else 6, np.int64)


def observe(kind: str, latent: Array, generator: np.random.Generator) -> Array:
    """Scores in percent from latent ability less difficulty."""
    match kind:
        case "smooth":
            return np.asarray(100 / (1 + np.exp(-latent)))
        case "fuzzy":
            return np.where(latent > 0, 100.0, np.clip(100 + 28 * latent, 0, 100))
        case "fields":
            return np.asarray(25.0 * ((latent + generator.normal(size=(4, len(latent)))) > 0).sum(axis=0))
        case "exact":
            return np.where(latent > 0, 100.0, 0.0)
        case "high":
            return np.where(latent > -1.6, 100.0, np.clip(100 + 30 * (latent + 1.6), 0, 100))
        case "rare":
            return np.where(latent > -2.2, 100.0, 0.0)
    raise ValueError(kind)


def draw(
    kind: str, sizes: NDArray[np.int64], gain: float, generator: np.random.Generator
) -> tuple[Array, Array, NDArray[np.int64]]:
    """Base scores, tuned scores and the group of each sample."""
    units = np.repeat(np.arange(len(sizes)), sizes)
    shared = 0.8 * generator.normal(size=len(sizes))[units] + generator.normal(size=len(units))
    change = gain + GAIN_DEVIATION * generator.normal(size=len(sizes))[units]
    base, tuned = (
        observe(kind, shared + sign * change / 2 + 0.7 * generator.normal(size=len(units)), generator)
        for sign in (-1, 1)
    )
    return base, tuned, units


def cell(kind: str, size: str, count: int, trials: int, seed: int) -> dict[str, Any]:
    """Percent of trials that claim a change without a true gain, and that cover a true gain."""
    generator = np.random.default_rng(seed)
    base, tuned, _ = draw(kind, np.ones(TRUTH_SAMPLES, np.int64), GAIN, generator)
    truth = float((tuned - base).mean())
    claims = covered = 0
    for _ in range(trials):
        for gain in (0.0, GAIN):
            before, after, units = draw(kind, group_sizes(size, count, generator), gain, generator)
            ones = (1.0,) * len(units)
            first, second = (linearise(Ratios(tuple(scores / 100), ones)) for scores in (before, after))
            interval = confidence_interval(second.minus(first), units)
            if gain:
                covered += interval.low <= truth <= interval.high
            else:
                claims += interval.clear
    return {
        "scores": kind, "groups": size, "units": count, "gain": round(truth, 2),
        "false_claims": round(100 * claims / trials, 2), "coverage": round(100 * covered / trials, 2),
    }  # fmt: skip


def fold_coverage(samples: int, folds: int, trials: int, seed: int) -> dict[str, Any]:
    """Coverage of cross-validation: ridge regression of 30 features, scored against predicting nothing.

    The truth is the expected gain of a model trained on as many samples as each fold's model.
    """
    generator = np.random.default_rng(seed)
    weights = np.concatenate([np.full(4, 0.5), np.zeros(26)])

    def sample(count: int) -> tuple[Array, Array]:
        features = generator.normal(size=(count, 30))
        return features, features @ weights + 1.5 * generator.normal(size=count)

    def train(features: Array, targets: Array) -> Array:
        return np.asarray(np.linalg.solve(features.T @ features + 3 * np.eye(30), features.T @ targets))

    def scores(predicted: Array, targets: Array) -> Array:
        return np.asarray(100 * np.exp(-np.abs(predicted - targets)))

    test, wanted = sample(20_000)
    gains = [
        float(
            (scores(test @ train(*sample(samples * (folds - 1) // folds)), wanted) - scores(0 * wanted, wanted)).mean()
        )
        for _ in range(200)
    ]
    truth, covered = float(np.mean(gains)), 0
    for _ in range(trials):
        features, targets = sample(samples)
        fold, predicted = np.arange(samples) % folds, np.empty(samples)
        for number in range(folds):
            held_out = fold == number
            predicted[held_out] = features[held_out] @ train(features[~held_out], targets[~held_out])
        ones = (1.0,) * samples
        tuned, base = (
            linearise(Ratios(tuple(scores(values, targets) / 100), ones)) for values in (predicted, 0 * targets)
        )
        interval = confidence_interval(tuned.minus(base), np.arange(samples), folds)
        covered += interval.low <= truth <= interval.high
    return {"samples": samples, "folds": folds, "gain": round(truth, 2), "coverage": round(100 * covered / trials, 2)}


def simulate(trials: int) -> dict[str, Any]:
    """Every cell."""
    cells = [
        cell(kind, size, count, trials, seed)
        for seed, (kind, size, count) in enumerate((k, s, g) for k in SCORES for s in SIZES for g in GROUPS)
    ]
    folds = [fold_coverage(samples, count, trials // 2, 1) for samples, count in ((40, 5), (60, 5), (60, 10), (150, 5))]
    return {"trials": trials, "cells": cells, "cross_validation": folds}


def table(result: dict[str, Any]) -> str:
    """False claims / coverage, by kind of score and groups (rows) and number of units (columns)."""
    lines = [f"{'':8}{'':9}" + "".join(f"{count:>13}" for count in GROUPS)]
    for kind in SCORES:
        for size in SIZES:
            row = [each for each in result["cells"] if (each["scores"], each["groups"]) == (kind, size)]
            figures = "".join(f"{each['false_claims']:6.1f} /{each['coverage']:5.1f}" for each in row)
            lines.append(f"{kind:8}{size:9}{figures}")
    lines += [
        f"{each['folds']} folds of {each['samples']} samples: coverage {each['coverage']:.1f}"
        for each in result["cross_validation"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Simulate, print the table, write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    result = simulate(options.trials)
    print(table(result))
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
