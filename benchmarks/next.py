"""Is the choice of `tailor next` better than a random one? On real receipts, of companies with many and few of them.

    python benchmarks/next.py FOLDER --save          # the folder of SROIE; about 6 CPU minutes, 1 when run again

The pool are the receipts that the folder trains on, the test set is its dev part. Beginning with twenty random labels,
batches are chosen at random, by distance alone, and by doubt times distance, as `tailor next` does: distances in the
frozen vision features of the embedded model. The learner is the nearest labelled receipt, whose labels are copied (a
baseline of every report); its doubt is how far the three nearest disagree. No model is tuned, so that five seeds cost
seconds. Scored are company and address, which can be copied at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_tailor.core.device import describe_machine
from mllm_tailor.core.io import fingerprint, write_json
from mllm_tailor.core.sample import Sample
from mllm_tailor.data import read_samples
from mllm_tailor.models import load_model, media_features
from mllm_tailor.scoring.acquisition import rank_by_worth
from mllm_tailor.scoring.baselines import nearest_neighbour_baseline

RESULT = Path(__file__).parent / "results" / "next.json"
BEGIN, BATCH, BATCHES, SEEDS = 20, 20, 5, 5
FIELDS = ("company", "address")

Features = NDArray[np.float32]
Choose = Callable[[Features, list[int], list[int], int], list[int]]  # (features, labelled, left, seed) -> next batch


def main() -> None:
    """Read, choose, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".benchmarks/next"))
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    samples = read_samples(arguments.folder).samples
    pool, test = ([s for s in samples if (s.split == "dev") == held_out] for held_out in (False, True))
    features, held_out = cached_features(arguments.work, pool), cached_features(arguments.work, test)
    ways: dict[str, Choose] = {
        "random": at_random,
        "distance": by_distance,
        "doubt times distance": lambda *given: by_doubt(pool, *given),
    }
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "pool": len(pool),
        "test": len(test),
        "labels": [BEGIN + BATCH * number for number in range(BATCHES + 1)],
        "right": {},
    }
    for name, choose in ways.items():
        curves = [curve(pool, test, features, held_out, choose, seed) for seed in range(SEEDS)]
        result["right"][name] = np.round(100 * np.array(curves), 1).tolist()
        print(name, "share of right values, mean of five seeds:", np.round(100 * np.mean(curves, axis=0), 1))
    gain = np.array(result["right"]["doubt times distance"]) - np.array(result["right"]["random"])
    result["gain_over_random"] = {"mean": gain.mean(axis=0).round(1).tolist(), "by_seed": gain.round(1).tolist()}
    print("doubt times distance over random, by seed:", gain[:, -1].round(1))
    if arguments.save:
        write_json(RESULT, result)


def cached_features(folder: Path, samples: Sequence[Sample]) -> Features:
    """(samples, width), kept for the next call."""
    file = folder / f"{fingerprint([sample.id for sample in samples])[:16]}.npy"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(file, media_features(samples, load_model("embedded", device="cpu")))
    features: Features = np.load(file, allow_pickle=False)
    return features


def curve(
    pool: Sequence[Sample],
    test: Sequence[Sample],
    features: Features,
    held_out: Features,
    choose: Choose,
    seed: int,
) -> list[float]:
    """The share of right values after each batch."""
    labelled = np.random.default_rng(seed).permutation(len(pool))[:BEGIN].tolist()
    shares = [right_share(pool, test, features, held_out, labelled)]
    for batch in range(BATCHES):
        left = [index for index in range(len(pool)) if index not in labelled]
        labelled = labelled + choose(features, labelled, left, 1000 * seed + batch)
        shares.append(right_share(pool, test, features, held_out, labelled))
    return shares


def right_share(
    pool: Sequence[Sample], test: Sequence[Sample], features: Features, held_out: Features, labelled: Sequence[int]
) -> float:
    """Of the values that are copied from the nearest labelled receipt."""
    labels = [dict(pool[index].fields) for index in labelled]
    replies = nearest_neighbour_baseline(features[list(labelled)], held_out, labels)
    return float(
        np.mean(
            [
                reply.get(name) == sample.fields.get(name)
                for reply, sample in zip(replies, test, strict=True)
                for name in FIELDS
            ]
        )
    )


def at_random(features: Features, labelled: list[int], left: list[int], seed: int) -> list[int]:
    """A chance choice."""
    return np.random.default_rng(seed).permutation(left)[:BATCH].tolist()


def by_distance(features: Features, labelled: list[int], left: list[int], seed: int) -> list[int]:
    """Those unlike the labelled ones and each other."""
    return [left[c.index] for c in rank_by_worth(np.ones(len(left)), features[left], features[labelled], BATCH)]


def by_doubt(pool: Sequence[Sample], features: Features, labelled: list[int], left: list[int], seed: int) -> list[int]:
    """As `tailor next`, the doubt being how many of the fields the three nearest labels disagree about."""
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    nearest = np.argsort(-(units[left] @ units[labelled].T), axis=1)[:, :3]
    doubt = np.array(
        [
            sum(len({pool[labelled[index]].fields.get(name) for index in row}) - 1 for name in FIELDS) / 2 + 0.1
            for row in nearest
        ]
    )
    return [left[choice.index] for choice in rank_by_worth(doubt, features[left], features[labelled], BATCH)]


if __name__ == "__main__":
    main()
