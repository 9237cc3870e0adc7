"""The recipe: short forms, overrides, and errors that name the nearest right word."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.recipe import Recipe, dump_recipe, make_recipe, read_recipe, stage_recipes
from mllm_tailor.recipe.read import apply_overrides
from mllm_tailor.recipe.yaml_loader import load_yaml

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
        make_recipe(MINIMAL | {"train": {"epoch": 1, "batch_sizes": 2}})
    assert "did you mean `epochs`" in str(caught.value) and "did you mean `batch_size`" in str(caught.value)


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
        ("data: x\ndata: y\ntask: answer\n", "stated twice"),
        ("data: [x\n", "not valid YAML"),
        ("- a\n- b\n", "a recipe is a mapping"),
        ("data: !!python/object/apply:os.system ['true']\ntask: answer\n", "not valid YAML"),
    ],
)
def test_bad_files_are_refused_with_a_reason(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        read_recipe(write(tmp_path, text))


def test_a_folder_says_which_recipe_it_holds(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a folder, not a recipe"):
        read_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text("data: x")
    with pytest.raises(RecipeError, match=r"name the recipe in it: .*recipe\.yaml"):
        read_recipe(tmp_path)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="tailor init"):
        read_recipe(tmp_path / "none.yaml")


@pytest.mark.slow
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


STAGED: dict[str, Any] = {
    "name": "vqa",
    "data": {"train": "folder", "limit": 9},
    "method": {"name": "lora", "rank": 8},
    "train": {"epochs": 2, "batch_size": 4},
    "stages": [
        {"name": "captions", "task": "caption", "train": {"epochs": 1}, "method": {"rank": 4}},
        {"name": "questions", "task": "answer", "data": "other", "method": "full", "score": "exact"},
    ],
}


def test_a_stage_changes_what_it_says_and_keeps_the_rest() -> None:
    first, second = stage_recipes(make_recipe(STAGED))
    assert (first.name, first.output) == ("1-captions", "runs/vqa")
    assert (first.train.epochs, first.train.batch_size, second.train.epochs) == (1, 4, 2)
    assert first.method == {"name": "lora", "rank": 4} and second.method == {"name": "full"}
    assert (first.data.train, first.data.limit) == ("folder", 9)
    assert (second.data.train, second.data.limit) == ("other", None)  # names `train`, so it stands alone
    assert (first.task_name, second.task_name, second.score) == ("caption", "answer", ["exact"])


def test_the_resolved_copy_of_a_staged_recipe_means_the_same(tmp_path: Path) -> None:
    recipe = make_recipe(STAGED)
    again = read_recipe(write(tmp_path, dump_recipe(recipe)))
    assert again == recipe and stage_recipes(again) == stage_recipes(recipe)


def test_overrides_reach_into_a_stage_by_name_or_number() -> None:
    values = apply_overrides(dict(STAGED), ["stages.questions.train.epochs=7", "stages.1.data.limit=3"])
    first, second = stage_recipes(make_recipe(values))
    assert (second.train.epochs, first.data.limit) == (7, 3)
    assert "train" not in STAGED["stages"][1]
    with pytest.raises(RecipeError, match="did you mean `questions`"):
        apply_overrides(dict(STAGED), ["stages.question.train.epochs=7"])
    with pytest.raises(RecipeError, match="name a setting of one entry"):
        apply_overrides(dict(STAGED), ["stages.train=7"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": [{"name": "a", "trian": {}}]}, ["stages.0.trian", "did you mean `train`"]),
        ({"stages": [{"task": "answer"}]}, ["`stages.0.name` is missing"]),
        ({"stages": [{"name": "a/b"}]}, ["stages.0.name"]),
        ({"stages": [{"name": "a"}, {"name": "a"}]}, ["two stages are called `a`"]),
        ({"stages": [{"name": "a", "train": {"epoch": 1}}]}, ["stage 1 (a)", "did you mean `epochs`"]),
        ({"data": {"train": "x", "sources": [{"train": "y", "repeat": 2, "weight": 1}]}}, ["not both"]),
        ({"data": {"train": "x", "sources": [{"train": "y", "weight": -1}]}}, ["data.sources.0.weight"]),
        ({"data": {"train": "x", "sources": [{"train": "y", "taks": {}}]}}, ["did you mean `task`"]),
        ({"data": {"train": "x", "sources": [{"train": "y", "task": {"a": 1, "b": 2}}]}}, ["exactly one task"]),
    ],
)
def test_faults_of_stages_and_sources_are_named(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(MINIMAL | changes)
    for word in words:
        assert word in str(caught.value)


def test_data_that_every_stage_names_need_not_be_said_in_common() -> None:
    stages = [{"name": name, "data": name, "task": "answer"} for name in ("a", "b")]
    assert [one.data.train for one in stage_recipes(make_recipe({"stages": stages}))] == ["a", "b"]
    with pytest.raises(RecipeError, match="`data` is missing"):
        make_recipe({"task": "answer", "stages": [{"name": "a", "data": "a"}, {"name": "b"}]})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("seed: {[a]: b}", "line 3: a list or mapping is no name of a setting"),
        ("? {a: b}\n: c", "line 3: a list or mapping is no name of a setting"),
        ("seed: 2024-02-31", "line 3: the value '2024-02-31' of `seed` is no valid timestamp"),
        ("train: {epochs: !!int abc}", "the value 'abc' of `epochs` is no valid int"),
        ("seed: !!bool abc", "of `seed` is no valid bool"),
        ("seed: !!float abc", "of `seed` is no valid float"),
        (f"score: {'[' * 3000}{']' * 3000}", "line 3: nested more than 40 deep"),
        (f"seed: {'9' * 5000}", "of `seed` is no valid int"),
        ("model: &a {path: *a}", "not valid YAML|no valid|refers to itself"),
        ("seed: !!python/object:os.system x", "not valid YAML"),
    ],
)
def test_odd_yaml_is_refused_with_its_line(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(f"data: x\ntask: answer\n{line}\n")
    with pytest.raises(RecipeError, match=words) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 400


@given(st.text(alphabet=":-[]{}&*!?|>'\"#, \nab1.~<", max_size=60))
def test_any_text_is_a_recipe_or_a_recipe_error(text: str) -> None:
    with contextlib.suppress(RecipeError):
        make_recipe({"data": "x", "task": "answer", "score_by": [load_yaml(text, "text")]})
