"""One job over one run folder: score the untouched model, tune it, score it again on samples it never saw, report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from mllm_tailor.core.device import peak_memory, pick_device, seed_everything, threads
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import read_json, write_json
from mllm_tailor.core.progress import console
from mllm_tailor.core.sample import Prediction
from mllm_tailor.generation import FeatureMemory
from mllm_tailor.methods import Method, make_method
from mllm_tailor.models import OpenModel, open_skeleton
from mllm_tailor.recipe import Recipe
from mllm_tailor.run.cost_estimate import Forecast, foresee
from mllm_tailor.run.dataset import Job
from mllm_tailor.run.environment import describe_environment
from mllm_tailor.run.epoch_summary import plan, print_plan
from mllm_tailor.run.launcher import crew, processes_of
from mllm_tailor.run.ledger import measure, write_ledger
from mllm_tailor.run.objective_inputs import gather_aids
from mllm_tailor.run.predict import (
    choose_into,
    open_base,
    open_for_training,
    open_tuned,
    predict_into,
    read_in,
    write_predictions,
)
from mllm_tailor.run.report import write_run_report
from mllm_tailor.run.run_dir import RunFolder, read_predictions
from mllm_tailor.run.scores import (
    LIKELIHOOD,
    MODES,
    in_mode,
    less_is_better,
    metric_names,
    modes,
    score_part,
    score_run,
)
from mllm_tailor.run.speech_units import with_units
from mllm_tailor.scoring import nearest_floor
from mllm_tailor.tasks import make_task
from mllm_tailor.training import check_objective, check_settings, train


def check_words(recipe: Recipe) -> None:
    """Refuse settings that do not go together before anything is read or opened.

    Raises:
        RecipeError: naming the setting.
    """
    method = make_method(recipe)
    check_settings(recipe.train, method.optimizer)
    check_objective(method, recipe)
    processes_of(recipe, method, None)
    metric_names(recipe, make_task(recipe))


def check_model(recipe: Recipe) -> None:
    """Refuse a method that does not fit the model before its weights are loaded.

    Raises:
        ModelError, RecipeError: naming the setting: a part the model lacks, a rank above a layer's width.
    """
    make_method(recipe).expected_weights(open_skeleton(recipe.model.path, recipe.model.revision))


def run_job(run: RunFolder, job: Job) -> None:
    """Everything that is left of the job. Called again, it goes on where it stopped."""
    console.print(
        f"{len(job.train)} samples to train on, {len(job.dev)} to choose the best epoch, "
        f"{len(job.held_out)} held out, {len(job.excluded)} excluded"
    )
    job = with_units(job, run.codebook)
    seed_everything(job.recipe.seed)
    # Held-out and dev pictures are read many times, by a vision side most methods leave alone.
    memory = FeatureMemory(folder=run.features)
    _before(run, job, memory)
    _forecast(run, job)
    tune(run, job, make_method(job.recipe), memory)
    _after(run, job, memory)
    report_job(run, job)


def _before(run: RunFolder, job: Job, memory: FeatureMemory) -> None:
    """Ledger, and the untouched model's replies and features."""
    if run.ledger.exists() and _complete(run, job, "base") and run.predictions("floor_nearest").exists():
        return
    model = open_base(job.recipe)
    write_json(run.environment, describe_environment(model.identity))
    lengths = measure(model, job)
    print_plan(plan(job, lengths))
    write_ledger(run.ledger, job, lengths)
    read_held_out(run, job, "base", model, memory)
    copy_nearest(run, job, model)


def _forecast(run: RunFolder, job: Job) -> None:
    """What the training will cost; how long reading takes is known from the untouched model."""
    if run.forecast.exists() or run.training.exists():
        return
    base = [row for mode in modes(job.task) for row in read_predictions(run.predictions(f"base_{mode}"))]
    found = foresee(job, 2 * sum(row.seconds for row in base))
    most = max(found.peak_bytes, peak_memory(pick_device(job.recipe.model.device)))  # reading may have taken more
    write_json(run.forecast, replace(found, peak_bytes=most).row())


