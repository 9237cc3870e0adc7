"""A whole recipe, its one run or its stages, over one run folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mllm_tailor.core.failures import as_messages
from mllm_tailor.recipe import Recipe, stage_recipes
from mllm_tailor.run.data_changes import SHOWN, changed_files
from mllm_tailor.run.dataset import prepare
from mllm_tailor.run.events import Notify, ignore
from mllm_tailor.run.folds import is_cross_validated, run_folds
from mllm_tailor.run.limits import without_unreadable
from mllm_tailor.run.lock import owned
from mllm_tailor.run.options import DEFAULT, Options
from mllm_tailor.run.peers import together
from mllm_tailor.run.pipeline import check_model, check_run, report, run_pipeline
from mllm_tailor.run.resolve import ResolvedRun, resolve, resolve_here
from mllm_tailor.run.run_dir import RunFolder, finished, open_run, own_run
from mllm_tailor.run.shared_baseline import take_over_base
from mllm_tailor.run.stages import check_stages, report_stages, run_stages
from mllm_tailor.run.worker_processes import work_along

logger = logging.getLogger(__name__)


def resolve_stages(recipe: Recipe) -> list[ResolvedRun]:
    """The recipe's stages, or the recipe itself where it has none, resolved and checked.

    Raises:
        RecipeError: naming the setting, before anything but settings that lie in the data is read.
    """
    runs = [resolve(part) for part in stage_recipes(recipe) or (recipe,)]
    for run in runs:
        check_run(run)
    check_stages(runs)
    return runs


def execute(recipe: Recipe, options: Options = DEFAULT, notify: Notify = ignore) -> RunFolder:
    """Run the whole recipe over its run folder. Called again, it continues where it stopped.

    Of processes that were started together (`run.peers`), rank 0 runs the recipe and the others join in its work.

    Raises:
        TailorError: with what is wrong and what to do about it.
    """
    with as_messages(), together() as peers:
        if peers is not None and peers.rank > 0:
            work_along(peers)
            return RunFolder(Path(recipe.output) / recipe.name)
        runs = resolve_stages(recipe)
        with own_run(recipe if recipe.stages else runs[0].recipe, fresh=options.fresh) as folder:
            if finished(folder) and not _redo(folder, accept=options.accept_changes):
                logger.info("%s is finished. Report: %s", folder.path, folder.report)
            else:
                _execute(folder, runs, options, notify, staged=bool(recipe.stages))
    return folder


def _execute(folder: RunFolder, runs: Sequence[ResolvedRun], options: Options, notify: Notify, *, staged: bool) -> None:
    splits = [prepare(run, exclude_faulty=options.exclude_faulty)[0] for run in runs]
    if options.exclude_faulty or any(run.recipe.data.faulty == "exclude" for run in runs):
        splits = [without_unreadable(run, split) for run, split in zip(runs, splits, strict=True)]
    if staged:
        run_stages(
            folder,
            list(zip(runs, splits, strict=True)),
            exclude_faulty=options.exclude_faulty,
            accept_changes=options.accept_changes,
            notify=notify,
        )
    elif is_cross_validated(runs[0]):
        check_model(runs[0])
        run_folds(folder, runs[0], splits[0], options, notify)
    else:
        check_model(runs[0])
        if options.base_replies is not None:
            take_over_base(options.base_replies, folder, runs[0], splits[0])
        run_pipeline(folder, runs[0], splits[0], notify, accept_changes=options.accept_changes)


def _redo(folder: RunFolder, *, accept: bool) -> bool:
    """Whether files that a finished run read have changed, and the changes are accepted; else they are named."""
    lines = _changed_files(folder)
    if lines and not accept:
        logger.warning(
            "The data changed after this run had used them (--accept-changes computes again what followed from them, "
            "--fresh begins anew):\n%s",
            _list(lines),
        )
    return bool(lines) and accept


def report_again(path: Path, notify: Notify = ignore) -> RunFolder:
    """Score what a run's folder holds and write its report; no model is opened and no data set is read.

    Raises:
        RunError: when the run is unfinished or damaged.
    """
    with as_messages():
        open_run(path)
        folder = RunFolder(path)
        with owned(path):
            recipe = folder.recipe()
            if lines := _changed_files(folder):
                logger.warning(
                    "The data changed after this run had used them. The scores are still over all held-out samples, "
                    "with the labels and replies of then; `tailor run RECIPE --accept-changes` redoes them:\n%s",
                    _list(lines),
                )
            if recipe.stages:
                report_stages(folder, notify)
            else:
                report(folder, resolve_here(recipe), notify)
    return folder


def _changed_files(folder: RunFolder) -> list[str]:
    stages = [RunFolder(folder.path / stage.name) for stage in stage_recipes(folder.recipe())] or [folder]
    return list(dict.fromkeys(line for stage in stages for line in changed_files(stage)))


def _list(lines: Sequence[str]) -> str:
    rest = [f"… and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(f"  {line}" for line in [*lines[:SHOWN], *rest])
