"""Whether confidences of new documents are still distributed as those of the held-out split.

Both are counts by hundredths. The two-sample test of Kolmogorov and Smirnov makes no assumption about their shape;
equal values, of which rounding and isotonic calibration make many, only lower its rate of false alarms (Noether 1963).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded when they are first used
from numpy.typing import NDArray

LEVELS = 101  # hundredths from 0 to 1

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Difference:
    """Two samples of confidences compared."""

    statistic: float  # the largest distance between their distribution functions
    p: float  # probability of one as large if both came from one distribution
    mean: float  # of the new values
    reference_mean: float


def count_confidences(values: Iterable[float]) -> Counts:
    """(LEVELS,) how many values lie at each hundredth.

    >>> count_confidences([0.0, 0.994, 1.0])[[0, 99, 100]].tolist()
    [1, 1, 1]
    """
    levels = [round(min(1.0, max(0.0, value)) * (LEVELS - 1)) for value in values]
    return np.bincount(levels, minlength=LEVELS).astype(np.int64)


def compare_confidences(reference: Counts, new: Counts) -> Difference:
    """The asymptotic two-sample test (Smirnov 1948), which for small samples errs on the quiet side.

    Raises:
        ValueError: for an empty sample.
    """
    first, second = int(reference.sum()), int(new.sum())
    if not first or not second:
        raise ValueError("no values to compare")
    distance = float(np.abs(reference.cumsum() / first - new.cumsum() / second).max())
    size = math.sqrt(first * second / (first + second))
    levels = np.linspace(0, 1, LEVELS)
    return Difference(
        round(distance, 6),
        float(scipy.special.kolmogorov(size * distance)),
        float(new @ levels / second),
        float(reference @ levels / first),
    )
