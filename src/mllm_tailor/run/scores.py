"""From the predictions in a run folder to every score the report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.recipe import Recipe
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.run.dataset import Job
from mllm_tailor.run.run_dir import RunFolder, in_order, read_predictions
from mllm_tailor.run.slices import Places, majority_baseline, places_by
from mllm_tailor.scoring import METRICS, Gain, Scores, compare, constant_baseline, score, seen_groups
from mllm_tailor.tasks import ChoiceTask, ClassTask, Task

MODES = ("constrained", "unconstrained")
LIKELIHOOD = "likelihood"  # of each reply, where a task has a closed set of them


@dataclass(frozen=True)
class RunScores:
    """Scores of every system of a run on the same held-out samples, in one order."""

    metrics: tuple[str, ...]  # the first is the headline
    mode: str  # the way of decoding the recipe asks for
    ids: tuple[str, ...]
    labels: tuple[Mapping[str, Any], ...]
    predictions: Mapping[str, list[Prediction]]  # by system, such as `tuned_constrained`
    systems: Mapping[str, Scores]
    gains: Mapping[str, Gain]  # by metric, in the recipe's mode
    groups: Mapping[str, Sequence[int]]  # places of the held-out samples of seen and of unseen groups
    breakdowns: Places = field(default_factory=dict)  # the same for each value of the recipe's `score_by` columns
    classes: tuple[str, ...] = ()  # where a reply is one of them

    @property
    def tuned_predictions(self) -> list[Prediction]:
        """The tuned model's replies in the recipe's way of decoding."""
        return self.predictions[f"tuned_{self.mode}"]

    def row(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        return {
            "metrics": list(self.metrics),
            "mode": self.mode,
            "systems": {name: scores.row() for name, scores in self.systems.items()},
            "gain": {metric: found.row() for metric, found in self.gains.items()},
            "groups": {name: [self.ids[place] for place in places] for name, places in self.groups.items()},
            "by": {column: self._by(parts) for column, parts in self.breakdowns.items()},
        }

    def _by(self, parts: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        return {
            value: {"count": len(places)}
            | {name: found.subset(places).values() for name, found in self.systems.items()}
            for value, places in parts.items()
        }


def modes(task: Task) -> tuple[str, ...]:
    """The ways of decoding a task is scored in."""
    written = MODES if task.schema() is not None else MODES[1:]
    return (*written, LIKELIHOOD) if isinstance(task, ChoiceTask) else written


def metric_names(recipe: Recipe, task: Task) -> tuple[str, ...]:
    """The recipe's metrics, then the task's own that it does not name.

    Raises:
        RecipeError: for an unknown metric.
    """
    names = tuple(dict.fromkeys((*recipe.score, *task.metrics)))
    for name in names:
        METRICS.load(name)
    return names


def field_kinds(task: Task) -> dict[str, str]:
    """The declared type of each field, where the task has types."""
    fields = getattr(getattr(task, "settings", None), "fields", {})
    return {name: spec.type for name, spec in fields.items()}


def in_mode(task: Task, settings: Predict) -> str:
    """The way of decoding a recipe asks for."""
    if settings.likelihood and isinstance(task, ChoiceTask):
        return LIKELIHOOD
    return modes(task)[0] if settings.constrained else MODES[1]


def score_part(job: Job, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict[str, float]:
    """Scores of one part while training, the headline first: it chooses the best epoch."""
    found = _score(job, samples, predictions)
    return {name: found[name].value for name in found.metrics}


def less_is_better(recipe: Recipe, task: Task) -> bool:
    """Whether the headline counts errors.

    Raises:
        RecipeError: for an unknown metric.
    """
    return METRICS.load(metric_names(recipe, task)[0]).better == "lower"


def score_system(job: Job, predictions: Sequence[Prediction]) -> Scores:
    """The scores of one system's replies to the held-out samples, in whatever order they were written.

    Raises:
        RunError: when one is missing.
    """
    return _score(job, job.held_out, in_order([sample.id for sample in job.held_out], predictions))


def _score(job: Job, samples: Sequence[Sample], predictions: Sequence[Prediction]) -> Scores:
    names = metric_names(job.recipe, job.task)
    labels = [job.task.labels(sample) for sample in samples]
    return score(labels, predictions, names, job.task.field_names, field_kinds(job.task))


def score_run(run: RunFolder, job: Job) -> RunScores:
    """Score everything the run folder holds.

    Raises:
        RunError: when the tuned or the untouched model's predictions are missing.
    """
    names = metric_names(job.recipe, job.task)
    ids = tuple(sample.id for sample in job.held_out)
    labels = tuple(job.task.labels(sample) for sample in job.held_out)
    mode = in_mode(job.task, job.recipe.predict)
    predictions = _collect(run, job, ids)
    for who in ("base", "tuned"):
        if f"{who}_{mode}" not in predictions:
            raise RunError(f"{run.path}: no predictions of the {who} model — run `tailor run` again to finish")
    systems = {
        name: score(labels, found, names, job.task.field_names, field_kinds(job.task))
        for name, found in predictions.items()
    }
    groups = [sample.group for sample in job.held_out]
    gains = compare(systems[f"base_{mode}"], systems[f"tuned_{mode}"], groups=groups)
    places = seen_groups([sample.group for sample in job.train], groups)
    classes = tuple(job.task.classes) if isinstance(job.task, ClassTask) else ()
    breakdowns = places_by(job.recipe.score_by, job.held_out)
    return RunScores(names, mode, ids, labels, predictions, systems, gains, places, breakdowns, classes)


def _collect(run: RunFolder, job: Job, ids: Sequence[str]) -> dict[str, list[Prediction]]:
    """Predictions by system, in the order of `ids`; the constant baseline is made here."""
    found = {}
    for name in (*(f"{who}_{mode}" for who in ("base", "tuned") for mode in (*MODES, LIKELIHOOD)), "baseline_nearest"):
        if run.predictions(name).exists():
            found[name] = in_order(ids, read_predictions(run.predictions(name)))
    train_labels = [job.task.labels(sample) for sample in job.train]
    constant = constant_baseline(train_labels, len(ids), job.task.field_names)
    found["baseline_constant"] = [Prediction(name, "", fields) for name, fields in zip(ids, constant, strict=True)]
    if job.recipe.score_by:
        majority = majority_baseline(job)
        found["baseline_majority"] = [Prediction(name, "", fields) for name, fields in zip(ids, majority, strict=True)]
    return found
