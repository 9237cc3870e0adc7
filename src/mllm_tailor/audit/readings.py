"""Readings of a model that never learned the label, and that contradict it.

How far a reading is to be believed follows from the data: most labels are right, so the share of readings that agree
with their label, as a function of confidence, is about the share that is right (calibrated by pool adjacent
violators, Barlow et al. 1972; the idea is that of confident learning, Northcutt et al. 2021). Two ways of being wrong
are weighed, and the stronger counts:

- an edited label: the reading is right and differs. With a(c) the agreement at confidence c and p the prior share of
  wrong labels, p a / (p a + (1 - p) (1 - a)).
- the label of another page: reading and label are less alike than hardly any pair is. With T the share of pairs, and S
  the share of randomly exchanged pairs, that are at most as similar, p S / (p S + (1 - p) T).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded when they are first used
from numpy.typing import NDArray
from rapidfuzz import fuzz

from mllm_tailor.audit.columns import Column, Value
from mllm_tailor.audit.evidence import PRIOR, Evidence, quoted
from mllm_tailor.core.sample import Prediction
from mllm_tailor.scoring.text import as_text, is_empty, normalise, typed_text

ENOUGH = 20  # readings of a field from which their agreement can be told
THIRDS = 3  # parts of the confidences in which similarities are compared
SMALLEST = 0.01  # weight under which a finding is left out

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Reading:
    value: Value
    text: str
    agrees: bool
    confidence: float
    similarity: float  # percent


def find_contradicted(columns: Sequence[Column], system: str, predictions: Sequence[Prediction]) -> Iterator[Evidence]:
    """Evidence from one system's readings; `predictions` are of samples on which it was not trained."""
    by_id = {prediction.id: prediction for prediction in predictions if not prediction.problem}
    for column in columns:
        readings = [
            _reading(value, column.kind, column.name, by_id[value.page.id])
            for value in column.values
            if value.page.id in by_id
        ]
        if len(readings) < ENOUGH:
            continue
        edited, exchanged = _edited(readings), _exchanged(readings, column.kind)
        for reading, first, second in zip(readings, edited, exchanged, strict=True):
            weight = 0.0 if reading.agrees else float(max(first, second))
            if weight >= SMALLEST:
                reason = f"{system} read {quoted(reading.text)} (confidence {reading.confidence:.2f})"
                yield Evidence(reading.value.page.id, column.name, "reading", weight, reason, reading.text)


def _reading(value: Value, kind: str, name: str, prediction: Prediction) -> _Reading:
    reply = prediction.fields.get(name)
    text = as_text(reply)
    key = "" if is_empty(reply) else normalise(typed_text(reply, kind), kind)
    confidence = prediction.likelihood(name) or 0.0
    return _Reading(value, text, key == value.key, confidence, fuzz.ratio(key, value.key))


def _edited(readings: Sequence[_Reading]) -> Array:
    confidence = np.array([reading.confidence for reading in readings])
    agreement = rising_means(confidence, np.array([reading.agrees for reading in readings], float))
    return PRIOR * agreement / (PRIOR * agreement + (1 - PRIOR) * (1 - agreement))


def rising_means(order: Array, values: Array) -> Array:
    """The non-decreasing function of `order` nearest to `values` in squares; shrunk towards the mean by one count.

    >>> rising_means(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 0.0, 1.0])).round(2).tolist()
    [0.25, 0.5, 0.5, 0.75]
    """
    _, inverse, counts = np.unique(order, return_inverse=True, return_counts=True)
    fit = scipy.optimize.isotonic_regression(np.bincount(inverse, values) / counts, weights=counts)
    weights = np.repeat(fit.weights, np.diff(fit.blocks))  # of the block that each value of `order` belongs to
    # Shrunk, a mean of few may fall below that of many before it.
    shrunk = (fit.x * weights + values.mean()) / (weights + 1)
    return np.asarray(scipy.optimize.isotonic_regression(shrunk, weights=counts).x[inverse])


def _exchanged(readings: Sequence[_Reading], kind: str) -> Array:
    """For text only: digits of other dates and amounts are alike by chance."""
    if kind in ("choice", "boolean"):
        return np.zeros(len(readings))
    confidence = np.array([reading.confidence for reading in readings])
    third = np.searchsorted(np.quantile(confidence, [1 / THIRDS, 2 / THIRDS]), confidence, side="right")
    keys = [reading.value.key for reading in readings]
    shift = len(readings) // 2 or 1
    random = sorted(
        fuzz.ratio(normalise(reading.text, kind), keys[(index + shift) % len(keys)])
        for index, reading in enumerate(readings)
    )
    result = np.zeros(len(readings))
    for part in range(THIRDS):
        members = np.flatnonzero(third == part).tolist()
        paired = sorted(readings[index].similarity for index in members)
        for index in members:
            similarity = readings[index].similarity
            tail = bisect.bisect_right(paired, similarity) / len(paired)
            by_chance = bisect.bisect_right(random, similarity) / len(random)
            result[index] = PRIOR * by_chance / (PRIOR * by_chance + (1 - PRIOR) * tail)
    return result


def systems_readings(columns: Sequence[Column], systems: Mapping[str, Sequence[Prediction]]) -> Iterator[Evidence]:
    """Evidence from every system; of one value the strongest counts."""
    for system, predictions in systems.items():
        yield from find_contradicted(columns, system, predictions)
