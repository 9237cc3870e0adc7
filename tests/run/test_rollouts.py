"""Rewards of a run: metrics, weights, functions of the user's, and what a reward does not see."""

from __future__ import annotations

import copy
import sys
from types import ModuleType

import pytest

from mllm_tailor.core.errors import RecipeError, RunError
from mllm_tailor.core.sample import Sample
from mllm_tailor.recipe import make_recipe
from mllm_tailor.run.resolve import ResolvedRun, metric_names, resolve_saved
from mllm_tailor.run.rollouts import RewardScorer

SAMPLE = Sample("7", fields={"total": "12.50", "tip": ""}, source="labels.csv:7")


@pytest.fixture(scope="module")
def run() -> ResolvedRun:
    recipe = {"data": "unused", "task": {"extract": {"total": "amount", "tip": "amount"}}, "model": "tiny"}
    return resolve_saved(make_recipe(recipe))


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_rewards")
    module.short = lambda text, **_: 1 / (1 + len(text))  # type: ignore[attr-defined]
    module.raises = lambda **_: {}["absent"]  # type: ignore[attr-defined]
    module.nan = lambda **_: float("nan")  # type: ignore[attr-defined]
    module.no_function = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_rewards", module)


def test_the_headline_metric_is_the_default_and_the_others_are_watched(run: ResolvedRun) -> None:
    reward, watched = RewardScorer(run, None).for_sample(SAMPLE)('{"total": "12.50", "tip": ""}')
    assert reward == 1.0
    assert run.metrics[0] not in watched and set(run.metrics[1:]) <= watched.keys()
    assert (watched["unreadable"], watched["absent"], watched["invented"]) == (0, 0, 0)


def test_what_the_reward_does_not_see(run: ResolvedRun) -> None:
    score = RewardScorer(run, None).for_sample(SAMPLE)
    _, watched = score('{"total": "", "tip": "3.00"}')
    assert (watched["absent"], watched["invented"]) == (1.0, 1.0)
    assert score("no JSON")[1]["unreadable"] == 1.0


def test_a_weighted_sum_is_a_multiple_of_a_power_of_two(run: ResolvedRun, functions: None) -> None:
    reward, watched = RewardScorer(run, {"exact": 0.5, "my_rewards:short": 0.3}).for_sample(SAMPLE)("xx")
    assert reward == round((0.5 * 0.5 + 0.3 / 3) * 1024) / 1024  # an empty field that is left out is right
    assert "exact" not in watched and "my_rewards:short" not in watched


def test_a_task_without_a_metric_needs_one(run: ResolvedRun) -> None:
    bare = copy.copy(run.task)
    bare.metrics = ()
    with pytest.raises(RecipeError, match=r"`extract` has no metric of its own.*name one: `score`"):
        metric_names([], bare)
    assert metric_names(["exact"], bare) == ("exact",)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("exaxt", "exact"),
        ("my_rewards:absent", "cannot be imported"),
        ("no_such_package:reward", "install its package"),
        ("my_rewards:no_function", "is not a function"),
    ],
)
def test_a_reward_that_does_not_exist(name: str, words: str, run: ResolvedRun, functions: None) -> None:
    with pytest.raises(RecipeError, match=words):
        RewardScorer(run, name)


@pytest.mark.parametrize(("name", "words"), [("raises", "raised KeyError"), ("nan", "not a finite number")])
def test_a_reward_that_fails_names_the_row(name: str, words: str, run: ResolvedRun, functions: None) -> None:
    with pytest.raises(RunError, match=rf"labels.csv:7: the reward my_rewards:{name}.*{words}"):
        RewardScorer(run, f"my_rewards:{name}").for_sample(SAMPLE)("x")
