"""One run over one folder: prepare, baseline, tune, evaluate, report. Each step is skipped where its result exists."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mllm_tailor.core.device import peak_memory, pick_device, seed_everything
from mllm_tailor.core.errors import RecipeError, RunError
from mllm_tailor.core.io import read_json, read_jsonl, write_json
from mllm_tailor.core.manifest import forget, present, record, recorded, was_recorded
from mllm_tailor.core.sample import Prediction
from mllm_tailor.core.summed_rows import finish_rows
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.models import LoadedModel, has_features, load_meta_model, media_features
from mllm_tailor.run.calibrate import (
    DEV,
    RunCalibration,
    fit_calibration,
    is_calibrated,
    why_not,
    write_calibration,
)
from mllm_tailor.run.cost_estimate import CostEstimate, estimate_cost
from mllm_tailor.run.data_changes import reconcile, refuse_replaced
from mllm_tailor.run.data_record import read_data_facts, read_held_out, read_labelled, write_held_out, write_labelled
from mllm_tailor.run.dataset import Splits
from mllm_tailor.run.environment import check_same_base, describe_environment
from mllm_tailor.run.epoch_summary import summarise_epoch
from mllm_tailor.run.events import EpochPlanned, Notify, RunScored, ignore
from mllm_tailor.run.launcher import DevEvaluation, choose_process_count, launch_workers
from mllm_tailor.run.ledger import measure, write_ledger
from mllm_tailor.run.objective_inputs import TRAINING_BEFORE, gather_objective_inputs
from mllm_tailor.run.predict import (
    ModelSource,
    open_base,
    open_for_training,
    open_tuned,
    write_predictions,
)
from mllm_tailor.run.report import write_run_report
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import RunFolder, in_order, read_predictions
from mllm_tailor.run.scores import RunScores, score_run
from mllm_tailor.run.shared_prediction import SharedPrediction
from mllm_tailor.run.slices import majority_answers
from mllm_tailor.run.speech_units import with_speech_units
from mllm_tailor.scoring import constant_baseline, nearest_neighbour_baseline
from mllm_tailor.scoring.systems import CONSTANT, MAJORITY, NEAREST, ModelState, System
from mllm_tailor.training import (
    TrainingConfig,
    TrainingHooks,
    check_objective,
    check_settings,
    check_sharding,
    check_turns,
    train,
)

logger = logging.getLogger(__name__)


def check_run(run: ResolvedRun) -> None:
    """Refuse settings that do not go together before anything is read or opened.

    Raises:
        RecipeError: naming the setting.
    """
    check_settings(run.recipe.train, run.method.optimizer)
    check_objective(run.method, run.recipe.train, run.recipe.task_name)
    check_sharding(run.method, run.recipe.train)
    if run.recipe.data.transcription_turns:
        check_turns(run.method, run.recipe.train, run.recipe.task_name)
    choose_process_count(run, None)


def check_model(run: ResolvedRun) -> None:
    """Refuse a method that does not fit the model before its weights are loaded.

    Raises:
        ModelError, RecipeError: naming the setting: a part the model lacks, a rank above a layer's width.
    """
    run.method.num_trainable_parameters(load_meta_model(run.model.path, run.model.revision))


def run_pipeline(
    folder: RunFolder, run: ResolvedRun, splits: Splits, notify: Notify = ignore, *, accept_changes: bool = False
) -> RunScores:
    """Every step that is left of the run. Called again, it continues where it stopped.

    Raises:
        RunError: when the data changed after the run had used them, unless the changes are accepted.
        RecipeError: for a recipe with folds, which `run.folds` runs.
    """
    if run.recipe.data.held_out.folds is not None and run.recipe.data.held_out.fold is None:
        raise RecipeError(
            "data.held_out.folds: this command holds out one split, the same for all its runs — set fraction, "
            "column or folder"
        )
    reconcile(folder, splits, accept=accept_changes)
    logger.info(
        "%d samples to train on, %d to choose the best epoch, %d held out, %d excluded",
        *(len(split) for split in (splits.train, splits.dev, splits.held_out, splits.excluded)),
    )
    run = with_speech_units(run, splits.learned, folder.codebook)
    record(folder.path, folder.codebook)
    seed_everything(run.recipe.seed)
    if run.trains_on_features:
        folder.keep_features()
    # Held-out and dev images are read many times, by a vision tower that most methods leave alone.
    cache = VisionFeatureCache(folder=folder.features)
    baseline(folder, run, splits, cache, notify)
    estimate(folder, run, splits)
    tune(folder, run, splits, cache)
    evaluate(folder, run, splits, cache)
    refuse_replaced(folder)
    folder.drop_features()
    return report(folder, run, notify)


def baseline(
    folder: RunFolder, run: ResolvedRun, splits: Splits, cache: VisionFeatureCache, notify: Notify = ignore
) -> None:
    """Ledger, held-out labels, the base model's replies, and the baselines that read nothing."""
    written = (folder.environment, folder.held_out, folder.data, folder.ledger, folder.predictions(CONSTANT))
    optional = [folder.predictions(system) for system in (NEAREST, MAJORITY)]
    lost = [path for path in optional if was_recorded(folder.path, path) and not path.exists()]
    if recorded(folder.path, *written) and _complete(folder, run, splits, "base") and not lost:
        return
    model = open_base(run)
    check_same_base(folder.environment, model.identity)
    write_json(folder.environment, describe_environment(model.identity))
    write_held_out(folder, run.task, splits)
    lengths = measure(model, run.task, splits)
    notify(EpochPlanned(summarise_epoch(run.recipe.data.train, splits, lengths)))
    write_ledger(folder.ledger, run.task, splits, lengths)
    predict_held_out(folder, run, splits, "base", model, cache)
    write_baselines(folder, run, splits, model, cache)
    record(folder.path, *written, folder.inline_media, folder.predictions("any").parent)


