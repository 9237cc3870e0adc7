"""The recipe: short forms, overrides, and errors that name the nearest right word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.recipe import Recipe, dump_recipe, make_recipe, read_recipe
from mllm_tailor.recipe.read import apply_overrides

MINIMAL: dict[str, Any] = {"data": "folder", "task": {"extract": {"total": "string"}}}


def write(folder: Path, text: str) -> Path:
    path = folder / "receipts.yaml"
    path.write_text(text)
    return path


def test_short_forms_say_the_same_as_long_ones() -> None:
    short = make_recipe({"model": "embedded", "data": "folder", "task": "answer", "method": "lora", "score": "exact"})
    long = make_recipe(
        {
            "model": {"path": "embedded"},
            "data": {"train": "folder"},
            "task": {"answer": {}},
            "method": {"name": "lora"},
            "score": ["exact"],
        }
    )
    assert short == long


def test_the_file_names_the_run(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, "data: x\ntask: answer\n")).name == "receipts"


def test_resolved_copy_reads_back_equal(tmp_path: Path) -> None:
    recipe = make_recipe(MINIMAL | {"train": {"learning_rate": 2e-5}, "seed": 7})
    path = write(tmp_path, dump_recipe(recipe))
    assert read_recipe(path) == recipe


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (MINIMAL | {"trian": {}}, ["unknown setting `trian`", "`train`"]),
        (MINIMAL | {"train": {"leraning_rate": 1}}, ["train.leraning_rate", "did you mean `learning_rate`?"]),
        (MINIMAL | {"train": {"epochs": -1}}, ["train.epochs", "greater than 0"]),
        ({"task": "answer"}, ["`data` is missing"]),
        (MINIMAL | {"data": {"train": "x", "held_out": {"fraction": 0.1, "folder": "y"}}}, ["exactly one"]),
        (MINIMAL | {"data": {"train": "x", "held_out": {"column": "split"}}}, ["`column` and `value` belong together"]),
        (MINIMAL | {"task": {"extract": {}, "answer": {}}}, ["exactly one task"]),
        (MINIMAL | {"method": {"rank": 4}}, ["needs a `name`"]),
    ],
)
def test_faults_name_the_setting_and_the_mend(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(values)
    for word in words:
        assert word in str(caught.value)


def test_every_fault_is_reported_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(MINIMAL | {"train": {"epoch": 1, "batchs": 2}})
    assert "did you mean `epochs`" in str(caught.value) and "did you mean `batch`" in str(caught.value)


def test_overrides_reach_into_short_forms() -> None:
    values = apply_overrides(
        {"model": "embedded", "data": "x", "task": "answer"}, ["model.dtype=float32", "train.epochs=2"]
    )
    recipe = make_recipe(values)
    assert recipe.model.path == "embedded" and recipe.model.dtype == "float32" and recipe.train.epochs == 2


@pytest.mark.parametrize("word", ["epochs", "=3", "train.epochs 3"])
def test_a_word_that_is_no_override_is_refused(word: str) -> None:
    with pytest.raises(RecipeError, match="not an override"):
        apply_overrides({}, [word])


def test_exponents_without_a_dot_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "data: x\ntask: answer\ntrain: {learning_rate: 5e-4}\n")
    assert read_recipe(path).train.learning_rate == 5e-4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: x\ndata: y\ntask: answer\n", "said twice"),
        ("data: [x\n", "not valid YAML"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("data: !!python/object/apply:os.system ['true']\ntask: answer\n", "not valid YAML"),
    ],
)
def test_bad_files_are_refused_with_a_reason(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        read_recipe(write(tmp_path, text))


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="tailor init"):
        read_recipe(tmp_path / "none.yaml")


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        ),
        max_size=5,
    )
)
def test_any_mapping_is_a_recipe_or_a_clear_error(values: dict[str, Any]) -> None:
    try:
        assert isinstance(make_recipe(MINIMAL | values), Recipe)
    except RecipeError as error:
        assert str(error)
