"""Stages: one job after another, each on the weights the one before left, and one table of what that gained and cost.

What a stage learned is folded into the model and written as a plain checkpoint, from which the next stage starts.
Folding (rather than training the same adapter further) lets any method follow any other, and makes every stage a run
like any other: a checkpoint, a recipe, a folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError, RecipeError
from mllm_tailor.core.io import atomic_folder, write_json
from mllm_tailor.core.progress import console
from mllm_tailor.core.sample import Sample
from mllm_tailor.data import DataIssue, find_shared
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.methods import make_method, merge
from mllm_tailor.models import LoadedModel, save_model
from mllm_tailor.recipe import Recipe, stage_recipes
from mllm_tailor.reporting import write_stages
from mllm_tailor.reporting.tables import forgetting_tables
from mllm_tailor.run.dataset import Excluded, Job, prepare_again, refusal
from mllm_tailor.run.pipeline import check_model, report_job, run_job
from mllm_tailor.run.predict import generate_to_file, moved, open_base, open_tuned
from mllm_tailor.run.run_dir import RunFolder, finished, open_run, read_predictions, start_run
from mllm_tailor.run.scores import in_mode, metric_names, score_system
from mllm_tailor.scoring import Forgetting, SetScores

UNTOUCHED = "untouched"
Item = TypeVar("Item", Sample, Conversation)


def check_stages(recipes: Sequence[Recipe]) -> None:
    """Refuse, before anything is read, a method that cannot be folded where another stage follows.

    Raises:
        RecipeError: naming the stage.
    """
    for recipe in recipes[:-1]:
        stuck = next(
            (one.tuning_method for one in make_method(recipe).assignments if not one.tuning_method.mergeable), None
        )
        if stuck is not None:
            raise RecipeError(
                f"stage {recipe.name}: {stuck.name} cannot be folded into the model, as the next stage needs it — "
                "use it in the last stage only, or choose lora here"
            )


def run_stages(run: RunFolder, jobs: Sequence[Job], *, exclude_faulty: bool) -> None:
    """Every stage that is not finished, what the model then says of the others' held-out samples, and the report."""
    jobs = apart(jobs, exclude_faulty=exclude_faulty)
    for job in jobs:
        check_model(job.recipe)
    chained: list[tuple[RunFolder, Job]] = []
    for number, job in enumerate(jobs, 1):
        if chained:
            before, _ = chained[-1]
            job = replace(job, recipe=moved(job.recipe, fold(before)))
        console.rule(f"[bold]Stage {number} of {len(jobs)}[/]: {job.recipe.name}", align="left")
        stage = start_run(job.recipe)
        if finished(stage):
            console.print(f"{stage.path} is finished. Report: {stage.report}")
        else:
            run_job(stage, job)
        chained.append((stage, job))
        _read_others(run, chained, jobs)
        show(progress(run, jobs[:number]))
    _report(run, jobs)


def apart(jobs: Sequence[Job], *, exclude_faulty: bool) -> list[Job]:
    """The jobs without training samples whose files another stage holds out: scored there, they would hide forgetting.

    Raises:
        DataError: listing them, unless faulty samples are to be excluded.
    """
    pairs = list(zip(jobs, leaks_between(jobs), strict=True))
    refused = [fault for ours, found in pairs if ours.recipe.data.faulty == "refuse" for fault in found]
    if refused and not exclude_faulty:
        raise DataError(refusal(refused))
    return [_without(ours, found) for ours, found in pairs]


def leaks_between(jobs: Sequence[Job]) -> list[list[DataIssue]]:
    """For every job the faults of its training samples that another one holds out."""
    return [[fault for theirs in jobs if theirs is not ours for fault in _repeats(ours, theirs)] for ours in jobs]


def _repeats(ours: Job, theirs: Job) -> Iterator[DataIssue]:
    learned = [conversation.sample for conversation in ours.learned]
    return find_shared((*learned, *ours.dev), theirs.held_out, f"in stage {theirs.recipe.name}")


def _without(job: Job, faults: Sequence[DataIssue]) -> Job:
    """The job without the samples at fault, each with a line in the ledger."""
    dropped = {fault.sample_id: Excluded(fault.sample_id or "", fault.source, fault.problem) for fault in faults}

    def kept(samples: Sequence[Item]) -> tuple[Item, ...]:
        return tuple(sample for sample in samples if sample.id not in dropped)

    if not kept(job.train):
        raise DataError(f"{job.recipe.name}: other stages hold out everything it trains on — hold out the same files")
    mixed = tuple(replace(source, samples=kept(source.samples)) for source in job.mixed)
    present = {item.id for item in job.excluded}
    excluded = (*job.excluded, *(item for name, item in dropped.items() if name not in present))
    return replace(
        job,
        train=kept(job.train),
        transcriptions=kept(job.transcriptions),
        dev=kept(job.dev),
        mixed=mixed,
        excluded=excluded,
    )


