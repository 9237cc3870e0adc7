"""What several runs on the same samples have in common, computed once: the base model's replies and the features.

It happens in a process of its own, so that it counts towards no run's peak memory.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path

from mllm_tailor.core.device import seed_everything
from mllm_tailor.core.errors import RunError, TailorError
from mllm_tailor.core.failures import as_messages
from mllm_tailor.core.interrupts import deaf_children, end_with_parent
from mllm_tailor.core.io import write_atomic, write_json
from mllm_tailor.core.manifest import record, recorded
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.recipe import make_recipe
from mllm_tailor.run.data_changes import reconcile, same_held_out
from mllm_tailor.run.data_record import write_held_out
from mllm_tailor.run.dataset import Splits, prepare
from mllm_tailor.run.environment import check_same_base, describe_environment
from mllm_tailor.run.lock import owned
from mllm_tailor.run.pipeline import predict_held_out, write_baselines
from mllm_tailor.run.predict import open_base
from mllm_tailor.run.resolve import ResolvedRun, resolve_saved
from mllm_tailor.run.run_dir import RunFolder, finished, own_run, share_predictions
from mllm_tailor.run.speech_units import with_speech_units
from mllm_tailor.training import TrainingConfig
from mllm_tailor.training.vision_cache import make_batch_source

logger = logging.getLogger(__name__)
DONE = "done"  # a file whose presence means that nothing is left to do


def compute_shared_baseline(run: ResolvedRun, folder: Path) -> RunFolder:
    """The folder `shared` in `folder`, filled from the run's data and base model; its method plays no part.

    Raises:
        RunError: when that fails; the reason was written to standard error.
    """
    values = run.recipe.model_dump(mode="json") | {"name": "shared", "output": str(folder)}
    with own_run(resolve_saved(make_recipe(values)).recipe) as shared:
        pass
    if not recorded(shared.path, shared.path / DONE):
        process = multiprocessing.get_context("spawn").Process(target=_work, args=(shared.path,))
        with deaf_children():
            process.start()
        try:
            process.join()
        finally:  # also after Ctrl-C
            process.kill()
        if process.exitcode:
            raise RunError("the base model could not predict the samples, so there is nothing to compare with")
    return shared


def hand_over(shared: RunFolder, folder: RunFolder) -> None:
    """Give a run that has begun what was computed once."""
    if not folder.fingerprints.exists():  # the predictions are of the data as they were then
        write_atomic(folder.fingerprints, shared.fingerprints.read_bytes())
    if shared.environment.exists() and not folder.environment.exists():  # and of the base model as it was then
        write_atomic(folder.environment, shared.environment.read_bytes())
    for names in ("base_*", "baseline_*"):
        share_predictions(shared, folder, names)
    link = folder.path / "features"
    if shared.features is not None and not link.exists():
        link.unlink(missing_ok=True)  # of a folder that has moved
        link.symlink_to(shared.features.resolve(), target_is_directory=True)


def take_over_base(before: Path, folder: RunFolder, run: ResolvedRun, splits: Splits) -> None:
    """Copy the base model's replies of a finished run of the same model, task and held-out samples, if it is one."""
    source = RunFolder(before)
    if not finished(source):
        return
    recipe = source.recipe()
    same = all(getattr(recipe, name) == getattr(run.recipe, name) for name in ("model", "task", "predict", "seed"))
    if same and same_held_out(source, splits):
        share_predictions(source, folder, "base_*")


def _work(path: Path) -> None:
    end_with_parent()
    try:
        with as_messages(), owned(path):
            _compute(RunFolder(path))
    except TailorError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(1)


def _compute(folder: RunFolder) -> None:
    run = resolve_saved(folder.recipe())
    splits, _ = prepare(run)
    reconcile(folder, splits)
    run = with_speech_units(run, splits.learned, folder.codebook)
    seed_everything(run.recipe.seed)
    features = folder.path / "features"
    features.mkdir(exist_ok=True)
    model = open_base(run)
    check_same_base(folder.environment, model.identity)
    write_json(folder.environment, describe_environment(model.identity))
    write_held_out(folder, run.task, splits)
    cache = VisionFeatureCache(folder=features)
    predict_held_out(folder, run, splits, "base", model, cache)
    write_baselines(folder, run, splits, model, cache)
    model.model.requires_grad_(requires_grad=False)
    tiled = replace(model, tiles=run.recipe.train.tiles or model.tiles)
    make_batch_source(tiled, splits.learned, TrainingConfig.from_recipe(run.recipe), features)
    write_atomic(folder.path / DONE, "")
    predictions = folder.predictions("any").parent
    record(folder.path, folder.environment, predictions, folder.held_out, folder.data, folder.path / DONE)
