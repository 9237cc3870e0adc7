"""`tailor run` and `tailor report`: a recipe's one run, or its stages in order."""

from __future__ import annotations

from pathlib import Path

from mllm_tailor.commands.console import show_json
from mllm_tailor.commands.progress_tables import show_event
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.execute import execute, report_again
from mllm_tailor.run.options import Options
from mllm_tailor.run.run_dir import RunFolder, read_scores


def run_recipe(
    path: Path, overrides: list[str], *, exclude_faulty: bool, fresh: bool, accept_changes: bool = False
) -> RunFolder:
    """The whole recipe over its run folder. Called again, it continues where it stopped."""
    recipe = read_recipe(path, overrides)
    folder = execute(recipe, Options(exclude_faulty, fresh, accept_changes), show_event)
    _show_document(folder)
    return folder


def report_run(path: Path) -> RunFolder:
    """Score what a run's folder holds and write its report; no model is opened and no data set is read."""
    folder = report_again(path, show_event)
    _show_document(folder)
    return folder


def _show_document(folder: RunFolder) -> None:
    show_json({"run": str(folder.path), "report": str(folder.report), "scores": read_scores(folder)})
