"""A whole recipe, its one run or its stages, over one run folder."""

from __future__ import annotations

import logging
from pathlib import Path

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.data import shared_system
from mllm_tailor.recipe import Recipe, stage_recipes
from mllm_tailor.run.dataset import prepare
from mllm_tailor.run.events import Notify, ignore
from mllm_tailor.run.pipeline import check_model, check_run, report, run_pipeline
from mllm_tailor.run.resolve import ResolvedRun, resolve
from mllm_tailor.run.run_dir import RunFolder, finished, open_run, start_run
from mllm_tailor.run.stages import check_stages, report_stages, run_stages

logger = logging.getLogger(__name__)


def resolve_stages(recipe: Recipe) -> list[ResolvedRun]:
    """The recipe's stages, or the recipe itself where it has none, resolved and checked.

    Raises:
        RecipeError: naming the setting, before anything but settings that lie in the data is read.
    """
    runs = [resolve(_with_shared_system(part)) for part in stage_recipes(recipe) or (recipe,)]
    for run in runs:
        check_run(run)
    check_stages(runs)
    return runs


def _with_shared_system(recipe: Recipe) -> Recipe:
    """The recipe with the system text that all its rows share, so that predict, chat and export use it too.

    Raises:
        RecipeError: where the recipe sets another one, which the rows' own text would replace in training.
    """
    data, model = recipe.data, recipe.model
    if not Path(data.train).exists():
        return recipe  # reading names it
    system = shared_system(data.train, data.layout)
    if system is None or system == model.system:
        return recipe
    if model.system is not None:
        raise RecipeError(
            f"`model.system` is {model.system[:60]!r}, but every row brings the system text {system[:60]!r} — leave "
            "one of them out"
        )
    return recipe.model_copy(update={"model": model.model_copy(update={"system": system})})


def execute(recipe: Recipe, *, exclude_faulty: bool = False, fresh: bool = False, notify: Notify = ignore) -> RunFolder:
    """Run the whole recipe over its run folder. Called again, it continues where it stopped.

    Raises:
        TailorError: with what is wrong and what to do about it.
    """
    runs = resolve_stages(recipe)
    folder = start_run(recipe if recipe.stages else runs[0].recipe, fresh=fresh)
    if finished(folder):
        logger.info("%s is finished. Report: %s", folder.path, folder.report)
        return folder
    splits = [prepare(run, exclude_faulty=exclude_faulty)[0] for run in runs]
    if recipe.stages:
        run_stages(folder, list(zip(runs, splits, strict=True)), exclude_faulty=exclude_faulty, notify=notify)
    else:
        check_model(runs[0])
        run_pipeline(folder, runs[0], splits[0], notify)
    return folder


def report_again(path: Path, notify: Notify = ignore) -> RunFolder:
    """Score what a run's folder holds and write its report; no model is opened and no data set is read.

    Raises:
        RunError: when the run is unfinished or damaged.
    """
    folder = RunFolder(path)
    if folder.recipe_file.is_file() and folder.recipe().stages:
        report_stages(folder, notify)
        return folder
    folder = open_run(path)
    report(folder, resolve(folder.recipe()), notify)
    return folder
