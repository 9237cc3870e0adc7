"""The metric protocol: a `numerator / denominator` for each sample and field; a score is the ratio of their sums.

Means, micro F1 and error rates all have this form, so breaking down by field or group and resampling are the same code
for every metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from mllm_tailor.core.regions import IMAGE
from mllm_tailor.core.sample import Prediction
from mllm_tailor.scoring.text import is_reference_list

Better = Literal["higher", "lower"]


class Ratio(NamedTuple):
    """`numerator / denominator` of one comparison; 0/0 where there is nothing to compare."""

    numerator: float
    denominator: float


NOTHING = Ratio(0.0, 0.0)


def right(yes: bool) -> Ratio:  # noqa: FBT001 - the truth value is all there is
    """One comparison that is right or wrong."""
    return Ratio(float(yes), 1.0)


class Metric(Protocol):
    """How a sample, and a field of it, is scored. A score in percent is 100 * sum(numerator) / sum(denominator)."""

    @property
    def better(self) -> Better:
        """Which direction is an improvement."""
        ...

    def sample(self, labels: Mapping[str, Any], prediction: Prediction, kinds: Mapping[str, str]) -> Ratio:
        """One sample; `kinds` holds the type of each field where it is known."""
        ...

    def field(self, labels: Mapping[str, Any], prediction: Prediction, name: str, kinds: Mapping[str, str]) -> Ratio:
        """One field of one sample, or one column of a list field (`items.price`)."""
        ...


Compare = Callable[[Any, Any, str], Ratio]  # label, predicted value ("" where there is none), kind of field


@dataclass(frozen=True)
class ByField:
    """A metric that compares single values.

    `pool="mean"`: a sample's score is the mean over its labelled fields; every sample weighs the same.
    `pool="sum"`: counts are added over fields and samples (micro average).
    A label that is a list of texts holds all right answers; the best comparison counts, unless `compare` takes lists.
    """

    compare: Compare
    pool: Literal["mean", "sum"] = "mean"
    better: Better = "higher"
    takes_references: bool = False

    def sample(self, labels: Mapping[str, Any], prediction: Prediction, kinds: Mapping[str, str]) -> Ratio:
        """Pool the fields of one sample."""
        ratios = [self.field(labels, prediction, name, kinds) for name in labels]
        if self.pool == "sum":
            return add(ratios)
        counted = [ratio for ratio in ratios if ratio.denominator]
        return (
            Ratio(sum(ratio.numerator / ratio.denominator for ratio in counted) / len(counted), 1.0)
            if counted
            else NOTHING
        )

    def field(self, labels: Mapping[str, Any], prediction: Prediction, name: str, kinds: Mapping[str, str]) -> Ratio:
        """Compare one field; a label without this key is not scored."""
        if name not in labels:
            return NOTHING
        label, predicted, kind = labels[name], prediction.fields.get(name, ""), kinds.get(name, "string")
        if is_reference_list(label) and is_reference_list(predicted):  # of a baseline that repeats a label
            predicted = predicted[0]
        if self.takes_references or not is_reference_list(label):
            return self.compare(label, predicted, kind)
        ratios = [self.compare(reference, predicted, kind) for reference in dict.fromkeys(label)]
        best = max if self.better == "higher" else min
        return best(ratios, key=lambda ratio: ratio.numerator / (ratio.denominator or 1.0))


@dataclass(frozen=True)
class OfImage(ByField):
    """A comparison of regions, which share nothing where label and reply are of different images of a sample."""

    def field(self, labels: Mapping[str, Any], prediction: Prediction, name: str, kinds: Mapping[str, str]) -> Ratio:
        """Compare one field, unless both state an image (`image`, from 0) and it is not the same."""
        ratio = super().field(labels, prediction, name, kinds)
        stated = {of[IMAGE] for of in (labels, prediction.fields) if of.get(IMAGE) is not None}
        return Ratio(0.0, ratio.denominator) if len(stated) > 1 else ratio


@dataclass(frozen=True)
class Whole:
    """A metric of the whole answer, `compare(labels, prediction)`, and optionally of a single field."""

    compare: Callable[[Mapping[str, Any], Prediction], Ratio]
    compare_field: Callable[[Any, Any], Ratio] | None = None
    better: Better = "higher"

    def sample(self, labels: Mapping[str, Any], prediction: Prediction, kinds: Mapping[str, str]) -> Ratio:
        """Compare the whole answer."""
        return self.compare(labels, prediction)

    def field(self, labels: Mapping[str, Any], prediction: Prediction, name: str, kinds: Mapping[str, str]) -> Ratio:
        """Compare one field, where the metric is defined for one."""
        if self.compare_field is None or name not in labels:
            return NOTHING
        return self.compare_field(labels[name], prediction.fields.get(name, ""))


@dataclass(frozen=True)
class Corpus:
    """A metric whose weights depend on all labels, such as the rarity of words."""

    over: Callable[[Sequence[Mapping[str, Any]]], ByField]


def add(ratios: Iterable[Ratio]) -> Ratio:
    """Sum of numerators over sum of denominators."""
    numerator = denominator = 0.0
    for ratio in ratios:
        numerator, denominator = numerator + ratio.numerator, denominator + ratio.denominator
    return Ratio(numerator, denominator)
