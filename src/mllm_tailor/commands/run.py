"""`tailor run` and `tailor report`: a recipe's one run, or its stages in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mllm_tailor.commands.console import show_json
from mllm_tailor.commands.progress_tables import show_event
from mllm_tailor.core.errors import RecipeError
from mllm_tailor.data.reviews.sources import review_sources
from mllm_tailor.recipe import make_recipe, read_recipe
from mllm_tailor.run.execute import execute, report_again
from mllm_tailor.run.mapper import Mapper, in_turn
from mllm_tailor.run.options import Options
from mllm_tailor.run.peers import follows
from mllm_tailor.run.publish import check_store, publish_run
from mllm_tailor.run.run_dir import RunFolder, read_scores


def run_recipe(
    path: Path,
    overrides: list[str],
    *,
    exclude_faulty: bool,
    fresh: bool,
    accept_changes: bool = False,
    reviews: Sequence[Path] = (),
    mapper: Mapper = in_turn,
) -> RunFolder:
    """The whole recipe over its run folder. Called again, it continues where it stopped.

    With `reviews` their finished documents are learned, too, in a run of its own: NAME-with-40 after 40 documents.
    """
    recipe = read_recipe(path, overrides)
    before = Path(recipe.output) / recipe.name if reviews else None
    if reviews:
        if recipe.stages:
            raise RecipeError(f"{path}: has stages — name the review in `data.sources` of the stage that learns it")
        values = recipe.model_dump(mode="json")
        sources, count = review_sources(reviews)
        values["data"]["sources"] = [*values["data"]["sources"], *sources]
        if not any(word.startswith("name=") for word in overrides):
            values["name"] = f"{recipe.name}-with-{count}"
        recipe = make_recipe(values, str(path))
    if mapper is not in_turn and recipe.data.held_out.folds is None:
        raise RecipeError(
            "--on: only folds are tasks of their own (data.held_out.folds) — `tailor launch` trains on many nodes"
        )
    check_store(recipe.publish, recipe.name)
    folder = execute(
        recipe,
        Options(exclude_faulty, fresh, accept_changes, mapper, before),
        show_event,
    )
    publish_run(folder, recipe.publish)
    if not follows():
        show_run(folder)
    return folder


def report_run(path: Path) -> RunFolder:
    """Score what a run's folder holds and write its report; no model is opened and no data set is read."""
    folder = report_again(path, show_event)
    show_run(folder)
    return folder


def show_run(folder: RunFolder) -> None:
    """Print what a finished run has brought, if JSON was asked for."""
    show_json({"run": str(folder.path), "report": str(folder.report), "scores": read_scores(folder)})
