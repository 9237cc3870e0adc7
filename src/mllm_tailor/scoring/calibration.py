"""Calibration: from the model's own probabilities of a value to the probability that the value is right.

Two steps, for each field. A logistic regression joins the raw scores (mean and least token probability, agreement of
beams and of framings) to one, rising in each of them. Isotonic regression (pool adjacent violators: Barlow et al. 1972;
for probabilities Zadrozny and Elkan 2002) turns it into shares, which are interpolated between the centres of their
blocks, as in centred isotonic regression (Oron and Flournoy 2017), so that they keep the order of the scores. With few
values the shares lean on the logistic regression, and a field with fewer than 30 values takes the calibration of all
fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are first used
from numpy.typing import NDArray
from pydantic import TypeAdapter

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.sample import RawScores
from mllm_tailor.scoring.judged import JudgedValue, value_name

Array = NDArray[np.float64]

FORMAT = 1
FEWEST = 30  # values: below it there is no calibration, and a field takes the one of all fields
LEAN = 100.0  # values that the logistic regression weighs against the isotonic one
RIDGE = 10.0  # of the logistic regression; strong enough that separable values have finite weights
MARGIN = {"mean": 1e-6, "least": 1e-6, "beams": 1e-3, "framings": 1e-2}  # probabilities are kept this far from 0 and 1
PARTS = 5  # of cross-fitting


@dataclass(frozen=True)
class Curve:
    """The calibration of one field: raw scores to a probability."""

    intercept: float
    weights: tuple[float, ...]  # of the log-odds of each raw score, none negative
    knots: tuple[float, ...]  # joint scores, ascending
    shares: tuple[float, ...]  # right at each knot, ascending
    values: int
    right: int

    def __call__(self, odds: Array) -> Array:
        """(values, scores) log-odds of raw scores to (values,) probabilities."""
        joint = self.intercept + odds @ np.array(self.weights)
        lean = LEAN / (LEAN + self.values)
        return np.asarray(lean * scipy.special.expit(joint) + (1 - lean) * np.interp(joint, self.knots, self.shares))


CURVE = TypeAdapter(Curve)


@dataclass(frozen=True)
class Calibration:
    """A curve for each field or column, and one over all of them."""

    scores: tuple[str, ...]  # raw scores that are read
    curves: Mapping[str, Curve]
    pooled: Curve

    def confidence(self, raw: RawScores) -> dict[str, float]:
        """The probability that each value is right; none for a value of which no labelled example was known.

        Raises:
            RunError: when a raw score is missing.
        """
        known = {path: scores for path, scores in raw.items() if value_name(path) in self.curves}
        return {path: float(self._curve(path)(self._odds([scores]))[0]) for path, scores in known.items()}

    def of(self, values: Sequence[JudgedValue]) -> Array:
        """The same for judged values, (values,)."""
        result = np.empty(len(values))
        names = np.array([value.name for value in values])
        for name in set(names.tolist()):
            rows = np.flatnonzero(names == name)
            result[rows] = self._curve(name)(self._odds([values[row].scores for row in rows.tolist()]))
        return result

    def _curve(self, path: str) -> Curve:
        return self.curves.get(value_name(path), self.pooled)

    def _odds(self, scores: Sequence[Mapping[str, float]]) -> Array:
        return log_odds(scores, self.scores)

    def row(self) -> dict[str, Any]:
        """Plain values for calibration.json."""
        return {
            "scores": list(self.scores),
            "pooled": vars(self.pooled),
            "fields": {name: vars(curve) for name, curve in self.curves.items()},
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Calibration:
        """The inverse of `row`.

        Raises:
            KeyError, TypeError, ValueError: for a row of another shape.
        """
        curves = {name: _read_curve(curve) for name, curve in row["fields"].items()}
        read = cls(tuple(row["scores"]), curves, _read_curve(row["pooled"]))
        if not set(read.scores) <= MARGIN.keys():
            raise ValueError("unknown raw scores")
        for curve in (*curves.values(), read.pooled):
            if len(curve.weights) != len(read.scores) or not 0 < len(curve.knots) == len(curve.shares):
                raise ValueError("a curve of other lengths")
        return read


def _read_curve(row: Mapping[str, Any]) -> Curve:
    lists = {name: tuple(row[name]) for name in ("weights", "knots", "shares")}
    return CURVE.validate_python({**row, **lists})


def log_odds(scores: Sequence[Mapping[str, float]], names: Sequence[str]) -> Array:
    """(values, names) log-odds of raw scores.

    Raises:
        RunError: when a value lacks one.
    """
    try:
        table = np.array([[value[name] for name in names] for value in scores], float).reshape(len(scores), len(names))
    except KeyError as error:
        raise RunError(
            f"the confidence was calibrated with the score {error}, which these replies do not bring — predict with "
            "the engine and the numbers of beams and framings of the run"
        ) from None
    margins = np.array([MARGIN[name] for name in names])
    return np.asarray(scipy.special.logit(np.clip(table, margins, 1 - margins)), float)


def fit(values: Sequence[JudgedValue]) -> Calibration:
    """Fit a curve for each field.

    Raises:
        ValueError: for fewer than 30 values.
    """
    if len(values) < FEWEST:
        raise ValueError(f"{len(values)} values are too few for a calibration")
    names = tuple(name for name in MARGIN if all(name in value.scores for value in values))
    odds = log_odds([value.scores for value in values], names)
    right = np.array([value.right for value in values], float)
    fields = np.array([value.name for value in values])
    pooled_weights = _logistic(odds, right, None)
    pooled = _curve(odds, right, pooled_weights)
    curves = {}
    for name in dict.fromkeys(fields.tolist()):
        rows = fields == name
        if rows.sum() < FEWEST:
            curves[name] = pooled
        else:
            curves[name] = _curve(odds[rows], right[rows], _logistic(odds[rows], right[rows], pooled_weights))
    return Calibration(names, curves, pooled)


def _logistic(odds: Array, right: Array, centre: Array | None) -> Array:
    """(1 + scores,) intercept and weights, none of which is negative; drawn towards `centre`, or towards equal weights.

    The penalty is on the weights alone, so that the mean probability equals the share of right values.
    """
    scale = odds.shape[1]
    start = np.concatenate([[0.0], np.full(scale, 1.0 / max(1, scale))]) if centre is None else centre

    def loss(parameters: Array) -> tuple[float, Array]:
        joint = parameters[0] + odds @ parameters[1:]
        off = parameters[1:] - start[1:]
        likelihood = np.sum(right * scipy.special.log_expit(joint) + (1 - right) * scipy.special.log_expit(-joint))
        value = -likelihood + RIDGE * np.sum(off**2)
        slope = scipy.special.expit(joint) - right
        return float(value), np.concatenate([[slope.sum()], odds.T @ slope + 2 * RIDGE * off])

    bounds = [(-30.0, 30.0), *[(0.0, None)] * scale]
    return np.asarray(scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x)


def _curve(odds: Array, right: Array, parameters: Array) -> Curve:
    joint = parameters[0] + odds @ parameters[1:]
    knots, inverse, counts = np.unique(joint, return_inverse=True, return_counts=True)
    shares = np.bincount(inverse, right) / counts
    result = scipy.optimize.isotonic_regression(shares, weights=counts)
    spans = list(pairwise(result.blocks.tolist()))
    centres = [float(np.average(knots[low:high], weights=counts[low:high])) for low, high in spans]
    heights = [float(result.x[low]) for low, _ in spans]
    weights = tuple(map(float, parameters[1:]))
    return Curve(float(parameters[0]), weights, tuple(centres), tuple(heights), len(right), int(right.sum()))


def cross_fitted(values: Sequence[JudgedValue], parts: int = PARTS) -> Array:
    """The confidence of each value by a calibration that was fitted on other units, (values,).

    Units are dealt to `parts` in order of size, so that all parts are about as large; the result does not depend on
    the order of the values.

    Raises:
        ValueError: for too few values or units.
    """
    part = deal(values, parts)
    result = np.empty(len(values))
    for number in range(parts):
        inside = np.flatnonzero(part == number).tolist()
        calibration = fit([values[index] for index in np.flatnonzero(part != number).tolist()])
        result[inside] = calibration.of([values[index] for index in inside])
    return result


def deal(values: Sequence[JudgedValue], parts: int) -> NDArray[np.int64]:
    """The part (0, 1, …) of each value; a unit lies in one part."""
    units, inverse, counts = np.unique([value.unit for value in values], return_inverse=True, return_counts=True)
    if len(units) < parts:
        raise ValueError(f"{len(units)} independent units are too few for {parts} parts")
    part = np.empty(len(units), np.int64)
    sizes = [0] * parts
    for unit in np.argsort(-counts, kind="stable"):
        part[unit] = min(range(parts), key=sizes.__getitem__)
        sizes[part[unit]] += counts[unit]
    return np.asarray(part[inverse])
