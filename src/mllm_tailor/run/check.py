"""Everything that can go wrong with a recipe and its data, found before any training; what `tailor check` prints."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mllm_tailor.core.errors import DataError, TailorError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data import DataIssue, ValidationResult, merged
from mllm_tailor.models import Length, LoadedModel, encode, has_features, media_features
from mllm_tailor.recipe import Recipe
from mllm_tailor.run.calibrate import outlook
from mllm_tailor.run.cost_estimate import CostEstimate, estimate_cost
from mllm_tailor.run.dataset import Splits, prepare, refusal
from mllm_tailor.run.epoch_summary import Share, summarise_epoch
from mllm_tailor.run.execute import resolve_stages
from mllm_tailor.run.folds import fold_run, is_cross_validated
from mllm_tailor.run.ledger import measure_all
from mllm_tailor.run.limits import excluding, limit_warnings
from mllm_tailor.run.pipeline import check_model
from mllm_tailor.run.predict import generate_in_modes, open_base
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.speech_units import with_speech_units
from mllm_tailor.run.stages import leaks_between
from mllm_tailor.scoring import SamplesNeeded, samples_needed

SHOWN_SPANS = 3
TRIED_TOKENS = 4  # of a reply, to see that samples of every modality can be predicted together
TIMED_SAMPLES = 2  # held-out samples that are read to estimate how long scoring takes


@dataclass(frozen=True)
class SplitSize:
    """Samples of one split, and the groups they belong to."""

    name: str
    samples: int
    groups: int


@dataclass(frozen=True)
class DataCheck:
    """What is known of the data without opening the model."""

    data: str
    layout: str
    splits: tuple[SplitSize, ...]
    validation: ValidationResult
    excludes: bool  # the recipe leaves faulty samples out instead of refusing them
    power: SamplesNeeded  # what a score on the held-out split can decide
    calibration: str = ""  # why confidences will not be calibrated or nothing be accepted; empty where they can

    @property
    def ready(self) -> bool:
        """Whether a run may start."""
        return self.excludes or not self.validation.errors()

    def row(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "data": self.data,
            "layout": self.layout,
            "splits": [asdict(split) for split in self.splits],
            "fields": [asdict(facts) for facts in self.validation.fields],
            "errors": [asdict(issue) for issue in self.validation.errors()],
            "warnings": [asdict(issue) for issue in self.validation.warnings()],
            "held_out_power": asdict(self.power),
            "calibration": self.calibration,
        }


@dataclass(frozen=True)
class TokenCounts:
    """Shortest, median and longest sample, in tokens or tiles."""

    shortest: int
    median: int
    longest: int


@dataclass(frozen=True)
class ModelCheck:
    """What the untuned model makes of the data, and what training it costs on this machine."""

    epoch: tuple[Share, ...]
    lengths: Mapping[str, TokenCounts]  # of `tokens`, `tiles` and `supervised` tokens
    spans: tuple[tuple[str, str], ...]  # sample id and the text that carries loss, decoded back from the labels
    cost: CostEstimate
    issues: tuple[DataIssue, ...] = ()  # rows that the model cannot read, or that no reply can match

    @property
    def ready(self) -> bool:
        """Whether a run may start."""
        return all(issue.severity != "error" for issue in self.issues)

    def row(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "issues": [asdict(issue) for issue in self.issues],
            "epoch": [asdict(share) for share in self.epoch],
            "lengths": {name: asdict(counts) for name, counts in self.lengths.items()},
            "learned_text": dict(self.spans),
            "cost": self.cost.row(),
        }


@dataclass
class StageCheck:
    """Both checks of one stage, or of a recipe without stages."""

    name: str
    data: DataCheck
    model: ModelCheck | None = None


@dataclass
class CheckResult:
    """The outcome of a check."""

    stages: list[StageCheck] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Whether a run may start."""
        return all(
            stage.data.ready and (stage.model is None or stage.model.ready or stage.data.excludes)
            for stage in self.stages
        )

    def row(self) -> dict[str, Any]:
        """Plain values for JSON."""
        stages = [
            {"name": stage.name, **stage.data.row(), **(stage.model.row() if stage.model else {})}
            for stage in self.stages
        ]
        return {"ready": self.ready, "stages": stages}


def check_in_steps(recipe: Recipe, *, decode: bool) -> Iterator[StageCheck]:
    """Check a recipe; every stage is given twice: once the data are checked, and again with its model.

    Lengths and cost are those of the untuned model, which no stage changes. With `decode` every file is decoded;
    without it, files are only looked up.

    Raises:
        TailorError: when the recipe, the data or the model cannot be read at all.
    """
    runs = [fold_run(run, 1) if is_cross_validated(run) else run for run in resolve_stages(recipe)]
    prepared = [prepare(run, exclude_faulty=True, decode=decode) for run in runs]
    leaks = leaks_between([(run, splits) for run, (splits, _) in zip(runs, prepared, strict=True)])
    for run, (splits, validation), issues in zip(runs, prepared, leaks, strict=True):
        validation = replace(validation, faults=(*validation.faults, *issues))
        stage = StageCheck(run.name, _check_data(run, splits, validation))
        yield stage
        stage.model = _check_model(run, splits)
        yield stage


def check(recipe: Recipe, *, decode: bool = True) -> CheckResult:
    """Check a recipe, all at once; arguments and errors as those of `check_in_steps`."""
    return CheckResult(list(check_in_steps(recipe, decode=decode))[::2])


