"""Stages: one run after another, each on the weights that the one before left, and a table of what each gained.

What a stage learned is merged into the model and written as a plain checkpoint, from which the next stage starts.
Merging (rather than training the same adapter further) lets any method follow any other, and makes every stage a run
like any other: a checkpoint, a recipe, a folder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from mllm_tailor.core.errors import DataError, RecipeError
from mllm_tailor.core.io import write_json
from mllm_tailor.core.manifest import forget, record
from mllm_tailor.data import DataIssue, find_shared
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.recipe import stage_recipes
from mllm_tailor.reporting import write_stages
from mllm_tailor.run.data_changes import drop_predictions, reconcile, remove
from mllm_tailor.run.data_record import read_held_out
from mllm_tailor.run.dataset import Excluded, Splits, refusal
from mllm_tailor.run.events import Notify, StageEnded, StageStarted, ignore
from mllm_tailor.run.merged import merged_folder
from mllm_tailor.run.pipeline import check_model, report, run_pipeline
from mllm_tailor.run.predict import ModelSource
from mllm_tailor.run.resolve import ResolvedRun, resolve_here, resolve_saved
from mllm_tailor.run.run_dir import RunFolder, finished, open_run, own_run, read_predictions
from mllm_tailor.run.scores import score_system
from mllm_tailor.run.shared_prediction import SharedPrediction
from mllm_tailor.scoring import Forgetting, SetScores

logger = logging.getLogger(__name__)
UNTOUCHED = "untouched"
Stage = tuple[ResolvedRun, Splits]


def check_stages(runs: Sequence[ResolvedRun]) -> None:
    """Refuse, before anything is read, a method that cannot be merged where another stage follows.

    Raises:
        RecipeError: naming the stage.
    """
    for run in runs[:-1]:
        methods = [assignment.tuning_method for assignment in run.method.assignments]
        stuck = next((method for method in methods if not method.mergeable), None)
        if stuck is not None:
            raise RecipeError(
                f"stage {run.name}: {stuck.name} cannot be merged into the model, as the next stage needs it — "
                "use it in the last stage only, or choose lora here"
            )


def run_stages(
    folder: RunFolder,
    stages: Sequence[Stage],
    *,
    exclude_faulty: bool,
    accept_changes: bool = False,
    notify: Notify = ignore,
) -> None:
    """Every stage that is not finished, its model's predictions on the others' held-out samples, and the report."""
    stages = drop_cross_stage_leaks(stages, exclude_faulty=exclude_faulty)
    for run, _ in stages:
        check_model(run)
    reconcile_stages(folder, stages, accept=accept_changes)
    started: list[RunFolder] = []
    for number, (run, splits) in enumerate(stages, 1):
        if started:
            before = started[-1]
            run = run.with_model_folder(merged_folder(resolve_saved(before.recipe()), before, before.merged))
        notify(StageStarted(number, len(stages), run.name))
        with own_run(run.recipe) as stage:
            started.append(stage)
            if finished(stage):
                logger.info("%s is finished. Report: %s", stage.path, stage.report)
            else:
                run_pipeline(stage, run, splits, notify)
        _predict_others(folder, number, resolve_saved(stage.recipe()), stage, stages)
        notify(StageEnded(measure_forgetting(folder, [run for run, _ in stages[:number]])))
    _report(folder, [run for run, _ in stages])


def reconcile_stages(folder: RunFolder, stages: Sequence[Stage], *, accept: bool) -> None:
    """See that the data of every stage that has begun are still the same; what accepted changes touch is removed.

    A stage whose training changes takes with it all later stages, which build on its weights.

    Raises:
        RunError: naming changes of data that were used, unless they are accepted.
    """
    for number, (run, splits) in enumerate(stages, 1):
        stage = RunFolder(folder.path / run.name)
        if not stage.fingerprints.is_file():
            continue
        trained = stage.training.is_file()
        changes = reconcile(stage, splits, accept=accept)
        ids = {change.id for change in changes if change.split == "held_out"}
        for state in range(len(stages) + 1):
            drop_predictions(folder, ids, _predictions(folder, state, number))
        if trained and not stage.training.is_file():
            later = [RunFolder(folder.path / other.name).path for other, _ in stages[number:]]
            states = range(number, len(stages) + 1)
            predictions = [_predictions(folder, state, at) for state in states for at in range(1, len(stages) + 1)]
            remove(folder, [*later, *predictions])
            break


def drop_cross_stage_leaks(stages: Sequence[Stage], *, exclude_faulty: bool) -> list[Stage]:
    """The stages without training samples whose files another stage holds out: scored there, they hide forgetting.

    Raises:
        DataError: listing them, unless faulty samples are to be excluded.
    """
    pairs = list(zip(stages, leaks_between(stages), strict=True))
    refused = [issue for (run, _), issues in pairs if run.recipe.data.faulty == "refuse" for issue in issues]
    if refused and not exclude_faulty:
        raise DataError(refusal(refused))
    return [(run, _without(run.name, splits, issues)) for (run, splits), issues in pairs]


def leaks_between(stages: Sequence[Stage]) -> list[list[DataIssue]]:
    """For every stage the issues of its training samples that another one holds out."""
    return [
        [issue for other in stages if other is not stage for issue in _repeats(stage[1], other)] for stage in stages
    ]


def _repeats(splits: Splits, other: Stage) -> Iterator[DataIssue]:
    run, theirs = other
    learned = [conversation.sample for conversation in splits.learned]
    return find_shared((*learned, *splits.dev), theirs.held_out, f"in stage {run.name}")


def _without(name: str, splits: Splits, issues: Sequence[DataIssue]) -> Splits:
    """The splits without the samples at fault, each with a line in the ledger."""
    dropped = {issue.sample_id: Excluded(issue.sample_id or "", issue.source, issue.problem) for issue in issues}
    left = splits.without({identifier or "": item for identifier, item in dropped.items()})
    if not left.train:
        raise DataError(f"{name}: other stages hold out everything it trains on — hold out the same files")
    return left


def _predict_others(folder: RunFolder, now: int, run: ResolvedRun, stage: RunFolder, stages: Sequence[Stage]) -> None:
    """The model of now, and once the base model, predict the held-out samples of stages that do not do so themselves.

    A stage predicts its own before and after its training, so the one before has predicted those of the next.
    """
    if now == 1:
        _predict(folder, 0, stages, range(2, len(stages) + 1), run, None)
    others = [number for number in range(1, len(stages) + 1) if number not in (now, now + 1)]
    _predict(folder, now, stages, others, run, stage.adapter)


def _predict(
    folder: RunFolder,
    state: int,
    stages: Sequence[Stage],
    numbers: Sequence[int],
    opened: ResolvedRun,
    adapter: Path | None,
) -> None:
    """Predictions of the model after `state` stages on the held-out samples of the stages `numbers` (from 1)."""
    source, model = ModelSource(opened, adapter), None
    for number in numbers:
        (run, splits), path = stages[number - 1], _predictions(folder, state, number)
        if len(read_predictions(path)) == len(splits.held_out):
            continue
        model = model or source.open()
        name = _state_name([run for run, _ in stages], state)
        logger.info("Predicting %d held-out samples of %s: %s", len(splits.held_out), run.name, name)
        shared = SharedPrediction(run, source, folder.path)
        shared.to_files({run.mode: path}, model, splits.held_out, VisionFeatureCache())
        record(folder.path, path)


def _predictions(folder: RunFolder, state: int, number: int) -> Path:
    return folder.predictions(f"after_{state}_on_{number}")


def _state_name(runs: Sequence[ResolvedRun], state: int) -> str:
    return f"after {runs[state - 1].name}" if state else UNTOUCHED


def measure_forgetting(folder: RunFolder, runs: Sequence[ResolvedRun]) -> Forgetting:
    """Every stage's held-out samples scored with the model of every state that has predicted them."""
    states = tuple(_state_name(runs, state) for state in range(len(runs) + 1))
    sets = []
    for number, run in enumerate(runs, 1):
        stage, scores = RunFolder(folder.path / run.name), []
        held_out = read_held_out(stage)
        for state in range(len(states)):
            path = _predictions(folder, state, number)
            if state in (number - 1, number):
                path = stage.predictions(run.system("base" if state < number else "tuned"))
            scores.append(score_system(run, held_out, read_predictions(path)) if path.exists() else None)
        sets.append(SetScores(run.name, run.metrics[0], tuple(scores), held_out.groups))
    return Forgetting(states, tuple(sets))


def _report(folder: RunFolder, runs: Sequence[ResolvedRun]) -> Forgetting:
    """The parent folder's scores and page; every stage has its own beside them."""
    result = measure_forgetting(folder, runs)
    forget(folder.path, folder.scores, folder.report)
    write_json(folder.scores, result.row())
    pages = {run.name: f"{run.name}/{folder.report.name}" for run in runs}
    write_stages(folder.path.name, result, pages, folder.recipe_file.read_text(encoding="utf-8"), folder.report)
    record(folder.path, folder.scores, folder.report)
    return result


def report_stages(folder: RunFolder, notify: Notify = ignore) -> None:
    """Score every stage again and write all reports; no model is opened.

    Raises:
        RunError: when a stage is unfinished.
    """
    runs = []
    for recipe in stage_recipes(folder.recipe()):
        stage = open_run(folder.path / recipe.name)
        run = resolve_here(stage.recipe())
        report(stage, run, notify)
        runs.append(run)
    notify(StageEnded(_report(folder, runs)))
