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
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.methods import MethodSet, make_method
from mllm_tailor.models import LoadedModel, image_features, load_meta_model
from mllm_tailor.recipe import Recipe
from mllm_tailor.run.cost_estimate import CostEstimate, estimate_cost
from mllm_tailor.run.dataset import Job
from mllm_tailor.run.environment import describe_environment
from mllm_tailor.run.epoch_summary import plan, print_plan
from mllm_tailor.run.launcher import choose_process_count, launch_workers
from mllm_tailor.run.ledger import measure, write_ledger
from mllm_tailor.run.objective_inputs import gather_objective_inputs
from mllm_tailor.run.predict import (
    choose_to_file,
    generate,
    open_base,
    open_for_training,
    open_tuned,
    predict_to_file,
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
from mllm_tailor.scoring import nearest_neighbour_baseline
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
    choose_process_count(recipe, method, None)
    metric_names(recipe, make_task(recipe))


def check_model(recipe: Recipe) -> None:
    """Refuse a method that does not fit the model before its weights are loaded.

    Raises:
        ModelError, RecipeError: naming the setting: a part the model lacks, a rank above a layer's width.
    """
    make_method(recipe).num_trainable_parameters(load_meta_model(recipe.model.path, recipe.model.revision))


def run_job(run: RunFolder, job: Job) -> None:
    """Everything that is left of the job. Called again, it goes on where it stopped."""
    console.print(
        f"{len(job.train)} samples to train on, {len(job.dev)} to choose the best epoch, "
        f"{len(job.held_out)} held out, {len(job.excluded)} excluded"
    )
    job = with_units(job, run.codebook)
    seed_everything(job.recipe.seed)
    # Held-out and dev pictures are read many times, by a vision side most methods leave alone.
    memory = VisionFeatureCache(folder=run.features)
    _before(run, job, memory)
    _forecast(run, job)
    tune(run, job, make_method(job.recipe), memory)
    _after(run, job, memory)
    report_job(run, job)


def _before(run: RunFolder, job: Job, memory: VisionFeatureCache) -> None:
    """Ledger, and the untouched model's replies and features."""
    if run.ledger.exists() and _complete(run, job, "base") and run.predictions("baseline_nearest").exists():
        return
    model = open_base(job.recipe)
    write_json(run.environment, describe_environment(model.identity))
    lengths = measure(model, job)
    print_plan(plan(job, lengths))
    write_ledger(run.ledger, job, lengths)
    predict_held_out(run, job, "base", model, memory)
    copy_nearest(run, job, model)


def _forecast(run: RunFolder, job: Job) -> None:
    """What the training will cost; how long reading takes is known from the untouched model."""
    if run.forecast.exists() or run.training.exists():
        return
    base = [row for mode in modes(job.task) for row in read_predictions(run.predictions(f"base_{mode}"))]
    found = estimate_cost(job, 2 * sum(row.seconds for row in base))
    most = max(found.peak_bytes, peak_memory(pick_device(job.recipe.model.device)))  # reading may have taken more
    write_json(run.forecast, replace(found, peak_bytes=most).row())


def _complete(run: RunFolder, job: Job, who: str) -> bool:
    """Whether every held-out sample was read in every way of decoding."""
    wanted = len(job.held_out)
    return all(len(read_predictions(run.predictions(f"{who}_{mode}"))) == wanted for mode in modes(job.task))


def predict_held_out(run: RunFolder, job: Job, who: str, model: LoadedModel, memory: VisionFeatureCache) -> None:
    """Held to the schema and free, so that a gain in format is told apart from a gain in reading.

    Where the task has a closed set of replies, also by the likelihood of each.
    """
    ways = modes(job.task)
    console.print(f"Reading {len(job.held_out)} held-out samples with the {who} model, {' and '.join(ways)}")
    paths = {mode == "constrained": run.predictions(f"{who}_{mode}") for mode in ways if mode in MODES}
    predict_to_file(paths, model, job.task, job.held_out, job.recipe, memory)
    if LIKELIHOOD in ways:
        choose_to_file(run.predictions(f"{who}_{LIKELIHOOD}"), model, job.task, job.held_out, job.recipe, memory)


def copy_nearest(run: RunFolder, job: Job, model: LoadedModel) -> None:
    """The floor that copies the labels of the training sample whose picture looks most alike to the base model."""
    path = run.predictions("baseline_nearest")
    if path.exists():
        return
    everyone = (*job.train, *job.held_out)
    seen = model.family.media  # recordings read as words show nothing
    if any(not sample.media or {media.kind for media in sample.media} - set(seen) for sample in everyone):
        return
    train_features = np.asarray(image_features(job.train, model))
    held_features = np.asarray(image_features(job.held_out, model))
    labels = [job.task.labels(sample) for sample in job.train]
    copied = nearest_neighbour_baseline(train_features, held_features, labels)
    write_predictions(
        path, [Prediction(sample.id, "", fields) for sample, fields in zip(job.held_out, copied, strict=True)]
    )


def tune(run: RunFolder, job: Job, method: MethodSet, memory: VisionFeatureCache) -> None:
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
            said = generate(mode, model, job.task, job.dev, recipe.predict, memory=memory)
        return score_part(job, job.dev, said)

    objective_inputs = gather_objective_inputs(run, job, model, memory)
    estimate = CostEstimate(**read_json(run.forecast)) if run.forecast.exists() else None
    with launch_workers(choose_process_count(recipe, method, estimate), job, run):
        result = train(
            model,
            method,
            job.learned,
            recipe,
            run.path,
            evaluate=evaluate if job.dev else None,
            less_is_better=less_is_better(recipe, job.task),
            objective_inputs=objective_inputs,
            features=run.features,
        )
    write_json(run.training, result.row() | {"trained_by_part": applied.counts, "weights": applied.total})


def _after(run: RunFolder, job: Job, memory: VisionFeatureCache) -> None:
    """The tuned model, opened from what was saved (not from memory), reads the held-out samples."""
    if _complete(run, job, "tuned"):
        return
    predict_held_out(run, job, "tuned", open_tuned(job.recipe, run.adapter), memory)


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
