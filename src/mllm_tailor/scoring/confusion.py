"""Confusion matrix of a classification, and macro F1 with its paired interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mllm_tailor.core.sample import Prediction
from mllm_tailor.scoring.intervals import Interval, Linearised, confidence_interval, unit_indices

NO_CLASS = "no class"  # the column of replies that name no class


@dataclass(frozen=True)
class Confusion:
    """One system's replies: `true` and `predicted` are indices into `classes`; `len(classes)` stands for no class."""

    classes: tuple[str, ...]
    true: NDArray[np.int64]  # (samples,)
    predicted: NDArray[np.int64]  # (samples,)

    @classmethod
    def of(
        cls, labels: Sequence[Mapping[str, Any]], predictions: Sequence[Prediction], classes: Sequence[str]
    ) -> Confusion:
        """From labels of one field and predictions in the same order."""
        (field,) = {name for label in labels for name in label}
        index = {name: position for position, name in enumerate(classes)}
        true = [index[label[field]] for label in labels]
        predicted = [index.get(str(prediction.fields.get(field)), len(classes)) for prediction in predictions]
        return cls(tuple(classes), np.array(true, np.int64), np.array(predicted, np.int64))

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(classes, classes + 1): row = true class, column = predicted class, last column = no class."""
        counts = np.zeros((len(self.classes), len(self.classes) + 1), np.int64)
        np.add.at(counts, (self.true, self.predicted), 1)
        return counts

    @cached_property
    def columns(self) -> NDArray[np.float64]:
        """(samples, 2 classes): for each class 1 for a hit, then how often it is true or predicted (0 to 2)."""
        every = np.arange(len(self.classes))
        is_true, is_predicted = self.true[:, None] == every, self.predicted[:, None] == every
        return np.concatenate([is_true & is_predicted, is_true.astype(int) + is_predicted], axis=1).astype(np.float64)

    @property
    def by_class(self) -> list[float]:
        """F1 of each class in percent: 2·hits / (true + predicted); 0 where it neither occurs nor is predicted."""
        hits, both = np.split(self.columns.sum(axis=0), 2)
        return [float(value) for value in 200 * np.divide(hits, both, out=np.zeros_like(hits), where=both > 0)]


def macro_f1(
    base: Confusion, tuned: Confusion, groups: Sequence[str | None] | None = None, *, folds: int = 1
) -> tuple[Interval, Interval, Interval]:
    """Macro F1 of both systems and their difference in percent: the mean of F1 over the classes that occur.

    Rare classes weigh as much as frequent ones. Classes that no label names are left out of the mean. Intervals are
    those of `intervals`, with F1 linearised about its value; `folds` is the number of models that scored the samples in
    cross-validation.
    """
    classes = np.unique(base.true)
    units = unit_indices(len(base.true), groups)
    before, after = (_linearise(confusion, classes) for confusion in (base, tuned))
    first, second, difference = (
        confidence_interval(each, units, folds) for each in (before, after, after.minus(before))
    )
    return first, second, difference


def _linearise(confusion: Confusion, classes: NDArray[np.int64]) -> Linearised:
    """F1 = 2 h / b of each class; a sample changes h and b, so its influence is (2 dh - F1 db) / b."""
    hits, both = np.split(confusion.columns, 2, axis=1)
    hits, both, total = hits[:, classes], both[:, classes], both.sum(axis=0)[classes]
    f1 = 2 * hits.sum(axis=0) / total
    influence = 100 * ((2 * hits - f1 * both) / total).mean(axis=1)
    return Linearised(float(100 * f1.mean()), influence, (both / total).mean(axis=1))