def estimate(folder: RunFolder, run: ResolvedRun, splits: Splits) -> None:
    """What the training will cost; how long prediction takes is known from the base model."""
    lost = was_recorded(folder.path, folder.cost_estimate)  # the report shows it beside what the training took
    if folder.cost_estimate.exists() or (folder.training.exists() and not lost):
        return
    base = [row for mode in run.modes for row in read_predictions(folder.predictions(System("base", mode)))]
    cost = estimate_cost(run, splits, 2 * sum(row.seconds for row in base))
    peak = max(cost.peak_bytes, peak_memory(pick_device(run.model.device)))  # prediction may have taken more
    write_json(folder.cost_estimate, replace(cost, peak_bytes=peak).row())
    record(folder.path, folder.cost_estimate)


def _complete(folder: RunFolder, run: ResolvedRun, splits: Splits, state: ModelState) -> bool:
    """Whether every held-out sample was predicted in every decoding mode."""
    paths = (folder.predictions(System(state, mode)) for mode in run.modes)
    return all(len(read_predictions(path)) == len(splits.held_out) for path in paths)


def predict_held_out(
    folder: RunFolder,
    run: ResolvedRun,
    splits: Splits,
    state: ModelState,
    model: LoadedModel,
    cache: VisionFeatureCache,
) -> None:
    """In every decoding mode, which separates a gain in form from a gain in reading."""
    logger.info(
        "Predicting %d held-out samples with the %s model: %s", len(splits.held_out), state, " and ".join(run.modes)
    )
    paths = {mode: folder.predictions(System(state, mode)) for mode in run.modes}
    source = ModelSource(run, folder.adapter if state == "tuned" else None)
    SharedPrediction(run, source, folder.path).to_files(paths, model, splits.held_out, cache)


def write_baselines(
    folder: RunFolder, run: ResolvedRun, splits: Splits, model: LoadedModel, cache: VisionFeatureCache
) -> None:
    """Answers that take nothing from the document but, at most, how similar it looks to a training sample."""
    task = run.task
    labels = [task.labels(sample) for sample in splits.train]
    answers: dict[System, Sequence[Mapping[str, Any]]] = {}
    if run.recipe.score_by:
        answers[MAJORITY] = majority_answers(task, run.recipe.score_by, splits.train, splits.held_out)
    if has_features((*splits.train, *splits.held_out), model) and not folder.predictions(NEAREST).exists():
        logger.info("Looking for the training sample most like each held-out one")
        train = np.asarray(media_features(splits.train, model, cache if run.trains_on_features else None))
        held_out = np.asarray(media_features(splits.held_out, model, cache))
        answers[NEAREST] = nearest_neighbour_baseline(train, held_out, labels)
    answers[CONSTANT] = constant_baseline(labels, len(splits.held_out), task.field_names)
    for system, fields in answers.items():
        rows = [Prediction(sample.id, "", values) for sample, values in zip(splits.held_out, fields, strict=True)]
        write_predictions(folder.predictions(system), rows)


