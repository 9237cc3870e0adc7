"""Every recipe that ships is valid, names no data folder, and says where its data can be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm_tailor.methods import make_method
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.resolve import metric_names
from mllm_tailor.tasks import open_task

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_from_task_to_metrics(path: Path) -> None:
    recipe = read_recipe(path)
    make_method(recipe)
    metric_names(recipe.score, open_task(recipe.task_name, recipe.task_settings))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_takes_its_folder_from_the_command_line(path: Path) -> None:
    assert read_recipe(path).data.train == "FOLDER"
    first = path.read_text(encoding="utf-8").split("\nname:")[0]
    assert first.startswith("#") and "http" in first and "data.train=FOLDER" in first
    assert any(licence in first for licence in ("CC BY", "CC0", "MIT"))
