"""The calibration of a run: fitted on labelled samples that it neither learned from nor is scored on.

These are the dev split, or with `held_out: {folds: K}` the samples of every fold, read by the model of the other folds.
`calibration.json` keeps it, or the reason why there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import read_json, write_json
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.run.data_record import HeldOut
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.scoring.accept import FEWEST_UNITS, Promise, choose_threshold, fewest_values
from mllm_tailor.scoring.calibration import FEWEST, FORMAT, PARTS, Calibration, cross_fitted, deal, fit
from mllm_tailor.scoring.intervals import unit_indices
from mllm_tailor.scoring.judged import JudgedValue, deciding_metric, judge
from mllm_tailor.scoring.reliability import Reliability, measure
from mllm_tailor.tasks import field_kinds

Source = Literal["dev", "folds"]
DEV = "tuned_dev"  # predictions of the dev split by the finished model
BY_FIELD = "field "  # before the name of a field, among the parts of a check


@dataclass(frozen=True)
class RunCalibration:
    """A calibration with what it was fitted on, or the reason why there is none."""

    metric: str = ""  # decides what is right
    mode: str = ""  # decoding mode of the replies
    source: Source = "dev"
    samples: int = 0
    values: int = 0
    units: int = 0  # independent units: groups, and samples without a group
    calibration: Calibration | None = None
    promise: Promise | None = None  # where the recipe asks for one
    reason: str = ""

    def apply(self, prediction: Prediction) -> Prediction:
        """The prediction with `confidence` and, where something is promised, `accept`."""
        if self.calibration is None:
            return prediction
        confidence = self.calibration.confidence(prediction.raw)
        accept = None
        if self.promise is not None:
            accept = {path: self.promise.accepts(value) for path, value in confidence.items()}
        return replace(prediction, confidence=confidence, accept=accept)

    def row(self) -> dict[str, Any]:
        """Plain values for calibration.json."""
        return vars(self) | {
            "format": FORMAT,
            "calibration": self.calibration and self.calibration.row(),
            "promise": self.promise and self.promise.row(),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> RunCalibration:
        """The inverse of `row`.

        Raises:
            KeyError, TypeError, ValueError: for a row of another shape.
        """
        values = {name: value for name, value in row.items() if name != "format"}
        calibration, promise = row["calibration"], row["promise"]
        values["calibration"] = Calibration.from_row(calibration) if calibration else None
        values["promise"] = PROMISE.validate_python(promise) if promise else None
        return CALIBRATION.validate_python(values)


PROMISE, CALIBRATION = TypeAdapter(Promise), TypeAdapter(RunCalibration)
NO_CALIBRATION = RunCalibration()


@dataclass(frozen=True)
class ConfidenceCheck:
    """How confidences did on samples that they were not fitted on, by part: all, seen and unseen groups, each field."""

    parts: Mapping[str, Reliability]
    cross_fitted: bool  # each value was judged by a calibration of other samples, as there is no held-out split

    def row(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        return {name: part.row() for name, part in self.parts.items()} | {"cross_fitted": self.cross_fitted}


def read_calibration(folder: RunFolder) -> RunCalibration:
    """The calibration of a run; one without a curve, and with the reason, where it has none.

    Raises:
        RunError: when the file is damaged.
    """
    if not folder.calibration.is_file():
        return RunCalibration(reason=f"{folder.calibration.name} is missing; `tailor report {folder.path}` writes it")
    try:
        row = read_json(folder.calibration)
        if row["format"] != FORMAT:
            raise ValueError
        return RunCalibration.from_row(row)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RunError(
            f"{folder.calibration}: not a calibration — remove it; `tailor report {folder.path}` writes it again"
        ) from None


def write_calibration(folder: RunFolder, calibration: RunCalibration) -> None:
    """Write calibration.json."""
    write_json(folder.calibration, calibration.row())


def is_calibrated(run: ResolvedRun, dev_samples: int) -> bool:
    """Whether a dev split of this size is predicted for a calibration."""
    return not why_not(run, dev_samples)


def why_not(run: ResolvedRun, dev_samples: int) -> str:
    """Why there can be no calibration from a dev split of this size; empty where there can."""
    if deciding_metric(run.metrics) is None:
        return f"no metric of the task `{run.task.name}` calls a single value right or wrong"
    fewest = -(-FEWEST // len(run.task.field_names))
    if dev_samples < fewest:
        return (
            f"the dev split has {dev_samples} sample{'' if dev_samples == 1 else 's'}, and it takes {fewest} "
            f"({FEWEST} values) — set a larger data.dev"
            ", or data.held_out={folds: 5}"
        )
    return ""


def outlook(run: ResolvedRun, samples: Sequence[Sample]) -> str:
    """Why `samples` will not calibrate confidences, or cannot show what the recipe promises; empty where they can."""
    if reason := why_not(run, len(samples)):
        return f"Confidences will not be calibrated: {reason}."
    wanted = run.recipe.accept
    if wanted is None:
        return ""
    folds = run.recipe.data.held_out.folds
    fix = "set a larger data.dev, or data.held_out={folds: 5}" if folds is None else "label more samples"
    values, fewest = len(samples) * len(run.task.field_names), fewest_values(wanted.right, wanted.certainty)
    if values < fewest:
        return (
            f"accept: {values} values to calibrate on cannot show that {wanted.right:.0%} are right, even without an "
            f"error; it takes {fewest} — {fix}."
        )
    units = len(set(unit_indices(len(samples), [sample.group for sample in samples]).tolist()))
    if units < FEWEST_UNITS:
        return (
            f"accept: the samples to calibrate on are of {units} groups, and it takes {FEWEST_UNITS} to show what "
            f"holds for others — {fix}."
        )
    return ""


def fit_calibration(
    run: ResolvedRun, labelled: HeldOut, predictions: Sequence[Prediction], source: Source
) -> RunCalibration:
    """Fit curves and, where the recipe asks for one, the threshold of a promise."""
    metric = deciding_metric(run.metrics)
    if metric is None:
        return RunCalibration(reason=why_not(run, len(predictions)))
    values = judge_values(run, labelled, predictions)
    if len(values) < FEWEST:
        return RunCalibration(reason=f"{len(values)} values of the {source} samples were read, and it takes {FEWEST}")
    return RunCalibration(
        metric=metric,
        mode=run.mode,
        source=source,
        samples=len({value.sample for value in values}),
        values=len(values),
        units=len({value.unit for value in values}),
        calibration=fit(values),
        promise=_promise(run, values),
    )


def judge_values(run: ResolvedRun, labelled: HeldOut, predictions: Sequence[Prediction]) -> list[JudgedValue]:
    """Every value of the replies, judged; values of one group, or else of one sample, are one unit."""
    units = unit_indices(len(labelled.ids), labelled.groups).tolist()
    metric = deciding_metric(run.metrics)
    return judge(labelled.labels, predictions, units, metric, field_kinds(run.task)) if metric else []


def _promise(run: ResolvedRun, values: Sequence[JudgedValue]) -> Promise | None:
    wanted = run.recipe.accept
    if wanted is None:
        return None
    try:
        confidence = cross_fitted(values)
    except ValueError as error:
        return Promise(wanted.right, wanted.certainty, None, len(values), reason=str(error))
    right, units = _columns(values)
    return choose_threshold(confidence, right, units, wanted.right, wanted.certainty)


def _columns(values: Sequence[JudgedValue]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    return np.array([value.right for value in values], bool), np.array([value.unit for value in values], np.int64)


def cross_calibrated(run: ResolvedRun, labelled: HeldOut, predictions: Sequence[Prediction]) -> list[Prediction]:
    """Each prediction with confidences (and accept) by a calibration of other units: nothing judges itself.

    Without enough values or units, the predictions as they are.
    """
    values = judge_values(run, labelled, predictions)
    try:
        part = deal(values, PARTS)
    except ValueError:
        return list(predictions)
    result = list(predictions)
    ids = np.array([value.sample for value in values])
    for number in range(PARTS):
        others = [values[index] for index in np.flatnonzero(part != number).tolist()]
        if len(others) < FEWEST:
            return list(predictions)
        partial = RunCalibration(calibration=fit(others), promise=_promise(run, others))
        for index in set(ids[part == number].tolist()):
            result[index] = partial.apply(predictions[index])
    return result


def check_confidence(
    run: ResolvedRun,
    labelled: HeldOut,
    predictions: Sequence[Prediction],
    groups: Mapping[str, Sequence[int]],
    *,
    cross_fitted: bool = False,
) -> ConfidenceCheck | None:
    """Measure the confidences of predictions; None where there are none."""
    known = [
        value
        for value in judge_values(run, labelled, predictions)
        if value.path in predictions[value.sample].confidence
    ]
    if not known:
        return None
    everything = range(len(labelled.ids))
    subsets: dict[str, Sequence[int]] = {"all": everything, **groups}
    parts = {
        name: _measured([v for v in known if v.sample in set(rows)], predictions) for name, rows in subsets.items()
    }
    names = dict.fromkeys(value.name for value in known)
    if len(names) > 1:
        parts |= {BY_FIELD + name: _measured([v for v in known if v.name == name], predictions) for name in names}
    return ConfidenceCheck({name: part for name, part in parts.items() if part is not None}, cross_fitted)


def _measured(values: Sequence[JudgedValue], predictions: Sequence[Prediction]) -> Reliability | None:
    if not values:
        return None
    confidence = np.array([predictions[value.sample].confidence[value.path] for value in values])
    accepts = [(predictions[value.sample].accept or {}).get(value.path) for value in values]
    accepted = None if None in accepts else np.array(accepts, bool)
    return measure(confidence, *_columns(values), accepted)


def usable_calibration(folder: RunFolder, mode: DecodingMode, engine: str) -> RunCalibration:
    """The calibration for replies of this mode and engine, or the reason why none applies."""
    calibration = read_calibration(folder)
    if calibration.calibration is None:
        return calibration
    if mode != calibration.mode:
        return RunCalibration(reason=f"it holds for {calibration.mode} decoding, and this is {mode}")
    if engine != "builtin" and "beams" in calibration.calibration.scores:
        return RunCalibration(reason=f"it reads the agreement of beams, which {engine} does not give")
    return calibration