def _check_data(run: ResolvedRun, splits: Splits, validation: ValidationResult) -> DataCheck:
    sizes = [
        SplitSize(name, len(samples), len({sample.group for sample in samples if sample.group}))
        for name, samples in splits.by_name().items()
    ]
    return DataCheck(
        data=run.recipe.data.train,
        layout=splits.layout,
        splits=(*sizes, SplitSize("excluded", len(splits.excluded), 0)),
        validation=validation,
        excludes=run.recipe.data.faulty == "exclude",
        power=samples_needed([sample.group for sample in _scored(run, splits)]),
        calibration=outlook(run, splits.dev if run.recipe.data.held_out.folds is None else _scored(run, splits)),
    )


def _scored(run: ResolvedRun, splits: Splits) -> Sequence[Sample]:
    """The samples that the run is scored on: in cross-validation all."""
    if run.recipe.data.held_out.folds is None:
        return splits.held_out
    return (*splits.train, *splits.dev, *splits.held_out)


def _check_model(run: ResolvedRun, splits: Splits) -> ModelCheck:
    with tempfile.TemporaryDirectory() as folder:  # the codebook is read whenever the model is opened
        run = with_speech_units(run, splits.learned, Path(folder) / "units.safetensors")
        return _check_opened(run, splits)


def _check_opened(run: ResolvedRun, splits: Splits) -> ModelCheck:
    check_model(run)
    model = open_base(run)
    lengths, issues = measure_all(model, run.task, splits)
    splits = excluding(splits, issues)
    if not splits.train or not splits.held_out:
        raise DataError(refusal(issues))
    issues += [*limit_warnings(run, splits, lengths), *_generation_issues(model, run, splits)]
    spans = tuple(_spans(model, splits))
    scoring_seconds = _scoring_seconds(model, run, splits) + _neighbour_seconds(model, run, splits, lengths)
    del model  # the estimate opens it as it is trained
    cost = estimate_cost(run, splits, scoring_seconds, lengths)
    if (
        folds := run.recipe.data.held_out.folds
    ) is not None:  # each sample is scored once, and one more training is of all
        cost = replace(cost, trainings=folds + 1, scoring_seconds=cost.scoring_seconds * folds)
    return ModelCheck(
        epoch=tuple(summarise_epoch(run.recipe.data.train, splits, lengths)),
        lengths={name: _count(lengths, name) for name in ("tokens", "tiles", "supervised")},
        spans=spans,
        cost=cost,
        issues=tuple(merged(issues)),
    )


def _generation_issues(model: LoadedModel, run: ResolvedRun, splits: Splits) -> Iterator[DataIssue]:
    """What fails when one sample of every modality is predicted in one batch, as a run does."""
    by_modality = {sample.modality: sample for sample in (*splits.train, *splits.dev, *splits.held_out)}
    samples = list(by_modality.values())
    settings = run.recipe.predict.model_copy(
        update={"max_new_tokens": TRIED_TOKENS, "batch_size": max(2, len(samples))}
    )
    short = replace(run, recipe=run.recipe.model_copy(update={"predict": settings}))
    names = ", ".join(f"{sample.id} ({modality})" for modality, sample in by_modality.items())
    try:
        replies = generate_in_modes(run.modes, model, short, samples)
    except TailorError:
        raise
    except Exception as error:  # whatever a native class stumbles on would end the run  # noqa: BLE001
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        problem = f"{names}: cannot be predicted in one batch ({type(error).__name__}: {reason})"
        yield DataIssue(samples[0].source, problem, "leave out rows of one kind, or take another model")
        return
    for predictions in replies.values():
        unread = [prediction for prediction in predictions if prediction.problem and not prediction.text]
        yield from (
            DataIssue.of(DataError(prediction.problem or ""), sample.source, sample.id)
            for sample, prediction in zip(samples, predictions, strict=True)
            if prediction in unread and sample.source and (prediction.problem or "").startswith(sample.source)
        )


def _count(lengths: Mapping[str, Length], name: str) -> TokenCounts:
    values = sorted(getattr(length, name) for length in lengths.values())
    return TokenCounts(values[0], values[len(values) // 2], values[-1])


def _spans(model: LoadedModel, splits: Splits) -> Iterator[tuple[str, str]]:
    for conversation in splits.phrased[:SHOWN_SPANS]:
        labels = encode(conversation, model).labels
        yield conversation.id, model.tokenizer.decode(labels[labels >= 0])


def _scoring_seconds(model: LoadedModel, run: ResolvedRun, splits: Splits) -> float:
    """Of base and tuned model over all held-out samples, from a few of them, read as a run reads them."""
    timed = splits.held_out[:TIMED_SAMPLES]
    start = time.perf_counter()
    generate_in_modes(run.modes, model, run, timed)
    return 2 * (time.perf_counter() - start) / len(timed) * len(splits.held_out)


def _neighbour_seconds(model: LoadedModel, run: ResolvedRun, splits: Splits, lengths: Mapping[str, Length]) -> float:
    """Of the features of the training samples, for the baseline of nearest neighbours, from those of one, by tiles.

    Those of held-out samples are there when they were predicted; those that the training reads count as its own.
    """
    if run.trains_on_features or not has_features((*splits.train, *splits.held_out), model):
        return 0.0
    timed = splits.train[0]
    start = time.perf_counter()
    media_features([timed], model)
    seconds = time.perf_counter() - start
    return seconds / max(1, lengths[timed.id].tiles) * sum(max(1, lengths[sample.id].tiles) for sample in splits.train)
