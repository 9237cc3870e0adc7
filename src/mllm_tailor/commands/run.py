"""`tailor run` and `tailor report`: a recipe's one job, or its stages in order."""

from __future__ import annotations

from pathlib import Path

from mllm_tailor.commands.console import show, show_heading
from mllm_tailor.recipe import read_recipe, stage_recipes
from mllm_tailor.run.dataset import prepare, prepare_again
from mllm_tailor.run.pipeline import check_model, check_words, report_job, run_job
from mllm_tailor.run.resolve import resolve_from_data
from mllm_tailor.run.run_dir import RunFolder, finished, open_run, start_run
from mllm_tailor.run.stages import check_stages, report_stages, run_stages
from mllm_tailor.tasks import make_task


def run_recipe(path: Path, overrides: list[str], *, exclude_faulty: bool, fresh: bool) -> RunFolder:
    """The whole job over one run folder. Called again, it goes on where it stopped."""
    recipe = read_recipe(path, overrides)
    parts = [resolve_from_data(one) for one in stage_recipes(recipe) or (recipe,)]
    for one in parts:
        check_words(one)
    check_stages(parts)
    run = start_run(recipe if recipe.stages else parts[0], fresh=fresh)
    if finished(run):
        show(f"{run.path} is finished. Report: {run.report}")
        return run
    show_heading(f"{recipe.name}: {recipe.data.train}")
    jobs = [prepare(one, make_task(one), exclude_faulty=exclude_faulty) for one in parts]
    if recipe.stages:
        run_stages(run, jobs, exclude_faulty=exclude_faulty)
    else:
        check_model(parts[0])
        run_job(run, jobs[0])
    return run


def report_run(path: Path) -> RunFolder:
    """Score what a run's folder holds and write its report; no model is opened."""
    run = RunFolder(path)
    if run.recipe_file.is_file() and run.recipe().stages:
        report_stages(run)
        return run
    run = open_run(path)
    report_job(run, prepare_again(run))
    return run
