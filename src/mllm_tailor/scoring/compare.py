"""Paired comparison of two models on the same held-out samples.

Both models are scored on each sample and the difference gets one interval, in which what is common to both (an easy or
a hard sample) cancels. Samples of one group (a company, a speaker) are not independent and count as one unit; see
`intervals` for the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_tailor.core.errors import RunError
from mllm_tailor.scoring.intervals import Interval, confidence_interval, linearise, unit_indices
from mllm_tailor.scoring.scores import MetricScore, Ratios, Scores


@dataclass(frozen=True)
class Gain:
    """One metric of two models on the same samples. `difference` is tuned minus base."""

    base: Interval
    tuned: Interval
    difference: Interval
    fixed: int  # samples that are perfect only with the tuned model
    new_errors: int  # samples that are perfect only with the base model
    count: int  # samples compared
    better: str = "higher"  # the direction of improvement
    by_field: Mapping[str, Gain] = field(default_factory=dict)
    right: tuple[int, int] | None = None  # samples right with base and tuned, where each is right or wrong

    @property
    def improved(self) -> bool:
        """Whether the interval lies wholly on the better side."""
        difference = self.difference
        return difference.clear and (difference.low > 0 if self.better == "higher" else difference.high < 0)

    @property
    def worsened(self) -> bool:
        """Whether the interval lies wholly on the worse side."""
        return self.difference.clear and not self.improved

    def row(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Gain:
        """The inverse of `row`."""
        intervals = {name: Interval(**row[name]) for name in ("base", "tuned", "difference")}
        fields = {name: cls.from_row(inner) for name, inner in row["by_field"].items()}
        right = tuple(row["right"]) if row.get("right") else None
        return cls(**{**row, **intervals, "by_field": fields, "right": right})


def compare(
    base: Scores, tuned: Scores, *, groups: Sequence[str | None] | None = None, folds: int = 1
) -> dict[str, Gain]:
    """The gain in every metric that both have, over all fields and for each field.

    `groups` names the group of each sample; a sample without one is a unit by itself. `folds` is the number of models
    that scored the samples in cross-validation (see `pool`).

    Raises:
        RunError: when the scores are not of the same samples in the same order.
    """
    if base.ids != tuned.ids or not base.ids:
        raise RunError("the two scores are not of the same samples — compare models on the same held-out samples")
    units = unit_indices(len(base.ids), groups)
    return {name: _compare(base[name], tuned[name], units, folds) for name in base.metrics if name in tuned.metrics}


def gain(
    base: Scores, tuned: Scores, metric: str, *, groups: Sequence[str | None] | None = None, folds: int = 1
) -> Gain:
    """`compare` for one metric."""
    first, second = (Scores(scores.ids, {metric: scores[metric]}) for scores in (base, tuned))
    return compare(first, second, groups=groups, folds=folds)[metric]


def _compare(base: MetricScore, tuned: MetricScore, units: NDArray[np.int64], folds: int) -> Gain:
    fields = {
        name: _gain(base.fields[name], tuned.fields[name], base.better, units, folds)
        for name in base.fields
        if name in tuned.fields
    }
    return replace(_gain(base.samples, tuned.samples, base.better, units, folds), by_field=fields)


def _gain(base: Ratios, tuned: Ratios, better: str, units: NDArray[np.int64], folds: int) -> Gain:
    before, after = linearise(base), linearise(tuned)
    fixed, new_errors = _changes(base, tuned, better)
    return Gain(
        base=confidence_interval(before, units, folds),
        tuned=confidence_interval(after, units, folds),
        difference=confidence_interval(after.minus(before), units, folds),
        fixed=fixed,
        new_errors=new_errors,
        count=base.count,
        better=better,
        right=None if base.right is None or tuned.right is None else (base.right, tuned.right),
    )


def _changes(base: Ratios, tuned: Ratios, better: str) -> tuple[int, int]:
    """Samples perfect only with the tuned model, and only with the base model (the counts of McNemar's test)."""
    pairs = [
        (_perfect(before, better), _perfect(after, better))
        for before, after in zip(base.per_sample, tuned.per_sample, strict=True)
        if before is not None and after is not None
    ]
    fixed = sum(not before and after for before, after in pairs)
    return fixed, sum(before and not after for before, after in pairs)


def _perfect(percent: float, better: str) -> bool:
    return percent > 100.0 - 1e-9 if better == "higher" else percent < 1e-9


@dataclass(frozen=True)
class FormAndReading:
    """The gain with unconstrained decoding split in two: `reading` is the gain with constrained decoding, where no
    reply can fail on form; `form` is the rest. In percentage points, positive is better.
    """

    total: Interval
    reading: Interval
    form: Interval


def form_and_reading(
    unconstrained: tuple[Scores, Scores],
    constrained: tuple[Scores, Scores],
    metric: str,
    *,
    groups: Sequence[str | None] | None = None,
    folds: int = 1,
) -> FormAndReading:
    """Split a gain into form and reading; each pair is the base and the tuned model's scores of the same samples."""
    free, limited = (
        linearise(tuned[metric].samples).minus(linearise(base[metric].samples))
        for base, tuned in (unconstrained, constrained)
    )
    if unconstrained[0][metric].better == "lower":
        free, limited = free.negative(), limited.negative()
    units = unit_indices(len(unconstrained[0].ids), groups)
    total, reading, form = (confidence_interval(each, units, folds) for each in (free, limited, free.minus(limited)))
    return FormAndReading(total, reading, form)
