"""Score predictions against labels: every metric over all samples, by field and for each sample."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.sample import Prediction
from mllm_tailor.scoring.metrics import METRICS, Corpus, Metric
from mllm_tailor.scoring.metrics.base import Better, Ratio
from mllm_tailor.scoring.metrics.line_items import columns_of


@dataclass(frozen=True)
class Ratios:
    """`numerator / denominator` of each sample, in order; 0/0 where a sample is not scored."""

    numerator: tuple[float, ...]
    denominator: tuple[float, ...]

    @classmethod
    def of(cls, ratios: Iterable[Ratio]) -> Ratios:
        """From the ratios of single samples."""
        rows = list(ratios)
        return cls(tuple(ratio.numerator for ratio in rows), tuple(ratio.denominator for ratio in rows))

    @property
    def value(self) -> float:
        """In percent, whatever the order of samples; 0 where no sample is scored (then `count` is 0 too)."""
        total = math.fsum(self.denominator)
        return 100.0 * math.fsum(self.numerator) / total if total else 0.0

    @property
    def count(self) -> int:
        """Number of samples scored."""
        return sum(above > 0 or below > 0 for above, below in zip(self.numerator, self.denominator, strict=True))

    @property
    def right(self) -> int | None:
        """Number of samples that are right, where each sample scored is wholly right or wholly wrong; else None."""
        pairs = list(zip(self.numerator, self.denominator, strict=True))
        if all(denominator == 0 or (denominator == 1 and numerator in (0, 1)) for numerator, denominator in pairs):
            return int(sum(self.numerator))
        return None

    @property
    def per_sample(self) -> list[float | None]:
        """Percent of each sample; None where it is not scored."""
        return [
            100.0 * numerator / denominator if denominator else None
            for numerator, denominator in zip(self.numerator, self.denominator, strict=True)
        ]

    def subset(self, indices: Sequence[int]) -> Ratios:
        """Some of the samples."""
        return Ratios(tuple(self.numerator[i] for i in indices), tuple(self.denominator[i] for i in indices))


@dataclass(frozen=True)
class MetricScore:
    """One metric over all samples, and by field where the metric is defined for a single field."""

    samples: Ratios
    fields: Mapping[str, Ratios]
    better: Better = "higher"

    @property
    def value(self) -> float:
        """Percent over all samples."""
        return self.samples.value

    @property
    def count(self) -> int:
        """Number of samples scored."""
        return self.samples.count

    @property
    def by_field(self) -> dict[str, float]:
        """Percent of each field."""
        return {name: ratios.value for name, ratios in self.fields.items()}

    @property
    def per_sample(self) -> list[float | None]:
        """Percent of each sample."""
        return self.samples.per_sample

    def subset(self, indices: Sequence[int]) -> MetricScore:
        """The same metric over some of the samples."""
        fields = {name: ratios.subset(indices) for name, ratios in self.fields.items()}
        return MetricScore(self.samples.subset(indices), fields, self.better)


@dataclass(frozen=True)
class Scores:
    """Every metric of one set of predictions, sample by sample in the order of `ids`."""

    ids: tuple[str, ...]
    metrics: Mapping[str, MetricScore]

    def __getitem__(self, metric: str) -> MetricScore:
        return self.metrics[metric]

    def values(self) -> dict[str, float]:
        """Percent by metric."""
        return {name: score.value for name, score in self.metrics.items()}

    def subset(self, indices: Sequence[int]) -> Scores:
        """The scores of some samples, such as those of unseen groups."""
        return Scores(
            tuple(self.ids[i] for i in indices), {name: score.subset(indices) for name, score in self.metrics.items()}
        )

    def row(self) -> dict[str, Any]:
        """Plain values for scores.json; `from_row` needs `samples`, `fields` and `better`, the rest is for readers."""
        return {"ids": list(self.ids), "metrics": {name: _metric_row(score) for name, score in self.metrics.items()}}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Scores:
        """The inverse of `row`."""
        return cls(tuple(row["ids"]), {name: _read_metric(score) for name, score in row["metrics"].items()})


def pool(folds: Sequence[Scores], ids: Sequence[str]) -> Scores:
    """The scores of cross-validation as one: every sample scored once, in the order of `ids`.

    Metrics that weigh words by rarity over all labels must have been scored over the pooled predictions instead.

    Raises:
        RunError: when a sample is missing or scored twice.
    """
    order = [identifier for scores in folds for identifier in scores.ids]
    position = {identifier: index for index, identifier in enumerate(order)}
    repeated = len(order) - len(position)
    missing = [identifier for identifier in ids if identifier not in position]
    if repeated or missing:
        problem = f"{repeated} samples are in several folds" if repeated else f"no fold scored `{missing[0]}`"
        raise RunError(f"{problem} — every sample is held out exactly once")
    joined = {name: _join([scores[name] for scores in folds]) for name in folds[0].metrics}
    return Scores(tuple(order), joined).subset([position[identifier] for identifier in ids])


def _join(folds: Sequence[MetricScore]) -> MetricScore:
    names = dict.fromkeys(name for score in folds for name in score.fields)
    fields = {
        name: _concatenate([score.fields.get(name) or _unscored(score.samples) for score in folds]) for name in names
    }
    return MetricScore(_concatenate([score.samples for score in folds]), fields, folds[0].better)


def _concatenate(parts: Sequence[Ratios]) -> Ratios:
    return Ratios(
        tuple(value for part in parts for value in part.numerator),
        tuple(value for part in parts for value in part.denominator),
    )


def _unscored(samples: Ratios) -> Ratios:
    zeros = (0.0,) * len(samples.numerator)
    return Ratios(zeros, zeros)


def _metric_row(score: MetricScore) -> dict[str, Any]:
    return {
        "value": score.value,
        "count": score.count,
        "by_field": score.by_field,
        "better": score.better,
        "samples": _ratios_row(score.samples),
        "fields": {name: _ratios_row(ratios) for name, ratios in score.fields.items()},
    }


def _ratios_row(ratios: Ratios) -> dict[str, list[float]]:
    return {"numerator": list(ratios.numerator), "denominator": list(ratios.denominator)}


def _read_metric(row: Mapping[str, Any]) -> MetricScore:
    return MetricScore(
        _read_ratios(row["samples"]),
        {name: _read_ratios(field) for name, field in row["fields"].items()},
        row["better"],
    )


def _read_ratios(row: Mapping[str, Any]) -> Ratios:
    return Ratios(tuple(row["numerator"]), tuple(row["denominator"]))


def score(
    labels: Sequence[Mapping[str, Any]],
    predictions: Sequence[Prediction],
    metrics: Sequence[str],
    field_names: Sequence[str],
    kinds: Mapping[str, str] | None = None,
) -> Scores:
    """Score predictions (in the order of `labels`) by every named metric, in percent.

    `kinds` gives the declared type of each field (`amount`, `date`, …), which some metrics use to normalise.

    Raises:
        RunError: when there is not one prediction for each label.
        RecipeError: for an unknown metric.
    """
    if len(labels) != len(predictions):
        raise RunError(f"{len(labels)} labels but {len(predictions)} predictions — predict every sample once, in order")
    types = dict(kinds or {})
    pairs = list(zip(labels, predictions, strict=True))
    names = (*field_names, *columns_of(labels, field_names))
    return Scores(
        tuple(prediction.id for prediction in predictions),
        {name: _score_metric(_metric(name, labels), pairs, names, types) for name in metrics},
    )


def _metric(name: str, labels: Sequence[Mapping[str, Any]]) -> Metric:
    metric: Metric | Corpus = METRICS.load(name)
    return metric.over(labels) if isinstance(metric, Corpus) else metric


def _score_metric(
    metric: Metric,
    pairs: Sequence[tuple[Mapping[str, Any], Prediction]],
    field_names: Sequence[str],
    kinds: Mapping[str, str],
) -> MetricScore:
    samples = Ratios.of(metric.sample(label, prediction, kinds) for label, prediction in pairs)
    fields = {
        name: Ratios.of(metric.field(label, prediction, name, kinds) for label, prediction in pairs)
        for name in field_names
    }
    return MetricScore(samples, {name: ratios for name, ratios in fields.items() if ratios.count}, metric.better)
