"""How good confidences are: reliability diagram, calibration error, ranking, risk against coverage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_tailor.scoring.accept import Promise, design_effect, error_interval, within_correlation

Array = NDArray[np.float64]

BINS = 10
DRAWS = 500  # of outcomes of perfectly calibrated confidences
POINTS = 60  # of a risk-coverage curve


@dataclass(frozen=True)
class Bin:
    """The values whose confidence lies in one tenth of the scale."""

    low: float
    high: float
    count: int
    right: int
    confidence: float  # mean
    interval: tuple[float, float]  # of the share of right values, 95 %


@dataclass(frozen=True)
class AcceptedCount:
    """What became of the accepted values."""

    count: int
    wrong: int
    interval: tuple[float, float]  # of the share of wrong ones, 95 %; by the clusters of the values


@dataclass(frozen=True)
class Reliability:
    """Confidences against what was right. Shares are from 0 to 1."""

    count: int
    right: int
    units: int  # independent units
    ece: float  # expected calibration error
    ece_of_chance: float  # what perfectly calibrated confidences would show with as many values, on average
    auroc: float | None  # None where all values are right, or none is
    bins: tuple[Bin, ...]  # those with values
    risk: tuple[tuple[float, float], ...]  # (coverage, share of wrong values), strictest first
    accepted: AcceptedCount | None = None

    def row(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        return asdict(self)


def measure(
    confidence: Array, right: NDArray[np.bool_], units: NDArray[np.int64], accepted: NDArray[np.bool_] | None = None
) -> Reliability:
    """All figures of some values; arrays are (values,), `accepted` where something is promised.

    Raises:
        ValueError: for no values.
    """
    if not len(confidence):
        raise ValueError("no values to measure")
    return Reliability(
        count=len(right),
        right=int(right.sum()),
        units=len(np.unique(units)),
        ece=calibration_error(confidence, right),
        ece_of_chance=_error_of_chance(confidence),
        auroc=ranking(confidence, right),
        bins=tuple(_bins(confidence, right)),
        risk=tuple(_risk(confidence, right)),
        accepted=None if accepted is None else count_accepted(confidence, right, units, accepted),
    )


def calibration_error(confidence: Array, right: NDArray[np.bool_]) -> float:
    """Expected calibration error over ten bins of equal width (Naeini et al. 2015; Guo et al. 2017, equation 3).

    >>> calibration_error(np.array([0.95, 0.95]), np.array([True, False]))
    0.45
    """
    index = _bin_of(confidence)
    gaps = np.bincount(index, confidence - right.astype(float), BINS)
    return round(float(np.abs(gaps).sum() / len(confidence)), 12)


def _error_of_chance(confidence: Array) -> float:
    """The error is an absolute value, so chance alone makes it positive."""
    random = np.random.default_rng(0)
    drawn = random.random((DRAWS, len(confidence))) < confidence
    return float(np.mean([calibration_error(confidence, right) for right in drawn]))


def ranking(confidence: Array, right: NDArray[np.bool_]) -> float | None:
    """AUROC: how often a right value has the higher one of two confidences; ties count half."""
    if right.all() or not right.any():
        return None
    wrong = np.sort(confidence[~right])
    lower, not_higher = (np.searchsorted(wrong, confidence[right], side) for side in ("left", "right"))
    return float(np.mean(lower + not_higher) / (2 * len(wrong)))


def _bin_of(confidence: Array) -> NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _bins(confidence: Array, right: NDArray[np.bool_]) -> list[Bin]:
    index = _bin_of(confidence)
    bins = []
    for number in np.unique(index).tolist():
        inside = index == number
        count, good = int(inside.sum()), int(right[inside].sum())
        low, high = error_interval(count - good, count)
        mean = float(confidence[inside].mean())
        bins.append(Bin(number / BINS, (number + 1) / BINS, count, good, mean, (1 - high, 1 - low)))
    return bins


def _risk(confidence: Array, right: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """The share of wrong values among the most confident ones, where values of equal confidence are kept together."""
    order = np.argsort(-confidence, kind="stable")
    sure, wrong = confidence[order], np.cumsum(~right[order])
    ends = np.flatnonzero(np.append(sure[1:] != sure[:-1], True)) + 1
    chosen = ends[np.unique(np.linspace(0, len(ends) - 1, min(POINTS, len(ends))).round().astype(int))]
    return [(float(end / len(sure)), float(wrong[end - 1] / end)) for end in chosen]


def count_accepted(
    confidence: Array, right: NDArray[np.bool_], units: NDArray[np.int64], accepted: NDArray[np.bool_]
) -> AcceptedCount:
    """The accepted values and the errors among them."""
    count, wrong = int(accepted.sum()), int(np.sum(~right[accepted]))
    if not count:
        return AcceptedCount(0, 0, (0.0, 1.0))
    correlation = within_correlation(confidence - right, units)
    effect = design_effect(~right[accepted], units[accepted], correlation)
    return AcceptedCount(count, wrong, error_interval(wrong, count, effect))


def accepted_by(promise: Promise, confidence: Sequence[float] | Array) -> NDArray[np.bool_]:
    """Whether each value needs no eye."""
    return np.array([promise.accepts(float(value)) for value in confidence], bool)
