"""From the predictions in a run folder to every score that the report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import read_jsonl
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.run.calibrate import (
    NO_CALIBRATION,
    ConfidenceCheck,
    RunCalibration,
    check_confidence,
    cross_calibrated,
)
from mllm_tailor.run.data_record import HeldOut, read_held_out
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import RunFolder, in_order, read_predictions
from mllm_tailor.run.slices import Breakdowns, break_down
from mllm_tailor.scoring import Gain, Scores, compare, score, seen_groups
from mllm_tailor.scoring.systems import CONSTANT, MAJORITY, NEAREST, System
from mllm_tailor.tasks import ClassTask, field_kinds


@dataclass(frozen=True)
class RunScores:
    """Scores of every system of a run on the same held-out samples, in one order."""

    metrics: tuple[str, ...]  # the first is the headline
    mode: DecodingMode  # the one the recipe asks for
    held_out: HeldOut
    predictions: Mapping[str, list[Prediction]]  # by the system's key
    systems: Mapping[str, Scores]  # likewise
    gains: Mapping[str, Gain]  # by metric, in the recipe's mode
    groups: Mapping[str, Sequence[int]]  # indices of the held-out samples of seen and of unseen groups
    breakdowns: Breakdowns = field(default_factory=dict)  # the same for each value of the recipe's `score_by` columns
    classes: tuple[str, ...] = ()  # where a reply is one of them
    calibration: RunCalibration = NO_CALIBRATION
    confidence: ConfidenceCheck | None = None  # of the tuned model's replies in the recipe's mode
    folds: int = 1  # models that scored the samples, each its own

    @property
    def tuned_predictions(self) -> list[Prediction]:
        """The tuned model's replies in the recipe's decoding mode."""
        return self.predictions[System("tuned", self.mode).key]

    def row(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        ids = self.held_out.ids
        return {
            "metrics": list(self.metrics),
            "mode": self.mode,
            "systems": {name: scores.row() for name, scores in self.systems.items()},
            "gain": {metric: gain.row() for metric, gain in self.gains.items()},
            "folds": self.folds,
            "confidence": self.confidence and self.confidence.row(),
            "groups": {name: [ids[index] for index in indices] for name, indices in self.groups.items()},
            "by": {column: self._by(values) for column, values in self.breakdowns.items()},
        }

    def _by(self, values: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        return {
            value: {"count": len(indices)}
            | {name: scores.subset(indices).values() for name, scores in self.systems.items()}
            for value, indices in values.items()
        }


def score_replies(
    run: ResolvedRun, samples: Sequence[Sample], predictions: Sequence[Prediction], metrics: Sequence[str] = ()
) -> dict[str, float]:
    """Metrics of replies to labelled samples, in the order of the samples; default: the run's, the headline first."""
    return score_labelled(run, [run.task.labels(sample) for sample in samples], predictions, metrics)


def score_labelled(
    run: ResolvedRun,
    labels: Sequence[Mapping[str, Any]],
    predictions: Sequence[Prediction],
    metrics: Sequence[str] = (),
) -> dict[str, float]:
    """The same from labels."""
    scores = score(labels, predictions, metrics or run.metrics, run.task.field_names, field_kinds(run.task))
    return {name: scores[name].value for name in scores.metrics}


def score_system(run: ResolvedRun, held_out: HeldOut, predictions: Sequence[Prediction]) -> Scores:
    """The scores of one system's replies to the held-out samples, in whatever order they were written.

    Raises:
        RunError: when one is missing.
    """
    return _score(run, held_out.labels, in_order(held_out.ids, predictions))


def _score(run: ResolvedRun, labels: Sequence[Mapping[str, Any]], predictions: Sequence[Prediction]) -> Scores:
    return score(labels, predictions, run.metrics, run.task.field_names, field_kinds(run.task))


def score_run(folder: RunFolder, run: ResolvedRun, calibration: RunCalibration = NO_CALIBRATION) -> RunScores:
    """Score everything that the run folder holds.

    Raises:
        RunError: when the tuned or the base model's predictions are missing.
    """
    held_out = read_held_out(folder)
    predictions = _collect(folder, run, held_out.ids)
    base, tuned = run.system("base"), run.system("tuned")
    for system in (base, tuned):
        if system.key not in predictions:
            raise RunError(
                f"{folder.path}: no predictions of the {system.model} model — run the same `tailor run` command again"
            )
    systems = {name: _score(run, held_out.labels, replies) for name, replies in predictions.items()}
    folds = run.recipe.data.held_out.folds or 1
    train_groups = [row["group"] for _, row in read_jsonl(folder.ledger) if row["part"] == "train"]
    groups = {} if folds > 1 else seen_groups(train_groups, held_out.groups)
    replies = _with_confidence(run, held_out, predictions[tuned.key], calibration)
    return RunScores(
        metrics=run.metrics,
        mode=run.mode,
        held_out=held_out,
        predictions=predictions | {tuned.key: replies},
        systems=systems,
        gains=compare(systems[base.key], systems[tuned.key], groups=held_out.groups, folds=folds),
        groups=groups,
        breakdowns=break_down(run.recipe.score_by, held_out.samples),
        classes=tuple(run.task.classes) if isinstance(run.task, ClassTask) else (),
        calibration=calibration,
        confidence=check_confidence(run, held_out, replies, groups, cross_fitted=folds > 1),
        folds=folds,
    )


def _with_confidence(
    run: ResolvedRun, held_out: HeldOut, replies: Sequence[Prediction], calibration: RunCalibration
) -> list[Prediction]:
    """The replies with calibrated confidences; those of folds, on which the calibration was fitted, cross-fitted."""
    if calibration.source == "folds" and calibration.calibration is not None:
        return cross_calibrated(run, held_out, replies)
    return [calibration.apply(reply) for reply in replies]


def _collect(folder: RunFolder, run: ResolvedRun, ids: Sequence[str]) -> dict[str, list[Prediction]]:
    """Predictions by the key of their system, in the order of `ids`."""
    models = [System(state, mode) for state in ("base", "tuned") for mode in run.modes]
    present = [system for system in (*models, NEAREST, CONSTANT, MAJORITY) if folder.predictions(system).exists()]
    return {system.key: in_order(ids, read_predictions(folder.predictions(system))) for system in present}
