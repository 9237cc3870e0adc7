"""Is the tuned model better, or were these held-out samples kind to it? Paired comparison with bootstrap intervals.

Paired bootstrap (Efron and Tibshirani 1993, chapter 13; Koehn 2004 for its use on test sets): held-out samples are
drawn with replacement 10,000 times; both models are scored on each draw. The middle 95 % of the differences is the
interval. Samples of one group (a company, a speaker) are drawn together, since they are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_tailor.core.errors import RunError
from mllm_tailor.scoring.scores import MetricScore, Ratios, Scores

RESAMPLES = 10_000
INTERVAL = (2.5, 97.5)  # percentiles
CHUNK_NUMBERS = 2_000_000  # random numbers held at a time, to bound memory


@dataclass(frozen=True)
class Interval:
    """A value in percent (or percentage points) and the range that 95 % of the resamples fall into."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Gain:
    """One metric of two models on the same samples. `difference` is tuned minus base."""

    base: Interval
    tuned: Interval
    difference: Interval
    share_better: float  # of the resamples: those in which the tuned model is the better one
    fixed: int  # samples that were not perfect and are now
    new_errors: int  # samples that were perfect and are not now
    count: int  # samples compared
    better: str = "higher"  # the direction of improvement
    by_field: Mapping[str, Gain] = field(default_factory=dict)

    @property
    def improved(self) -> bool:
        """Whether the interval lies wholly on the better side."""
        return self.difference.low > 0 if self.better == "higher" else self.difference.high < 0

    def row(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Gain:
        """The inverse of `row`."""
        intervals = {name: Interval(**row[name]) for name in ("base", "tuned", "difference")}
        fields = {name: cls.from_row(inner) for name, inner in row["by_field"].items()}
        return cls(**{**row, **intervals, "by_field": fields})


def compare(
    base: Scores,
    tuned: Scores,
    *,
    groups: Sequence[str | None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Gain]:
    """The gain in every metric both hold, over all fields and for each; the same draws serve all of them.

    `groups` names the group of each sample; a sample without one is a group of its own.

    Raises:
        RunError: when the scores are not of the same samples in the same order.
    """
    if base.ids != tuned.ids or not base.ids:
        raise RunError("the two scores are not of the same samples — compare models on the same held-out part")
    pairs = _pairs(base, tuned)
    columns = np.array(
        [
            side
            for *_, one, other in pairs
            for side in (one.numerator, one.denominator, other.numerator, other.denominator)
        ]
    ).T
    sums = resampled_sums(columns, groups, resamples, seed)
    gains = [
        _gain(one, other, base[metric].better, sums[:, 4 * place : 4 * place + 4])
        for place, (metric, _, one, other) in enumerate(pairs)
    ]
    return _nest(pairs, gains)


def gain(
    base: Scores,
    tuned: Scores,
    metric: str,
    *,
    groups: Sequence[str | None] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Gain:
    """`compare` for one metric."""
    one, other = (Scores(scores.ids, {metric: scores[metric]}) for scores in (base, tuned))
    return compare(one, other, groups=groups, resamples=resamples, seed=seed)[metric]


Pair = tuple[str, str | None, Ratios, Ratios]  # metric, field (None: all), base, tuned


def _pairs(base: Scores, tuned: Scores) -> list[Pair]:
    """Every comparison to be made."""
    pairs: list[Pair] = []
    for metric in (name for name in base.metrics if name in tuned.metrics):
        one, other = base[metric], tuned[metric]
        pairs.append((metric, None, one.samples, other.samples))
        pairs += [(metric, name, one.fields[name], other.fields[name]) for name in _shared(one, other)]
    return pairs


def _shared(one: MetricScore, other: MetricScore) -> list[str]:
    return [name for name in one.fields if name in other.fields]


def _nest(pairs: Sequence[Pair], gains: Sequence[Gain]) -> dict[str, Gain]:
    """Put the gains of fields under those of their metrics."""
    nested: dict[str, Gain] = {}
    fields: dict[str, dict[str, Gain]] = {}
    for (metric, name, *_), gain in zip(pairs, gains, strict=True):
        if name is None:
            nested[metric] = replace(gain, by_field=fields.setdefault(metric, {}))
        else:
            fields[metric][name] = gain
    return nested


def resampled_sums(
    columns: NDArray[np.float64], groups: Sequence[str | None] | None, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Sums of the columns (samples, k) over `resamples` draws of whole groups with replacement: (resamples, k)."""
    units = columns if groups is None else _by_group(columns, groups)
    random, count = np.random.default_rng(seed), len(units)
    chunk = max(1, min(resamples, CHUNK_NUMBERS // count))
    sums = np.empty((resamples, columns.shape[1]))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = random.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times_drawn = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        sums[start : start + size] = times_drawn.astype(np.float64) @ units
    return sums


def _by_group(columns: NDArray[np.float64], groups: Sequence[str | None]) -> NDArray[np.float64]:
    """Rows of one group added up; None is a group of its own."""
    places: dict[object, int] = {}
    owner = [places.setdefault(group if group else (row,), len(places)) for row, group in enumerate(groups)]
    units = np.zeros((len(places), columns.shape[1]))
    np.add.at(units, owner, columns)
    return units


def _gain(base: Ratios, tuned: Ratios, better: str, sums: NDArray[np.float64]) -> Gain:
    """`sums` is (resamples, 4): base above and below, tuned above and below."""
    before, after = (percent(sums[:, side], sums[:, side + 1]) for side in (0, 2))
    difference = after - before
    wins = difference > 0 if better == "higher" else difference < 0
    fixed, new_errors = _changes(base, tuned, better)
    known = ~np.isnan(difference)
    return Gain(
        base=interval_of(base.value, before),
        tuned=interval_of(tuned.value, after),
        difference=interval_of(tuned.value - base.value, difference),
        share_better=float(wins[known].mean()) if known.any() else 0.0,
        fixed=fixed,
        new_errors=new_errors,
        count=base.count,
        better=better,
    )


def percent(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN for draws that hold nothing to compare."""
    found = np.full(len(numerator), np.nan)
    np.divide(100.0 * numerator, denominator, out=found, where=denominator > 0)
    return found


def interval_of(value: float, draws: NDArray[np.float64]) -> Interval:
    """A value with the middle 95 % of its draws; NaN draws, which held nothing to compare, are left out."""
    known = draws[~np.isnan(draws)]
    if not len(known):
        return Interval(value, value, value)
    low, high = np.percentile(known, INTERVAL)
    return Interval(value, float(low), float(high))


def _changes(base: Ratios, tuned: Ratios, better: str) -> tuple[int, int]:
    """Samples perfect only now, and samples perfect only before (the two counts of McNemar's test)."""
    pairs = [
        (_perfect(one, better), _perfect(other, better))
        for one, other in zip(base.per_sample, tuned.per_sample, strict=True)
        if one is not None and other is not None
    ]
    return sum(not before and now for before, now in pairs), sum(before and not now for before, now in pairs)


def _perfect(percent: float, better: str) -> bool:
    return percent > 100.0 - 1e-9 if better == "higher" else percent < 1e-9
