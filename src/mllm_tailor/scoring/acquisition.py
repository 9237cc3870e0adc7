"""Which unlabelled samples are worth labelling: those the model doubts and that are unlike what is labelled already.

Greedy, as k-center selection (Sener and Savarese 2018, arXiv 1708.00489), but each sample's distance to its nearest
centre is weighted by the doubt about it, so that neither twenty copies of one hard page nor odd pages that are read
without doubt come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """A sample by its index, in the order in which samples are worth labelling."""

    index: int
    worth: float  # doubt times distance, when it was chosen
    doubt: float  # expected number of wrong values
    distance: float  # to the nearest labelled or earlier chosen sample, 0 (alike) to 2


def rank_by_worth(
    doubt: NDArray[np.floating[Any]],
    features: NDArray[np.floating[Any]],
    labelled: NDArray[np.floating[Any]],
    count: int | None = None,
) -> list[Choice]:
    """The first `count` samples (default: all), the worthiest first.

    `doubt` is (n,), `features` (n, d), `labelled` (m, d) with m possibly 0. Distances are 1 minus the cosine of
    features whose mean over all samples is taken off: pages of one kind have a large part in common.

    >>> alike = np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]])
    >>> [choice.index for choice in rank_by_worth(np.array([1.0, 0.9, 0.5]), alike, np.empty((0, 2)))]
    [0, 2, 1]
    """
    everyone = np.concatenate([features, labelled]).astype(np.float64)
    units = _unit(everyone - everyone.mean(axis=0))
    mine, known = units[: len(features)], units[len(features) :]
    nearest = np.full(len(mine), 2.0)
    for centre in known:
        nearest = np.minimum(nearest, 1.0 - mine @ centre)
    left = np.ones(len(mine), bool)
    choices: list[Choice] = []
    for _ in range(len(mine) if count is None else min(count, len(mine))):
        worth = np.where(left, doubt * np.maximum(nearest, 0.0), -1.0)
        best = int(np.lexsort((-doubt, -worth))[0])  # of equal worth, the more doubtful
        choices.append(Choice(best, max(0.0, float(worth[best])), float(doubt[best]), max(0.0, float(nearest[best]))))
        left[best] = False
        nearest = np.minimum(nearest, 1.0 - mine @ mine[best])
    return choices


def _unit(rows: Array) -> Array:
    lengths: Array = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, 1e-12)
