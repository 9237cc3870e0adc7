"""Which values need no eye: a threshold on the confidence that keeps a promise, such as 95 % right.

For one threshold the promise is tested, with a certainty of 95 %, by the exact bound of Clopper and
Pearson (1934): how probable so few errors are if more than promised were wrong. Three things are taken into account:

- **The threshold is chosen.** Thresholds are tested from strict to lax and testing stops at the first that fails
  (fixed-sequence testing, as in Learn then Test, Angelopoulos et al. 2021). Strict thresholds accept few values, of
  which one error is too much, so there are up to three starts, which share the allowed error (Bonferroni).
- **Values of one document or company are not independent.** Counts are divided by the design effect of their clusters
  before the bound is taken (Korn and Graubard 1998, Survey Methodology 24): the larger one of what the errors among the
  accepted values show and what the correlation of all errors within clusters implies.
- **Nothing is judged by what it was fitted on.** The confidences are cross-fitted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are first used
from numpy.typing import NDArray

Array = NDArray[np.float64]
Units = NDArray[np.int64]

CERTAINTY = 0.95
STARTS = 3
STEP = 1.1  # ratio of accepted values between neighbouring thresholds
FEWEST_UNITS = 10  # clusters among the accepted values, below which their correlation cannot be known


@dataclass(frozen=True)
class Promise:
    """What is promised of accepted values, and the threshold that keeps it."""

    right: float  # the share of accepted values that are right, at least
    certainty: float
    threshold: float | None  # on the confidence; None: no threshold keeps the promise
    values: int = 0  # that it was chosen on
    accepted: int = 0  # of these
    wrong: int = 0  # of the accepted
    units: int = 0  # independent units among the accepted
    design_effect: float = 1.0
    reason: str = ""  # why there is no threshold

    def accepts(self, confidence: float) -> bool:
        """Whether a value with this confidence needs no eye."""
        return self.threshold is not None and confidence >= self.threshold

    def row(self) -> dict[str, Any]:
        """Plain values for calibration.json."""
        return asdict(self)


def fewest_values(promised: float, certainty: float = CERTAINTY) -> int:
    """How many values can show a promise, if none of them is wrong.

    >>> fewest_values(0.9), fewest_values(0.95), fewest_values(0.99)
    (29, 59, 299)
    """
    return math.ceil(math.log(1.0 - certainty) / math.log(promised))


def choose_threshold(
    confidence: Array, right: NDArray[np.bool_], units: Units, promised: float, certainty: float = CERTAINTY
) -> Promise:
    """The laxest threshold of which the promise can be shown.

    `confidence`, `right` and `units` are (values,); the confidences must not come from a calibration that was fitted on
    the same values.
    """
    allowed = 1.0 - promised
    order = np.argsort(-confidence, kind="stable")
    confidence, right, units = confidence[order], right[order], units[order]
    correlation = within_correlation(confidence - right, units)
    starts = _starts(len(confidence), allowed, 1.0 - certainty)
    best: Promise | None = None
    nearest: tuple[float, str] = (math.inf, "")  # probability, and what was counted, where a test came closest
    for start in starts:
        for count in _counts(start, confidence):
            wrong = int(np.sum(~right[:count]))
            effect = design_effect(~right[:count], units[:count], correlation)
            clusters = len(np.unique(units[:count]))
            chance = tail_probability(wrong, count, effect, allowed)
            nearest = min(nearest, (chance, _counted(wrong, count, effect)))
            failed = chance > (1.0 - certainty) / len(starts)
            if failed or clusters < FEWEST_UNITS:
                break
            if best is None or count > best.accepted:
                best = Promise(
                    promised, certainty, float(confidence[count - 1]), len(right), count, wrong, clusters, effect
                )
    return best or Promise(
        promised, certainty, None, len(right), reason=_reason(units, starts, promised, certainty, nearest[1])
    )


def _starts(values: int, allowed: float, error: float) -> list[int]:
    """Numbers of accepted values at which testing starts: the fewest that can pass without an error, and multiples.

    How many there are follows from the number of values alone, so that it does not depend on what is right.
    """
    for number in range(STARTS, 0, -1):
        fewest = math.ceil(math.log(error / number) / math.log(1.0 - allowed))
        if fewest * 3 ** (number - 1) <= values:
            return [fewest * 3**power for power in range(number)]
    return []


def _counts(start: int, confidence: Array) -> Iterator[int]:
    """Numbers of accepted values, ascending; values of equal confidence are accepted together."""
    count, last = start, 0
    while count <= len(confidence):
        whole = int(np.searchsorted(-confidence, -confidence[count - 1], side="right"))
        if whole > last:
            yield whole
        last = whole
        if whole == len(confidence):
            return
        count = min(len(confidence), max(whole + 1, math.ceil(count * STEP)))


def _counted(wrong: int, count: int, effect: float) -> str:
    alike = f", and values of a group are so alike that they count as {count / effect:.0f}" if effect >= 1.1 else ""
    return f"{wrong} of the {count} values of highest confidence {'is' if wrong == 1 else 'are'} wrong{alike}"


def _reason(units: Units, starts: Sequence[int], promised: float, certainty: float, counted: str) -> str:
    if not starts:
        fewest = fewest_values(promised, certainty)
        return f"{len(units)} values are too few: even without an error it takes {fewest}"
    if len(np.unique(units)) < FEWEST_UNITS:
        return f"the values come from {len(np.unique(units))} independent units, and it takes {FEWEST_UNITS}"
    return f"{counted}, which does not show it"


def tail_probability(wrong: int, count: int, effect: float, share: float) -> float:
    """The probability of at most `wrong` errors in `count` values if `share` of all were wrong.

    Both are divided by the design effect; the binomial sum is continued to real numbers by the beta integral.

    >>> round(tail_probability(0, 59, 1.0, 0.05), 4), round(tail_probability(1, 59, 1.0, 0.05), 3)
    (0.0485, 0.199)
    """
    size, errors = count / effect, wrong / effect
    return 1.0 if errors >= size else float(scipy.special.betainc(size - errors, errors + 1.0, 1.0 - share))


def error_interval(wrong: int, count: int, effect: float = 1.0, certainty: float = 0.95) -> tuple[float, float]:
    """The two-sided Clopper-Pearson interval of a share of errors, counts divided by the design effect.

    >>> [round(end, 4) for end in error_interval(1, 100)]
    [0.0003, 0.0545]
    """
    if not count:
        return 0.0, 1.0
    size, errors, outside = count / effect, wrong / effect, (1.0 - certainty) / 2
    low = float(scipy.special.betaincinv(errors, size - errors + 1.0, outside)) if wrong else 0.0
    high = float(scipy.special.betaincinv(errors + 1.0, size - errors, 1.0 - outside)) if wrong < count else 1.0
    return low, high


def design_effect(wrong: NDArray[np.bool_], units: Units, correlation: float) -> float:
    """By how much clusters enlarge the variance of the share of errors; at least 1.

    The larger one of the effect that `correlation` implies for clusters of these sizes (Kish 1965) and the ratio of the
    linearised variance between clusters to the binomial variance, where there are errors.
    """
    _, index = np.unique(units, return_inverse=True)
    sizes = np.bincount(index).astype(float)
    count, clusters = sizes.sum(), len(sizes)
    implied = 1.0 + correlation * (np.sum(sizes**2) / count - 1.0)
    share = float(np.mean(wrong))
    if not 0 < share < 1 or clusters < 2:
        return max(1.0, float(implied))
    deviations = np.bincount(index, wrong.astype(float)) - share * sizes
    between = clusters / (clusters - 1) * np.sum(deviations**2) / count**2
    return max(1.0, float(implied), float(between * count / (share * (1 - share))))


def within_correlation(residuals: Array, units: Units) -> float:
    """The correlation of two values of one cluster, 0..1: the analysis-of-variance estimate."""
    _, index = np.unique(units, return_inverse=True)
    sizes = np.bincount(index).astype(float)
    count, clusters = sizes.sum(), len(sizes)
    if clusters < 2 or clusters == count:
        return 0.0
    means = np.bincount(index, residuals) / sizes
    between = np.sum(sizes * (means - residuals.mean()) ** 2) / (clusters - 1)
    within = np.sum((residuals - means[index]) ** 2) / (count - clusters)
    usual = (count - np.sum(sizes**2) / count) / (clusters - 1)
    total = between + (usual - 1) * within
    return float(np.clip((between - within) / total, 0.0, 1.0)) if total > 0 else 0.0
