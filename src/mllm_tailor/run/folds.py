"""Cross-validation: every sample is scored once, by a model that was trained on the other folds.

Each fold is a run of its own in `RUN/fold-K`, with checkpoints, predictions and a report, so that the same command
continues between folds and within one. The run itself pools what the folds predicted, trains the final model on all
samples, and fits its calibration on the pooled predictions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from mllm_tailor.core.device import seed_everything
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import write_json, write_jsonl
from mllm_tailor.core.manifest import forget, record, recorded
from mllm_tailor.core.sample import Sample
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.run.data_changes import made_from_other_data, reconcile, refuse_replaced
from mllm_tailor.run.data_record import read_held_out, write_held_out
from mllm_tailor.run.dataset import Splits, prepare
from mllm_tailor.run.environment import check_same_base, describe_environment
from mllm_tailor.run.epoch_summary import summarise_epoch
from mllm_tailor.run.events import EpochPlanned, FoldStarted, Notify, ignore
from mllm_tailor.run.fingerprints import read_fingerprints
from mllm_tailor.run.ledger import measure, write_ledger
from mllm_tailor.run.limits import without_unreadable
from mllm_tailor.run.mapper import in_turn
from mllm_tailor.run.options import Options
from mllm_tailor.run.pipeline import estimate, report, run_pipeline, tune
from mllm_tailor.run.predict import open_base
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import RunFolder, finished, own_run, read_predictions
from mllm_tailor.run.scores import RunScores
from mllm_tailor.run.speech_units import with_speech_units

logger = logging.getLogger(__name__)


def is_cross_validated(run: ResolvedRun) -> bool:
    """Whether a run holds out every sample in turn."""
    return run.recipe.data.held_out.folds is not None and run.recipe.data.held_out.fold is None


def fold_run(run: ResolvedRun, number: int) -> ResolvedRun:
    """The run that holds out one fold (from 1)."""
    recipe, held_out = run.recipe, run.recipe.data.held_out.model_copy(update={"fold": number})
    changes = {
        "name": f"fold-{number}",
        "output": f"{recipe.output}/{recipe.name}",
        "data": recipe.data.model_copy(update={"held_out": held_out}),
    }
    return replace(run, recipe=recipe.model_copy(update=changes))


def run_folds(
    folder: RunFolder, run: ResolvedRun, splits: Splits, options: Options, notify: Notify = ignore
) -> RunScores:
    """Every fold that is not finished, then the final model, trained on all samples, and the pooled report.

    Raises:
        RunError: when the data changed after a fold had used them, unless the changes are accepted.
    """
    count = run.recipe.data.held_out.folds or 0
    reconcile(folder, splits, accept=options.accept_changes)
    here = options.mapper is in_turn  # elsewhere nothing is notified
    work = partial(_run_fold, run, replace(options, mapper=in_turn), notify if here else ignore)
    folds = list(options.mapper(work, range(1, count + 1)))
    if other := made_from_other_data(folds, read_fingerprints(folder)):
        names = ", ".join(fold.path.name for fold in other)
        raise RunError(
            f"{folder.path}: the data of {names} are not those of the other folds "
            "— pass --accept-changes to compute again what followed from the changes, or --fresh to begin anew"
        )
    notify(FoldStarted(count + 1, count + 1))
    run = with_speech_units(run, splits.learned, folder.codebook)
    record(folder.path, folder.codebook)
    seed_everything(run.recipe.seed)
    _pool(folder, folds, run, splits, notify)
    estimate(folder, run, splits)
    tune(folder, run, splits, VisionFeatureCache(folder=folder.features))
    refuse_replaced(folder)
    return report(folder, run, notify)


def _run_fold(whole: ResolvedRun, options: Options, notify: Notify, number: int) -> RunFolder:
    notify(FoldStarted(number, (whole.recipe.data.held_out.folds or 0) + 1))
    run = fold_run(whole, number)
    excludes = options.exclude_faulty or run.recipe.data.faulty == "exclude"
    with own_run(run.recipe) as fold:
        if finished(fold) and not options.accept_changes:
            logger.info("%s is finished. Report: %s", fold.path, fold.report)
            return fold
        splits, _ = prepare(run, exclude_faulty=options.exclude_faulty)
        if excludes:
            splits = without_unreadable(run, splits)
        run_pipeline(fold, run, splits, notify, accept_changes=options.accept_changes)
    return fold


def _pool(folder: RunFolder, folds: Sequence[RunFolder], run: ResolvedRun, splits: Splits, notify: Notify) -> None:
    """Held-out samples, predictions and ledger of the whole run, from what its folds left."""
    written = (folder.environment, folder.held_out, folder.data, folder.ledger, folder.predictions("any").parent)
    forget(folder.path, *written)
    scored: list[Sample] = [sample for fold in folds for sample in read_held_out(fold).samples]
    position = {sample.id: index for index, sample in enumerate((*splits.train, *splits.dev))}
    scored.sort(key=lambda sample: position.get(sample.id, len(position)))
    write_held_out(folder, run.task, replace(splits, held_out=tuple(scored)))
    for path in sorted(folds[0].predictions("any").parent.glob("*.jsonl")):
        if path.stem.startswith(("base_", "tuned_", "baseline_")) and path.stem != "tuned_dev":
            rows = [row for fold in folds for row in read_predictions(fold.predictions(path.stem))]
            write_jsonl(folder.predictions(path.stem), (row.row() for row in rows))
    if not recorded(folder.path, folder.training):
        model = open_base(run)
        for fold in folds:
            check_same_base(fold.environment, model.identity)
        write_json(folder.environment, describe_environment(model.identity))
        lengths = measure(model, run.task, splits)
        notify(EpochPlanned(summarise_epoch(run.recipe.data.train, splits, lengths)))
        write_ledger(folder.ledger, run.task, splits, lengths)
    record(folder.path, *written, folder.inline_media)
