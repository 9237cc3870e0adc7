"""Boxes among the columns of a row: which task init proposes, in which unit and order, and the box that is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.label_files import write
from PIL import Image

from mllm_tailor.core.errors import DataError
from mllm_tailor.data import DataIssue, propose_recipe, read_samples
from mllm_tailor.recipe import read_recipe
from mllm_tailor.tasks import open_task

BOX = [[250, 250, 500, 750]]


def proposed(folder: Path, files: dict[str, Any], size: tuple[int, int] = (400, 200)) -> tuple[str, str, list[Any]]:
    """The task that init proposes, the recipe, and the labels of the samples."""
    (folder / "set").mkdir()
    Image.new("RGB", size).save(folder / "set" / "a.png")
    issues: list[DataIssue] = []
    dataset = read_samples(write(folder / "set", files), on_issue=issues.append)
    text = propose_recipe(dataset, issues)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = read_recipe(folder / "recipe.yaml")
    task = open_task(recipe.task_name, recipe.task_settings)
    return recipe.task_name, text, [task.labels(sample).get("box") for sample in dataset.samples]


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"box": [0.25, 0.25, 0.5, 0.75]}, "unit: shares"),
        ({"box": [250, 250, 500, 750]}, "{}"),
        ({"box": [100, 50, 200, 150]}, "unit: pixels"),
        ({"bbox": [100, 50, 200, 150]}, "label: bbox, unit: pixels"),
        ({"bbox": [100, 50, 100, 100]}, "unit: pixels, format: xywh"),
        ({"bbox": [0.25, 0.25, 0.25, 0.5]}, "unit: shares, format: xywh"),
        ({"xmin": 100, "ymin": 50, "xmax": 200, "ymax": 150}, "unit: pixels"),
        ({"XMin": 0.25, "XMax": 0.5, "YMin": 0.25, "YMax": 0.75}, "unit: shares"),
    ],
)
@pytest.mark.parametrize("phrase", ["question", "label", "expression"])
def test_unit_and_order_are_decided_for_the_set(
    row: dict[str, Any], settings: str, phrase: str, tmp_path: Path
) -> None:
    rows = [{"image": "a.png", phrase: f"cup {number}", **row} for number in range(3)]
    name, text, boxes = proposed(tmp_path, {"rows.jsonl": rows})
    assert (name, boxes) == ("ground", BOX * 3) and settings in text


def test_a_table_of_boxes_is_no_form_to_extract(tmp_path: Path) -> None:
    rows = "filename,width,height,class,xmin,ymin,xmax,ymax\n" + "a.png,400,200,cup,100,50,200,150\n" * 2
    name, _, boxes = proposed(tmp_path, {"_annotations.csv": rows})
    assert (name, boxes) == ("ground", BOX * 2)


def test_both_orders_may_fit_and_the_recipe_says_so(tmp_path: Path) -> None:
    _, text, _ = proposed(tmp_path, {"rows.jsonl": [{"image": "a.png", "label": "cup", "bbox": [10, 10, 40, 40]}] * 3})
    assert "would also fit as xywh" in text


def test_boxes_of_other_models_are_answers_as_they_stand(tmp_path: Path) -> None:
    said = '[{"bbox_2d": [10, 20, 40, 60], "label": "cup"}]'
    message = [{"role": "user", "content": "<image>Where?"}, {"role": "assistant", "content": said}]
    assert proposed(tmp_path, {"rows.jsonl": [{"messages": message, "images": ["a.png"]}]})[0] == "answer"


@pytest.mark.parametrize("box", [[0.1, 0.2, 0.3, 0.5], [10, 10, 10.4, 40]])
def test_a_box_of_less_than_a_thousandth_is_refused(box: list[float], tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (sample,) = read_samples(
        write(tmp_path, {"rows.jsonl": [{"image": "a.png", "question": "cup", "box": box}]})
    ).samples
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the box .* less than a thousandth"):
        open_task("ground").labels(sample)
