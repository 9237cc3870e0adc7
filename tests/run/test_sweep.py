"""Budgets, and successive halving over them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from mllm_tailor.commands.sweep import Candidate, Trial, best_third, count_rounds, sweep
from mllm_tailor.core.errors import RecipeError, RunError, TailorError
from mllm_tailor.recipe import Train, read_recipe
from mllm_tailor.run.budget import Budget, read_budget
from mllm_tailor.synthetic import draw_folder


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("10m", Budget("minutes", 10)),
        ("2.5 min", Budget("minutes", 2.5)),
        ("3e", Budget("epochs", 3)),
        ("1 epoch", Budget("epochs", 1)),
        ("200 steps", Budget("steps", 200)),
        ("8GB", Budget("memory", 8 * 2**30)),
        ("512 MB", Budget("memory", 512 * 2**20)),
    ],
)
def test_budgets(words: str, wanted: Budget) -> None:
    assert read_budget(words) == wanted


@pytest.mark.parametrize("words", ["10", "ten minutes", "3 parsecs", "0m", ""])
def test_what_is_no_budget(words: str) -> None:
    with pytest.raises(RecipeError, match="not a budget"):
        read_budget(words)


def test_steps_are_epochs_of_the_data() -> None:
    assert Train(steps=10, batch_size=4, epochs=99).passes(18) == 2
    assert Budget("memory", 10).train() == {}
    assert Budget("memory", 10).exceeded(11)
    assert not Budget("minutes", 10).exceeded(11)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("2.5m", (2.5, None, 1000.0)),
        ("2.5 CPU minutes", (None, None, 1000.0)),
        ("200 steps", (None, 67, 9.0)),
        ("3e", (None, None, 1.0)),
    ],
)
def test_a_budget_replaces_the_limits_of_the_recipe(words: str, wanted: tuple[float | None, ...]) -> None:
    """A third of steps and epochs; minutes end a training whatever its epochs."""
    values = Train(epochs=9, steps=7, max_minutes=5).model_dump()
    budget = read_budget(words) if words.startswith("2.5") else read_budget(words).part(1 / 3)
    train = Train.model_validate(values | budget.train())
    assert (train.max_minutes, train.steps, train.epochs) == wanted
    assert train.max_cpu_minutes == (2.5 if words == "2.5 CPU minutes" else None)


def test_halving() -> None:
    """Nine candidates: three rounds of 9, 3 and 1; what failed does not go on; lower can be better."""
    assert [count_rounds(number) for number in (1, 2, 3, 8, 9, 27)] == [1, 1, 2, 2, 3, 4]
    names = [Candidate(rate, None) for rate in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]
    found = [Trial(1, one, one.learning_rate if one.learning_rate != 6 else None) for one in names]
    assert best_third(found, last=False, lower=False) == [names[4], names[3]]
    assert best_third(found, last=False, lower=True) == names[:2]
    assert best_third(found, last=True, lower=False) == [names[4]]
    with pytest.raises(TailorError, match="every candidate failed"):
        best_third([Trial(1, names[0], None, problem="it broke")], last=True, lower=False)


def write(folder: Path, model: Path, **changes: object) -> Path:
    draw_folder(folder / "data", 8, 2, seed=5)
    values = {
        "name": "tiny", "model": str(model), "output": str(folder / "runs"),
        "data": {"train": str(folder / "data"), "held_out": {"column": "split", "value": "dev"}, "dev": 0.25},
        "task": {"extract": {"total": "amount"}},
        "method": {"name": "lora", "rank": 4},
        "train": {"epochs": 1, "batch_size": 4},
        "predict": {"max_new_tokens": 12},
    }  # fmt: skip
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


@pytest.mark.slow
def test_a_sweep_finds_and_resumes(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Four candidates, one of which cannot train: a round of four, a round of one; a second call trains nothing."""
    recipe = write(tmp_path, tiny_model_folder)
    best = sweep(recipe, [], [1e-3, 1e-2], [2, 65], "6 steps")
    folder = tmp_path / "runs" / "tiny-sweep"
    rows = json.loads((folder / "sweep.json").read_text())
    assert [row["round"] for row in rows] == [1, 1, 1, 1, 2]
    assert [row["score"] is None for row in rows[:4]] == [False, True, False, True]
    assert "above the width 64" in rows[1]["problem"]
    steps = {row["round"]: folder / f"round-{row['round']}" / best.name / "training.json" for row in rows}
    assert [json.loads(steps[number].read_text())["steps"] for number in (1, 2)] == [2, 6]
    assert not list(folder.rglob("predictions/base*"))  # held-out samples are not looked at
    found = read_recipe(folder / "best.yaml")
    assert (found.name, found.train.learning_rate, found.method["rank"]) == ("tiny", best.learning_rate, 2)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("training.json")}
    assert sweep(recipe, [], [1e-3, 1e-2], [2, 65], "6 steps") == best
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("training.json")} == before
    for file in (path for path in tmp_path.rglob("*") if path.suffix in (".png", ".jpg")):
        with Image.open(file) as image:
            image.rotate(180).save(file)
    with pytest.raises(RunError, match="the data changed"):  # not a best candidate among those that are left
        sweep(recipe, [], [1e-3, 1e-2], [2, 65], "6 steps")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "rates", "budget", "words"),
    [
        (["data.dev=0"], [1e-3, 1e-2], "3e", "set data.dev=0.1"),
        ([], [1e-3], "3e", "at least two"),
        ([], [1e-3, 1e-2], "8GB", "divides its budget between rounds, which memory does not allow"),
        (["method=full"], [1e-3, 1e-2], "3e", "rank"),
    ],
)
def test_refused_before_anything_runs(
    overrides: list[str], rates: list[float], budget: str, words: str, tmp_path: Path
) -> None:
    recipe = write(tmp_path, tmp_path / "no model")
    with pytest.raises(RecipeError, match=words):
        sweep(recipe, overrides, rates, [8] if overrides == ["method=full"] else [], budget)
