"""What a metric is: for each sample and field `numerator / denominator`, so every score is a ratio of two sums.

A mean, a micro F1 and an error rate are all such ratios. One form for all of them makes breaking down by field, by
group and by bootstrap resample the same few lines for every metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from mllm_tailor.core.sample import Prediction

Better = Literal["higher", "lower"]


class Ratio(NamedTuple):
    """`numerator / denominator` of one comparison; 0/0 says that there is nothing to compare and takes no part."""

    numerator: float
    denominator: float


NOTHING = Ratio(0.0, 0.0)


def right(yes: bool) -> Ratio:
    """One comparison that is right or wrong."""
    return Ratio(float(yes), 1.0)


class Metric(Protocol):
    """How one sample, and one field of it, is scored. A score in percent is 100 * sum(above) / sum(below)."""

    @property
    def better(self) -> Better:
        """Which direction is an improvement."""
        ...

    def sample(self, labels: Mapping[str, Any], prediction: Prediction, kinds: Mapping[str, str]) -> Ratio:
        """One sample; `kinds` holds the type of each field where it is known."""
        ...

    def field(self, labels: Mapping[str, Any], prediction: Prediction, name: str, kind: str) -> Ratio:
        """One field of one sample."""
        ...


Compare = Callable[[Any, Any, str], Ratio]  # label, predicted value ("" where there is none), kind of field


@dataclass(frozen=True)
class ByField:
    """A metric that compares one value with one value.

    `pool="mean"`: a sample's score is the mean over its labelled keys, and every sample weighs the same.
    `pool="sum"`: counts are added over fields and samples (micro average).
    """

    compare: Compare
    pool: Literal["mean", "sum"] = "mean"
    better: Better = "higher"

    def sample(self, labels: Mapping[str, Any], prediction: Prediction, kinds: Mapping[str, str]) -> Ratio:
        """Pool the fields of one sample."""
        found = [self.field(labels, prediction, name, kinds.get(name, "string")) for name in labels]
        counted = [ratio for ratio in found if ratio.denominator]
        if self.pool == "sum":
            return add(counted)
        return (
            Ratio(sum(ratio.numerator / ratio.denominator for ratio in counted) / len(counted), 1.0)
            if counted
            else NOTHING
        )

    def field(self, labels: Mapping[str, Any], prediction: Prediction, name: str, kind: str) -> Ratio:
        """Compare one field; a label without this key asks for nothing."""
        return self.compare(labels[name], prediction.fields.get(name, ""), kind) if name in labels else NOTHING


@dataclass(frozen=True)
class Whole:
    """A metric of the whole answer: `compare(labels, prediction)`, and the same for an answer cut to one field."""

    compare: Callable[[Mapping[str, Any], Prediction], Ratio]
    compare_field: Callable[[Any, Any], Ratio] | None = None
    better: Better = "higher"

    def sample(self, labels: Mapping[str, Any], prediction: Prediction, kinds: Mapping[str, str]) -> Ratio:
        """Compare the whole answer."""
        return self.compare(labels, prediction)

    def field(self, labels: Mapping[str, Any], prediction: Prediction, name: str, kind: str) -> Ratio:
        """Compare one field where that has a meaning."""
        if self.compare_field is None or name not in labels:
            return NOTHING
        return self.compare_field(labels[name], prediction.fields.get(name, ""))


@dataclass(frozen=True)
class Corpus:
    """A metric that must see all labels before it compares any, to know which words are rare."""

    over: Callable[[Sequence[Mapping[str, Any]]], ByField]


def add(ratios: Iterable[Ratio]) -> Ratio:
    """Sum of numerators over sum of denominators."""
    numerator = denominator = 0.0
    for ratio in ratios:
        numerator, denominator = numerator + ratio.numerator, denominator + ratio.denominator
    return Ratio(numerator, denominator)