def tune(folder: RunFolder, run: ResolvedRun, splits: Splits, cache: VisionFeatureCache) -> None:
    """Train, or continue training, unless training has ended."""
    results = (folder.training, folder.adapter)
    if present(folder.path, *results):
        if was_recorded(folder.path, folder.log) and not folder.log.is_file():
            logger.warning("%s: lost, and nothing else holds its rows; the report shows no curves", folder.log)
            forget(folder.path, folder.log)
        if not recorded(folder.path, *results):  # stopped between writing and recording
            record(folder.path, *results, folder.log, folder.predictions(TRAINING_BEFORE))
        finish_rows(folder.log)
        return
    forget(folder.path, *results, folder.log)
    seed_everything(run.recipe.seed)
    model = open_for_training(run)
    check_same_base(folder.environment, model.identity)
    applied = run.method.apply(model)
    trained = sum(applied.counts.values())
    logger.info("Training %s of %s weights with %s", f"{trained:,}", f"{applied.total:,}", run.method.name)
    for line in applied.lines():
        logger.info("  %s", line)
    objective_inputs = gather_objective_inputs(folder, run.reading_once(), splits, model, cache)
    cost = CostEstimate(**read_json(folder.cost_estimate)) if folder.cost_estimate.exists() else None
    with launch_workers(choose_process_count(run, cost), run, splits, folder) as team:
        hooks = TrainingHooks(
            evaluate=DevEvaluation(run, model, splits.dev, cache, team) if splits.dev else None,
            lower_is_better=run.lower_is_better,
            objective_inputs=objective_inputs,
        )
        config = TrainingConfig.from_recipe(run.recipe, folder.features)
        result = train(model, splits.learned, config, folder.path, hooks)
    write_json(folder.training, result.row() | {"trained_by_part": applied.counts, "weights": applied.total})
    record(folder.path, *results, folder.log, folder.predictions(TRAINING_BEFORE))
    finish_rows(folder.log)


def evaluate(folder: RunFolder, run: ResolvedRun, splits: Splits, cache: VisionFeatureCache) -> None:
    """The tuned model, opened from what was saved (not from memory), predicts the held-out samples.

    Where the dev split is large enough for a calibration, it predicts that, too.
    """
    dev = folder.predictions(DEV)
    missing = not _complete(folder, run, splits, "tuned")
    missing_dev = is_calibrated(run, len(splits.dev)) and len(read_predictions(dev)) < len(splits.dev)
    if not missing and not missing_dev:
        return
    model = open_tuned(run, folder.adapter)
    if missing:
        predict_held_out(folder, run, splits, "tuned", model, cache)
        record(folder.path, *(folder.predictions(System("tuned", mode)) for mode in run.modes))
    if missing_dev:
        logger.info("Predicting %d dev samples, from which the confidence is calibrated", len(splits.dev))
        write_labelled(folder, folder.dev, run.task, splits.dev)
        shared = SharedPrediction(run, ModelSource(run, folder.adapter), folder.path)
        shared.to_files({run.mode: dev}, model, splits.dev, cache)
        record(folder.path, folder.dev, dev, folder.inline_media)


def calibrate(folder: RunFolder, run: ResolvedRun) -> RunCalibration:
    """The calibration that the run's dev predictions, or those of its folds, give, or the reason why they give none."""
    if run.recipe.data.held_out.folds is not None and run.recipe.data.held_out.fold is None:
        labelled = read_held_out(folder)
        predictions = read_predictions(folder.predictions(run.system("tuned")))
        return fit_calibration(run, labelled, in_order(labelled.ids, predictions), "folds")
    if not folder.dev.is_file():
        dev = sum(row["part"] == "dev" for _, row in read_jsonl(folder.ledger))
        return RunCalibration(reason=why_not(run, dev) or "the dev split was not predicted; run `tailor run` again")
    labelled = read_labelled(folder.dev)
    predictions = in_order(labelled.ids, read_predictions(folder.predictions(DEV)))
    return fit_calibration(run, labelled, predictions, "dev")


def report(folder: RunFolder, run: ResolvedRun, notify: Notify = ignore) -> RunScores:
    """Score what the folder holds and write its report; no model is opened and no data set is read.

    Raises:
        RunError: when training has not ended.
    """
    if not folder.training.exists():
        raise RunError(f"{folder.path}: training has not ended — run the same `tailor run` command again to finish it")
    results = (folder.calibration, folder.reply_rows, folder.scores, folder.report)
    forget(folder.path, *results)
    calibration = calibrate(folder, run)
    write_calibration(folder, calibration)
    scores = score_run(folder, run, calibration)
    write_predictions(folder.reply_rows, scores.tuned_predictions)
    write_json(folder.scores, scores.row())
    write_run_report(folder, run, scores, read_json(folder.training), read_data_facts(folder))
    record(folder.path, *results)
    notify(RunScored(folder, scores))
    return scores
