"""`tailor run` and `tailor report`: a recipe's one run, or its stages in order."""

from __future__ import annotations

from pathlib import Path

from mllm_tailor.commands.progress_tables import show_event
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.execute import execute, report_again
from mllm_tailor.run.run_dir import RunFolder


def run_recipe(path: Path, overrides: list[str], *, exclude_faulty: bool, fresh: bool) -> RunFolder:
    """The whole recipe over its run folder. Called again, it continues where it stopped."""
    recipe = read_recipe(path, overrides)
    return execute(recipe, exclude_faulty=exclude_faulty, fresh=fresh, notify=show_event)


def report_run(path: Path) -> RunFolder:
    """Score what a run's folder holds and write its report; no model is opened and no data set is read."""
    return report_again(path, show_event)
