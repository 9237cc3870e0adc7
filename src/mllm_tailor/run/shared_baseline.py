"""What several runs on the same samples have in common, done once: the untouched model's replies, and the features.

It happens in a process of its own, so that no run's peak memory holds it.
"""

from __future__ import annotations

import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path

from mllm_tailor.core.device import computes_in_bf16, seed_everything
from mllm_tailor.core.errors import RunError, TailorError
from mllm_tailor.core.io import write_atomic
from mllm_tailor.generation import VisionFeatureCache
from mllm_tailor.recipe import Recipe, make_recipe
from mllm_tailor.run.dataset import prepare
from mllm_tailor.run.pipeline import copy_nearest, predict_held_out
from mllm_tailor.run.predict import open_base
from mllm_tailor.run.resolve import resolve_from_data
from mllm_tailor.run.run_dir import RunFolder, share_predictions, start_run
from mllm_tailor.run.speech_units import with_units
from mllm_tailor.tasks import make_task
from mllm_tailor.training.vision_cache import make_batch_source

DONE = "done"  # a file that says nothing is left to do


def compute_shared_baseline(recipe: Recipe, folder: Path) -> RunFolder:
    """The folder `shared` in `folder`, filled from the recipe's data and model unless it is; its method plays no part.

    Raises:
        RunError: when that fails; the reason was printed.
    """
    values = recipe.model_dump(mode="json") | {"name": "shared", "output": str(folder)}
    run = start_run(resolve_from_data(make_recipe(values)))
    if not (run.path / DONE).exists():
        process = multiprocessing.get_context("spawn").Process(target=_work, args=(run.path,))
        process.start()
        process.join()
        if process.exitcode:
            raise RunError("the untouched model could not read the samples, so there is nothing to compare with")
    return run


def hand_over(shared: RunFolder, run: RunFolder) -> None:
    """Give a run that has begun what was read once."""
    for names in ("base_*", "baseline_nearest"):
        share_predictions(shared, run, names)
    link = run.path / "features"
    if shared.features is not None and not link.exists():
        link.unlink(missing_ok=True)  # of a folder that has moved
        link.symlink_to(shared.features.resolve(), target_is_directory=True)


def _work(path: Path) -> None:
    try:
        _read(RunFolder(path))
    except TailorError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


def _read(run: RunFolder) -> None:
    recipe = run.recipe()
    job = with_units(prepare(recipe, make_task(recipe), exclude_faulty=False), run.codebook)
    seed_everything(recipe.seed)
    features = run.path / "features"
    features.mkdir(exist_ok=True)
    model = open_base(job.recipe)
    predict_held_out(run, job, "base", model, VisionFeatureCache(folder=features))
    copy_nearest(run, job, model)
    model.model.requires_grad_(False)
    seeing = replace(model, tiles=recipe.train.tiles or model.tiles)
    make_batch_source(seeing, job.learned, recipe, features, computes_in_bf16(recipe.model.dtype, model.device))
    write_atomic(run.path / DONE, "")