def _complete(run: RunFolder, job: Job, who: str) -> bool:
    """Whether every held-out sample was read in every way of decoding."""
    wanted = len(job.held_out)
    return all(len(read_predictions(run.predictions(f"{who}_{mode}"))) == wanted for mode in modes(job.task))


def read_held_out(run: RunFolder, job: Job, who: str, model: OpenModel, memory: FeatureMemory) -> None:
    """Held to the schema and free, so that a gain in format is told apart from a gain in reading.

    Where the task has a closed set of replies, also by the likelihood of each.
    """
    ways = modes(job.task)
    console.print(f"Reading {len(job.held_out)} held-out samples with the {who} model, {' and '.join(ways)}")
    paths = {mode == "constrained": run.predictions(f"{who}_{mode}") for mode in ways if mode in MODES}
    predict_into(paths, model, job.task, job.held_out, job.recipe, memory)
    if LIKELIHOOD in ways:
        choose_into(run.predictions(f"{who}_{LIKELIHOOD}"), model, job.task, job.held_out, job.recipe, memory)


def copy_nearest(run: RunFolder, job: Job, model: OpenModel) -> None:
    """The floor that copies the labels of the training sample whose picture looks most alike to the base model."""
    path = run.predictions("floor_nearest")
    if path.exists():
        return
    everyone = (*job.train, *job.held_out)
    seen = model.family.media  # recordings read as words show nothing
    if any(not sample.media or {media.kind for media in sample.media} - set(seen) for sample in everyone):
        return
    train_features = np.asarray(model.image_features(job.train))
    held_features = np.asarray(model.image_features(job.held_out))
    labels = [job.task.labels(sample) for sample in job.train]
    copied = nearest_floor(train_features, held_features, labels)
    write_predictions(
        path, [Prediction(sample.id, "", fields) for sample, fields in zip(job.held_out, copied, strict=True)]
    )


def tune(run: RunFolder, job: Job, method: Method, memory: FeatureMemory) -> None:
    """Train, or go on training, unless training has ended."""
    if run.training.exists():
        return
    recipe = job.recipe
    seed_everything(recipe.seed)
    model = open_for_training(recipe)
    applied = method.apply(model)
    console.print(f"Training {sum(applied.counts.values()):,} of {applied.total:,} weights with {method.name}")
    for line in applied.lines():
        console.print(f"  {line}")

    all_threads = torch.get_num_threads()  # also while others wait for the scores

    def evaluate() -> Mapping[str, float]:
        mode = in_mode(job.task, recipe.predict)
        with threads(all_threads):
            said = read_in(mode, model, job.task, job.dev, recipe.predict, memory=memory)
        return score_part(job, job.dev, said)

    aids = gather_aids(run, job, model, memory)
    foreseen = Forecast(**read_json(run.forecast)) if run.forecast.exists() else None
    with crew(processes_of(recipe, method, foreseen), job, run):
        result = train(
            model,
            method,
            job.learned,
            recipe,
            run.path,
            evaluate=evaluate if job.dev else None,
            less_is_better=less_is_better(recipe, job.task),
            aids=aids,
            features=run.features,
        )
    write_json(run.training, result.row() | {"trained_by_part": applied.counts, "weights": applied.total})


def _after(run: RunFolder, job: Job, memory: FeatureMemory) -> None:
    """The tuned model, opened from what was saved (not from memory), reads the held-out samples."""
    if _complete(run, job, "tuned"):
        return
    read_held_out(run, job, "tuned", open_tuned(job.recipe, run.adapter), memory)


def report_job(run: RunFolder, job: Job) -> None:
    """Score what the folder holds and write its report; no model is opened.

    Raises:
        RunError: when training has not ended.
    """
    if not run.training.exists():
        raise RunError(f"{run.path}: training has not ended — run the same `tailor run` command again to finish it")
    scores = score_run(run, job)
    write_predictions(run.path / "predictions.jsonl", scores.tuned_predictions)
    write_json(run.scores, scores.row())
    write_run_report(run, job, scores, read_json(run.training))
