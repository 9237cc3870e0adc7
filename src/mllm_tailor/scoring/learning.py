"""How a score grows with the number of labelled samples, and what labelling as many again would bring.

error(n) = a n^-b, the power law that learning curves follow over a wide range (Hestness et al. 2017, 1712.00409;
Mahmood et al. 2022, 2207.01725, fit it to say how much data a task needs). The error is what is left to a perfect
score. The law is a straight line through log n and log error, found by least squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_tailor.core.errors import RunError
from mllm_tailor.scoring.compare import RESAMPLES, Interval, interval_of, percent, resampled_sums
from mllm_tailor.scoring.scores import Ratios, Scores

FEWEST = 3  # sizes; through two any line fits, and nothing tells how well
GRID = 48  # places at which the picture shows the law

Draws = NDArray[np.float64]


@dataclass(frozen=True)
class LearningCurve:
    """Scores at several numbers of labelled samples, the law through them, and what it foresees for twice the most."""

    metric: str
    better: str  # direction of improvement
    sizes: tuple[int, ...]  # labelled samples, ascending
    values: tuple[Interval, ...]  # scores in percent; the interval is that of the held-out samples drawn
    scale: float  # a
    exponent: float  # b
    scatter: float  # largest distance of a score from the law, in percentage points
    doubled: Interval  # foreseen at twice the largest size
    gain: Interval  # from the law at the largest size to the law at twice that; positive is better
    band: tuple[tuple[float, Interval], ...]  # the law over the picture's range

    def row(self) -> dict[str, Any]:
        """Plain values for curve.json."""
        return asdict(self)


def fit_curve(
    sizes: Sequence[int],
    scores: Sequence[Scores],
    metric: str,
    groups: Sequence[str | None] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> LearningCurve:
    """The law through scores of the same held-out samples, one for each size.

    Two things make the projection uncertain, and both are in its interval: which held-out samples were drawn
    (bootstrap, the same draws at every size), and how the points scatter about the line, as training with another seed
    would move them (standard errors of the line; Student's t, with as many degrees of freedom as sizes less two).

    Raises:
        RunError: with fewer than three sizes, or scores of different samples.
    """
    if len(set(sizes)) < FEWEST:
        raise RunError(f"{len(set(sizes))} different numbers of samples — a curve needs at least {FEWEST} (--at)")
    if any(one.ids != scores[0].ids for one in scores):
        raise RunError("the points were scored on different held-out samples — run the curve anew")
    better = scores[0][metric].better
    ratios = [one[metric].samples for one in scores]
    columns = np.array([side for one in ratios for side in (one.numerator, one.denominator)]).T
    sums = resampled_sums(columns, groups, resamples, seed)
    drawn = np.stack([percent(sums[:, 2 * place], sums[:, 2 * place + 1]) for place in range(len(sizes))], axis=1)
    line = _Line(sizes, ratios, better)
    generator = np.random.default_rng(seed + 1)
    law = line.draws(drawn[~np.isnan(drawn).any(axis=1)], generator)
    last = max(sizes)
    end, doubled = line.at(law, last), line.at(law, 2 * last)
    sign = 1.0 if better == "higher" else -1.0
    known = line.value(2 * last)
    return LearningCurve(
        metric,
        better,
        tuple(sizes),
        tuple(interval_of(one.value, drawn[:, place]) for place, one in enumerate(ratios)),
        scale=float(np.exp(line.middle - line.slope * line.centre)),
        exponent=-line.slope,
        scatter=max(abs(line.value(size) - one.value) for size, one in zip(sizes, ratios, strict=True)),
        doubled=interval_of(known, doubled),
        gain=interval_of(sign * (known - line.value(last)), sign * (doubled - end)),
        band=tuple(
            (size, interval_of(line.value(size), line.at(law, size)))
            for size in np.geomspace(min(sizes), 2 * last, GRID).tolist()
        ),
    )


class _Line:
    """log error = middle + slope (log n - centre)."""

    def __init__(self, sizes: Sequence[int], ratios: Sequence[Ratios], better: str) -> None:
        self.better = better
        self.all_reduce_min = min(
            50.0 / max(sum(one.denominator), 1.0) for one in ratios
        )  # half a point missed: none is perfect
        self.logs = np.log(np.asarray(sizes, dtype=np.float64))
        self.centre = float(self.logs.mean())
        self.spread = float(((self.logs - self.centre) ** 2).sum())
        found = self.fit(np.array([[one.value for one in ratios]]))
        self.middle, self.slope = float(found[0][0]), float(found[1][0])

    def fit(self, percents: Draws) -> tuple[Draws, Draws]:
        """Middle and slope of the line through each row of scores (draws, sizes)."""
        logs = np.log(self._error(percents))
        return logs.mean(axis=1), (logs * (self.logs - self.centre)).sum(axis=1) / self.spread

    def draws(self, percents: Draws, generator: np.random.Generator) -> tuple[Draws, Draws]:
        """The same, with each draw's own scatter about its line added."""
        middle, slope = self.fit(percents)
        expected = middle[:, None] + slope[:, None] * (self.logs - self.centre)
        freedom = len(self.logs) - 2
        deviation = np.sqrt(((np.log(self._error(percents)) - expected) ** 2).sum(axis=1) / freedom)
        noise = generator.standard_t(freedom, size=(2, len(percents)))
        shift, tilt = noise[0] / np.sqrt(len(self.logs)), noise[1] / np.sqrt(self.spread)
        return middle + deviation * shift, slope + deviation * tilt

    def value(self, size: float) -> float:
        """The law's score at a size, in percent."""
        return float(self.at((np.array([self.middle]), np.array([self.slope])), size)[0])

    def at(self, law: tuple[Draws, Draws], size: float) -> Draws:
        """Scores of several laws at a size; never outside 0 to 100 where higher is better."""
        logs = law[0] + law[1] * (np.log(size) - self.centre)
        if self.better == "lower":
            return np.asarray(np.exp(np.minimum(logs, 50.0)))
        return np.asarray(100.0 - np.exp(np.minimum(logs, np.log(100.0))))

    def _error(self, percents: Draws) -> Draws:
        error = 100.0 - percents if self.better == "higher" else percents
        return np.maximum(error, self.all_reduce_min)
