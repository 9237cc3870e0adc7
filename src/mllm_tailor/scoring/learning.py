"""Learning curve: the score as a power law of the number of labelled samples, extrapolated to twice as many.

error(n) = a n^-b, which learning curves follow over a wide range (Hestness et al. 2017, 1712.00409; Mahmood et al.
2022, 2207.01725, estimate data requirements with it). The error is the distance to a perfect score. The law is a
straight line through log n and log error, fitted by least squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_tailor.core.errors import RunError
from mllm_tailor.scoring.intervals import (
    FEWEST_UNITS,
    Interval,
    confidence_interval,
    interval_of,
    linearise,
    sampling_draws,
    unit_indices,
)
from mllm_tailor.scoring.scores import Ratios, Scores

FEWEST_SIZES = 3  # through two points any line fits
GRID = 48  # points at which the chart shows the law

Draws = NDArray[np.float64]


@dataclass(frozen=True)
class LearningCurve:
    """Scores at several numbers of labelled samples, the fitted law, and its extrapolation to twice the largest."""

    metric: str
    better: str  # direction of improvement
    sizes: tuple[int, ...]  # labelled samples, ascending
    values: tuple[Interval, ...]  # scores in percent
    scale: float  # a
    exponent: float  # b
    scatter: float  # largest distance of a score from the law, in percentage points
    doubled: Interval  # extrapolated to twice the largest size
    gain: Interval  # from the law at the largest size to the law at twice that; positive is better
    band: tuple[tuple[float, Interval], ...]  # the law over the range of the chart

    def row(self) -> dict[str, Any]:
        """Plain values for curve.json."""
        return asdict(self)


def fit_curve(
    sizes: Sequence[int],
    scores: Sequence[Scores],
    metric: str,
    groups: Sequence[str | None] | None = None,
    *,
    seed: int = 0,
) -> LearningCurve:
    """Fit the law to scores of the same held-out samples, one for each size.

    The interval of the extrapolation covers the choice of held-out samples (the same draws at every size) and the
    scatter of the points about the line, which stands for training with another seed (standard errors of the line;
    Student's t with `len(sizes) - 2` degrees of freedom).

    Raises:
        RunError: with fewer than three sizes or units, or scores of different samples.
    """
    if len(set(sizes)) < FEWEST_SIZES:
        raise RunError(f"{len(set(sizes))} different numbers of samples — a curve needs at least {FEWEST_SIZES} (--at)")
    if any(point.ids != scores[0].ids for point in scores):
        raise RunError("the points were scored on different held-out samples — run the curve again")
    better = scores[0][metric].better
    ratios = [point[metric].samples for point in scores]
    statistics = [linearise(point) for point in ratios]
    units = unit_indices(len(scores[0].ids), groups)
    values = tuple(confidence_interval(statistic, units) for statistic in statistics)
    check_units(groups, len(units))
    line = _Line(sizes, ratios, better)
    generator = np.random.default_rng(seed)
    law = line.draws(sampling_draws(statistics, units, generator), generator)
    last = max(sizes)
    end, doubled = line.at(law, last), line.at(law, 2 * last)
    sign = 1.0 if better == "higher" else -1.0
    known = line.value(2 * last)
    return LearningCurve(
        metric,
        better,
        tuple(sizes),
        values,
        scale=float(np.exp(line.middle - line.slope * line.centre)),
        exponent=-line.slope,
        scatter=max(abs(line.value(size) - point.value) for size, point in zip(sizes, ratios, strict=True)),
        doubled=interval_of(known, doubled, values[0].units),
        gain=interval_of(sign * (known - line.value(last)), sign * (doubled - end), values[0].units),
        band=tuple(
            (size, interval_of(line.value(size), line.at(law, size), values[0].units))
            for size in np.geomspace(min(sizes), 2 * last, GRID).tolist()
        ),
    )


def check_units(groups: Sequence[str | None] | None, count: int) -> None:
    """Refuse a curve whose points could have no interval: `groups` are those of its `count` held-out samples.

    Raises:
        RunError: stating how many units there are.
    """
    units = int(unit_indices(count, groups).max(initial=-1)) + 1
    if units < FEWEST_UNITS:
        raise RunError(
            f"the {count} held-out samples are {units} independent units (groups, and samples without one), but a "
            f"curve needs at least {FEWEST_UNITS} — hold out more"
        )


class _Line:
    """log error = middle + slope (log n - centre)."""

    def __init__(self, sizes: Sequence[int], ratios: Sequence[Ratios], better: str) -> None:
        self.better = better
        # Half a sample wrong is the smallest error: its logarithm must exist.
        self.smallest = min(50.0 / max(sum(point.denominator), 1.0) for point in ratios)
        self.logs = np.log(np.asarray(sizes, dtype=np.float64))
        self.centre = float(self.logs.mean())
        self.spread = float(((self.logs - self.centre) ** 2).sum())
        middle, slope = self.fit(np.array([[point.value for point in ratios]]))
        self.middle, self.slope = float(middle[0]), float(slope[0])

    def fit(self, percents: Draws) -> tuple[Draws, Draws]:
        """Middle and slope of the line through each row of scores (draws, sizes)."""
        logs = np.log(self._error(percents))
        return logs.mean(axis=1), (logs * (self.logs - self.centre)).sum(axis=1) / self.spread

    def draws(self, percents: Draws, generator: np.random.Generator) -> tuple[Draws, Draws]:
        """`fit`, with the standard errors of each draw's line added."""
        middle, slope = self.fit(percents)
        expected = middle[:, None] + slope[:, None] * (self.logs - self.centre)
        freedom = len(self.logs) - 2
        deviation = np.sqrt(((np.log(self._error(percents)) - expected) ** 2).sum(axis=1) / freedom)
        noise = generator.standard_t(freedom, size=(2, len(percents)))
        shift, tilt = noise[0] / np.sqrt(len(self.logs)), noise[1] / np.sqrt(self.spread)
        return middle + deviation * shift, slope + deviation * tilt

    def value(self, size: float) -> float:
        """The score of the law at a size, in percent."""
        return float(self.at((np.array([self.middle]), np.array([self.slope])), size)[0])

    def at(self, law: tuple[Draws, Draws], size: float) -> Draws:
        """Scores of several laws at a size; within 0 to 100 where higher is better."""
        logs = law[0] + law[1] * (np.log(size) - self.centre)
        if self.better == "lower":
            return np.asarray(np.exp(np.minimum(logs, 50.0)))
        return np.asarray(100.0 - np.exp(np.minimum(logs, np.log(100.0))))

    def _error(self, percents: Draws) -> Draws:
        error = 100.0 - percents if self.better == "higher" else percents
        return np.maximum(error, self.smallest)