def fold(stage: RunFolder) -> Path:
    """The checkpoint a finished stage leaves to the next: base and update in one, whole or not there."""
    place = stage.folded
    if not place.is_dir():
        console.print(f"Folding what {stage.path.name} learned into the model: {place}")
        model = open_tuned(stage.recipe(), stage.adapter)
        merge(model)
        with atomic_folder(place) as partial:
            save_model(model, partial)
    return place


def _read_others(run: RunFolder, chained: Sequence[tuple[RunFolder, Job]], jobs: Sequence[Job]) -> None:
    """The model of now, and once the untouched one, read the held-out samples of the stages that do not do so anyway.

    A stage reads its own before and after its training, so the one before has read those of the next.
    """
    now = len(chained)
    stage, _ = chained[-1]
    recipe = stage.recipe()
    if now == 1:
        _read(run, 0, jobs, range(2, len(jobs) + 1), recipe, None)
    others = [place for place in range(1, len(jobs) + 1) if place not in (now, now + 1)]
    _read(run, now, jobs, others, recipe, stage.adapter)


def _read(
    run: RunFolder, state: int, jobs: Sequence[Job], places: Sequence[int], recipe: Recipe, adapter: Path | None
) -> None:
    """Predictions of the model after `state` stages on the held-out parts of the stages in `places` (from 1)."""
    model: LoadedModel | None = None
    for place in places:
        job, path = jobs[place - 1], _place(run, state, place)
        if len(read_predictions(path)) == len(job.held_out):
            continue
        model = model or (open_base(recipe) if adapter is None else open_tuned(recipe, adapter))
        console.print(f"Reading {len(job.held_out)} held-out samples of {job.recipe.name}: {_name(jobs, state)}")
        mode = in_mode(job.task, job.recipe.predict)
        generate_to_file(path, mode, model, job.task, job.held_out, job.recipe, VisionFeatureCache())


def _place(run: RunFolder, state: int, place: int) -> Path:
    return run.predictions(f"after_{state}_on_{place}")


def _name(jobs: Sequence[Job], state: int) -> str:
    return f"after {jobs[state - 1].recipe.name}" if state else UNTOUCHED


def progress(run: RunFolder, jobs: Sequence[Job]) -> Forgetting:
    """Every stage's held-out samples scored with the model of every state that has read them."""
    states = tuple(_name(jobs, state) for state in range(len(jobs) + 1))
    folders = [RunFolder(run.path / job.recipe.name) for job in jobs]
    sets = []
    for place, (job, folder) in enumerate(zip(jobs, folders, strict=True), 1):
        mode, scores = in_mode(job.task, job.recipe.predict), []
        for state in range(len(states)):
            who = {place - 1: "base", place: "tuned"}.get(state)
            path = folder.predictions(f"{who}_{mode}") if who else _place(run, state, place)
            scores.append(score_system(job, read_predictions(path)) if path.exists() else None)
        metric = metric_names(job.recipe, job.task)[0]
        groups = tuple(sample.group for sample in job.held_out)
        sets.append(SetScores(job.recipe.name, metric, tuple(scores), groups))
    return Forgetting(states, tuple(sets))


def _report(run: RunFolder, jobs: Sequence[Job]) -> None:
    """The parent folder's scores and page; every stage has its own beside them."""
    found = progress(run, jobs)
    write_json(run.scores, found.row())
    pages = {job.recipe.name: f"{job.recipe.name}/{run.report.name}" for job in jobs}
    write_stages(run.path.name, found, pages, run.recipe_file.read_text(encoding="utf-8"), run.report)
    console.print(f"Report: {run.report}")


def show(found: Forgetting) -> None:
    """The table of states and sets, and what every set gained and lost."""
    for table in forgetting_tables(found):
        console.print(table)


def report_stages(run: RunFolder) -> None:
    """Score every stage again and write all reports anew; no model is opened.

    Raises:
        RunError: when a stage is unfinished.
    """
    jobs = []
    for recipe in stage_recipes(run.recipe()):
        stage = open_run(run.path / recipe.name)
        job = prepare_again(stage)
        report_job(stage, job)
        jobs.append(job)
    _report(run, apart(jobs, exclude_faulty=True))
