"""How many held-out samples a gain needs to be decided: the power of the paired comparison of `intervals`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mllm_tailor.scoring.intervals import FEWEST_UNITS, t_quantile

POWER = 0.8  # the probability with which a true gain of that size is found
DEVIATION = 25.0  # points: of the change of one sample of several fields, as measured on receipts
CORRELATION = 0.2  # of the changes of two samples of one group
MOST_UNITS = 1_000_000


@dataclass(frozen=True)
class SamplesNeeded:
    """What a held-out split of given groups can decide, and the size that would decide a gain of `points`."""

    points: float
    samples: int  # needed, in groups of the same sizes
    units: int  # needed: groups, and samples without a group
    present_samples: int
    present_units: int
    smallest_gain: float | None  # points that the present split decides; None: too few units for any interval

    @property
    def enough(self) -> bool:
        """Whether the present split decides the gain."""
        return self.smallest_gain is not None and self.smallest_gain <= self.points


def samples_needed(
    groups: Sequence[str | None],
    points: float = 5.0,
    *,
    deviation: float = DEVIATION,
    correlation: float = CORRELATION,
) -> SamplesNeeded:
    """The number of held-out samples that would show a true gain of `points` in four of five cases.

    `groups` names the group of each held-out sample (None: of no group). `deviation` is the standard deviation of the
    change of one sample, in points; `correlation` that of the changes of two samples of one group.

    Raises:
        ValueError: when `points` is not positive.

    >>> samples_needed([None] * 40).samples
    199
    """
    if points <= 0:
        raise ValueError(f"a gain of {points} points cannot be decided")
    sizes = list(Counter(group if group else (row,) for row, group in enumerate(groups)).values()) or [1]
    mean = sum(sizes) / len(sizes)
    # Variance of the mean of one unit, of average influence: units contribute in proportion to their samples.
    variances = [deviation**2 * (correlation + (1 - correlation) / size) for size in sizes]
    variance = sum((size / mean) ** 2 * each for size, each in zip(sizes, variances, strict=True)) / len(sizes)
    units = _units_needed(variance, points)
    present = len(sizes) if groups else 0
    smallest = _smallest_gain(variance, present) if present >= FEWEST_UNITS else None
    return SamplesNeeded(points, math.ceil(units * mean), units, len(groups), present, smallest)


def _smallest_gain(variance: float, units: int) -> float:
    freedom = max(1.0, units - 1.0)
    return (t_quantile(freedom) + t_quantile(freedom, POWER)) * math.sqrt(variance / units)


def _units_needed(variance: float, points: float) -> int:
    """The smallest number of units that decides `points`, by bisection: `_smallest_gain` falls with the units."""
    low, high = FEWEST_UNITS, MOST_UNITS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _smallest_gain(variance, middle) <= points else (middle + 1, high)
    return low
