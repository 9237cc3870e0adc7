"""95 % confidence intervals that fit the number of independent units (groups, or samples without a group).

Every score is linearised: sample i contributes `influence[i]` to it. The variance is the cluster jackknife (CV3 of
MacKinnon, Nielsen and Webb 2023, "Cluster-robust inference", J. Econometrics 232), scaled to be unbiased under a random
effect of the group, with Student's t and the degrees of freedom of Bell and McCaffrey 2002 ("Bias reduction in standard
errors for linear regression with multi-stage samples", Survey Methodology 28), which fall when group sizes differ.
With equal groups this is the ordinary t interval of the group means.

Scores pile up at 0 and 100, and then the observed variance is too small more often than not: the rare large changes are
missing from the sample. The variance is therefore that of the sample plus one more sample as extreme as the most
extreme observed one. It counts in proportion to the samples that agree to the last digit, and fully when half of them
do; where all scores differ, nothing is added. Where most samples agree, two are added (Agresti and Coull 1998 add two
successes and two failures to a proportion), at least as extreme as the standard deviation of a uniform score.
`benchmarks/intervals.py` measures the error rates of the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded when they are first used
from numpy.typing import NDArray

from mllm_tailor.scoring.scores import Ratios

Array = NDArray[np.float64]

FEWEST_UNITS = 3  # with fewer there is one degree of freedom or none, and no usable interval
UNIFORM_DEVIATION = 100.0 / math.sqrt(12.0)  # points: standard deviation of a score uniform on 0 to 100
DRAWS = 10_000  # of the sampling distribution, where a statistic has no closed form
MAX_FREEDOM = 10_000.0  # degrees of freedom from which Student's t is taken as normal


@dataclass(frozen=True)
class Interval:
    """A value in percent (or percentage points) with its 95 % confidence interval.

    With fewer than three units nothing can be said: `low` and `high` are then the bounds of what is possible.
    """

    value: float
    low: float
    high: float
    units: int = FEWEST_UNITS  # independent units behind it

    @property
    def known(self) -> bool:
        """Whether there are enough units for an interval."""
        return self.units >= FEWEST_UNITS

    @property
    def clear(self) -> bool:
        """Whether zero lies outside."""
        return self.known and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Linearised:
    """A statistic in percent with the influence of each sample on it and the sample's share in it.

    `influence` and `weight` are (samples,); influences sum to 0, weights to 1 (or to 0 where nothing was scored).
    """

    value: float
    influence: Array
    weight: Array
    low: float = 0.0  # bounds of what is possible
    high: float = 100.0

    @property
    def scored(self) -> NDArray[np.bool_]:
        """The samples that take part, (samples,)."""
        return np.asarray((self.weight > 0) | (self.influence != 0))

    def negative(self) -> Linearised:
        """The statistic with its sign changed."""
        return Linearised(-self.value, -self.influence, self.weight, -self.high, -self.low)

    def minus(self, other: Linearised) -> Linearised:
        """The difference of two statistics of the same samples."""
        return Linearised(
            self.value - other.value,
            self.influence - other.influence,
            (self.weight + other.weight) / 2,
            self.low - other.high,
            self.high - other.low,
        )


def linearise(ratios: Ratios) -> Linearised:
    """The ratio of sums of a metric; its upper bound is 100 unless some sample exceeds it, as error rates can."""
    numerator, denominator = np.array(ratios.numerator, float), np.array(ratios.denominator, float)
    total = denominator.sum()
    if not total:
        return Linearised(0.0, np.zeros(len(numerator)), np.zeros(len(numerator)))
    rate = float(numerator.sum() / total)
    share = float(np.max(numerator / np.where(denominator > 0, denominator, np.inf), initial=0.0))
    high = 100.0 if share <= 1.0 and rate <= 1.0 else 100.0 * max(share, rate)
    return Linearised(ratios.value, 100 * (numerator - rate * denominator) / total, denominator / total, 0.0, high)


def unit_indices(count: int, groups: Sequence[str | None] | None) -> NDArray[np.int64]:
    """The unit (0, 1, …) of each sample; a sample without a group is a separate unit."""
    known: dict[object, int] = {}
    names = groups if groups is not None else [None] * count
    return np.array([known.setdefault(name if name else (row,), len(known)) for row, name in enumerate(names)], int)


def confidence_interval(statistic: Linearised, units: NDArray[np.int64], folds: int = 1) -> Interval:
    """The 95 % interval; `units` (samples,) numbers the independent unit of each sample.

    With `folds` > 1 the samples were scored by cross-validation, each by a model trained on the other folds. The models
    share training data, so the variance grows by the ratio of held-out to training samples, 1 / (folds - 1), as in the
    corrected test of Nadeau and Bengio 2003 ("Inference for the generalization error", Machine Learning 52).
    """
    numbers = np.unique(units[statistic.scored])
    count = len(numbers)
    if count < FEWEST_UNITS:
        return Interval(statistic.value, statistic.low, statistic.high, count)
    below, above = _margins(statistic, units, folds)
    low, high = max(statistic.low, statistic.value - below), min(statistic.high, statistic.value + above)
    return Interval(statistic.value, float(low), float(high), count)


def _margins(statistic: Linearised, units: NDArray[np.int64], folds: int) -> tuple[float, float]:
    """Distances of the lower and upper end from the value."""
    spread = spread_of(statistic, units)
    if spread.identical:
        share = 1.0 - 0.05 ** (1.0 / spread.units)  # the rule of three: units that may differ unseen
        return share * (statistic.value - statistic.low), share * (statistic.high - statistic.value)
    shared = folds / (folds - 1) if folds > 1 else 1.0
    margin = t_quantile(spread.freedom) * math.sqrt(spread.variance * shared + spread.extreme**2)
    return margin, margin


@dataclass(frozen=True)
class Spread:
    """The sampling distribution of a statistic: variance, most extreme sample, degrees of freedom."""

    variance: float
    extreme: float  # influence of one more sample as extreme as the most extreme one
    freedom: float
    units: int
    identical: bool  # all samples have the same value, so that no spread can be observed


def spread_of(statistic: Linearised, units: NDArray[np.int64]) -> Spread:
    """Estimate it from at least two units."""
    scored = statistic.scored
    influence, weight = statistic.influence[scored], statistic.weight[scored]
    weight = np.where(weight > 0, weight, 1 / len(weight))  # an insertion where the label is empty
    _, units = np.unique(units[scored], return_inverse=True)
    deviations = influence / weight  # of each sample from the value, in points
    shares = np.bincount(units, weight).astype(np.float64)
    means = np.bincount(units, influence) / shares
    variances = _unit_variances(deviations, weight, units, means, shares)
    count = len(shares)
    factors = (count - 1) / count * (shares / np.maximum(1 - shares, 1e-9)) ** 2
    expected, freedom = _moments(factors, shares, variances)
    variance = float(np.sum(factors * means**2)) * float(np.sum(shares**2 * variances)) / expected
    _, repeats = np.unique(np.round(deviations, 9), return_counts=True)
    extreme = float(np.max(np.abs(influence)))
    if 2 * repeats.max() >= len(deviations):
        extreme = math.sqrt(2) * max(extreme, UNIFORM_DEVIATION / len(deviations))
    else:
        extreme *= math.sqrt(2 * (repeats.max() - 1) / (len(deviations) - 1))
    return Spread(variance, extreme, freedom, count, identical=len(repeats) == 1)


def _unit_variances(deviations: Array, weight: Array, units: NDArray[np.int64], means: Array, shares: Array) -> Array:
    """Working variances of the unit means, up to a factor: between units plus within units (ANOVA estimates)."""
    count, size = len(shares), len(deviations)
    members = np.bincount(units).astype(float)
    if size == count:
        return np.ones(count)
    relative = size * weight
    within = float(np.sum(relative * (deviations - means[units]) ** 2)) / (size - count)
    between = float(np.sum(size * shares * means**2)) / (count - 1)
    usual = (size - size * float(np.sum(shares**2))) / (count - 1)
    effect = max(0.0, (between - within) / usual) if usual > 0 else 0.0
    return effect + within / members if effect + within > 0 else 1 / members


def _moments(factors: Array, shares: Array, variances: Array) -> tuple[float, float]:
    """Mean of the quadratic form sum(factors * (y - shares @ y)**2) and its Satterthwaite degrees of freedom.

    With M = A - w a' - a w' + s w w' (a: factors, w: shares, s: sum of a) and D the variances, these are tr(MD) and
    tr(MD)^2 / tr(MDMD).
    """
    total = float(factors.sum())
    p = float(np.sum(variances * shares**2))
    q = float(np.sum(variances * factors**2))
    r = float(np.sum(variances * factors * shares))
    mean = float(np.sum(factors * variances)) - 2 * r + total * p
    diagonal = factors**2 + 2 * factors * (total * shares**2 - 2 * factors * shares)
    square = float(np.sum(variances**2 * diagonal)) + 2 * p * q + total**2 * p**2 + 2 * r**2 - 4 * total * p * r
    return mean, min(MAX_FREEDOM, max(1.0, mean**2 / square))


def t_quantile(freedom: float, probability: float = 0.975) -> float:
    """Quantile of Student's t with any positive number of degrees of freedom.

    >>> round(t_quantile(1.0), 2), round(t_quantile(4.0), 3), round(t_quantile(1e9), 3)
    (12.71, 2.776, 1.96)
    """
    return float(scipy.special.stdtrit(min(freedom, MAX_FREEDOM), probability))


def sampling_draws(
    statistics: Sequence[Linearised], units: NDArray[np.int64], generator: np.random.Generator, draws: int = DRAWS
) -> Array:
    """(draws, statistics): values of several statistics of the same samples, jointly, as other samples would give them.

    A multiplier bootstrap over units (each unit's influence times a normal number), divided by the root of a chi-square
    so that each statistic has the t distribution of `confidence_interval`.
    """
    count = int(units.max()) + 1
    drawn = np.empty((draws, len(statistics)))
    multipliers = generator.standard_normal((draws, count))
    scale = np.ones(draws)
    for column, statistic in enumerate(statistics):
        spread = spread_of(statistic, units)
        if not column:
            scale = np.sqrt(generator.chisquare(spread.freedom, draws) / spread.freedom)
        influence = np.bincount(units, statistic.influence, count)
        length = math.sqrt(float(np.sum(influence**2)))
        noise = multipliers @ influence * (math.sqrt(spread.variance) / length if length else 0.0)
        noise += spread.extreme * generator.standard_normal(draws)
        drawn[:, column] = statistic.value + noise / scale
    return drawn


def interval_of(value: float, draws: Array, units: int) -> Interval:
    """A value with the middle 95 % of its draws."""
    low, high = np.percentile(draws, (2.5, 97.5))
    return Interval(value, float(low), float(high), units)
