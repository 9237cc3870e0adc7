"""The learning curve: the law found again in made-up scores, the interval honest, points kept, nonsense refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mllm_tailor.commands.curve import draw_curve, expected_gain, read_sizes
from mllm_tailor.core.errors import RecipeError, RunError
from mllm_tailor.core.io import read_jsonl
from mllm_tailor.reporting import write_curve
from mllm_tailor.reporting.sentences import signed
from mllm_tailor.scoring import MetricScore, Ratios, Scores, fit_curve
from mllm_tailor.synthetic import draw_folder


def scores(values: list[float], better: Any = "higher") -> Scores:
    """Scores of samples with these shares of 1."""
    ratios = Ratios(tuple(values), (1.0,) * len(values))
    return Scores(tuple(str(place) for place in range(len(values))), {"exact": MetricScore(ratios, {}, better)})


def points(sizes: list[int], law: Any, better: str = "higher", held_out: int = 400) -> list[Scores]:
    """Scores that follow the law exactly: every held-out sample has the law's error."""
    return [
        scores([law(size) / 100 if better == "lower" else 1 - law(size) / 100] * held_out, better) for size in sizes
    ]


@pytest.mark.slow
@pytest.mark.parametrize("better", ["higher", "lower"])
def test_an_exact_law_is_found_again(better: str) -> None:
    """error = 120 n^-0.4; at twice 400 samples the error is 120 * 800^-0.4."""
    sizes = [25, 50, 100, 200, 400]
    found = fit_curve(sizes, points(sizes, lambda n: 120 * n**-0.4, better), "exact")
    assert (found.scale, found.exponent) == pytest.approx((120, 0.4), rel=1e-6)
    assert found.scatter < 1e-6
    gain = 120 * 400**-0.4 - 120 * 800**-0.4
    for value in (found.gain.value, found.gain.low, found.gain.high):
        assert value == pytest.approx(gain, rel=0.05)  # no noise anywhere, so hardly any width
    error = found.doubled.value if better == "lower" else 100 - found.doubled.value
    assert error == pytest.approx(120 * 800**-0.4, rel=1e-6)


@pytest.mark.slow
def test_the_interval_of_the_projection_covers_the_truth_as_often_as_it_says() -> None:
    """60 worlds of the same law with noisy points and few held-out samples: about 95 % of the intervals hold it."""
    generator, sizes, hits = np.random.default_rng(1), [25, 50, 100, 200, 400], 0
    truth = 150 * 400**-0.3 - 150 * 800**-0.3
    for world in range(60):
        shared = generator.uniform(size=300)
        noisy = [150 * n**-0.3 * np.exp(generator.normal(0, 0.05)) for n in sizes]
        found = fit_curve(
            sizes, [scores((shared > error / 100).astype(float).tolist()) for error in noisy], "exact",
           seed=world,
        )  # fmt: skip
        hits += found.gain.low <= truth <= found.gain.high
    assert 52 <= hits <= 60


def test_scores_that_fall_foresee_no_gain_and_the_words_say_so(tmp_path: Path) -> None:
    sizes = [25, 50, 100]
    found = fit_curve(sizes, points(sizes, lambda n: 10 * n**0.2), "exact")
    assert found.exponent < 0 and found.gain.high < 0
    assert f"gain is {signed(found.gain.value)} points" in expected_gain(found)
    write_curve("curve", found, found.values[0], expected_gain(found), "name: <x>", tmp_path / "curve.html")
    page = (tmp_path / "curve.html").read_text()
    assert "<svg" in page and "name: &lt;x&gt;" in page and "NaN" not in page


def test_perfect_scores_have_a_law_too() -> None:
    found = fit_curve([1, 2, 4], points([1, 2, 4], lambda n: 0.0), "exact")
    assert np.isfinite([found.gain.value, found.gain.low, found.gain.high]).all()
    assert found.doubled.value <= 100


def test_too_few_sizes_or_other_samples_are_refused() -> None:
    with pytest.raises(RunError, match="at least 3"):
        fit_curve([10, 20], points([10, 20], lambda n: 50.0), "exact")
    with pytest.raises(RunError, match="different held-out samples"):
        fit_curve([1, 2, 3], [scores([1.0]), scores([1.0]), scores([1.0, 0.0])], "exact")


@pytest.mark.parametrize("text", ["", "25,,50", "ten", "-5,10", "0,10"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="names no sizes"):
        read_sizes(text)


@pytest.fixture
def recipe(tiny_model_folder: Path, tmp_path: Path) -> Path:
    draw_folder(tmp_path / "receipts", 8, 3, seed=5)
    values = {
        "name": "tiny",
        "model": str(tiny_model_folder),
        "data": {
            "train": str(tmp_path / "receipts"), "held_out": {"column": "split", "value": "dev"}, "dev": 0.2
        },
        "task": {"extract": {"total": "amount"}},
        "method": {"name": "lora", "rank": 4},
        "train": {"epochs": 1, "batch_size": 4},
        "predict": {"max_new_tokens": 8},
        "output": str(tmp_path / "runs"),
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
def test_a_curve_that_cannot_be_drawn_is_refused_before_anything_trains(recipe: Path) -> None:
    with pytest.raises(RecipeError, match="8 samples to train on and 1 of the sizes 4, 25, 50 are smaller"):
        draw_curve(recipe, [], [4, 25, 50], exclude_faulty=False)
    with pytest.raises(RecipeError, match="this command takes one training"):
        draw_curve(recipe, ["stages=[{name: a}]"], [2, 4], exclude_faulty=False)
    with pytest.raises(RunError, match=r"2 held-out samples are 2 independent units .* needs at least 3"):
        draw_curve(recipe, ["data.held_out={fraction: 0.2}"], [2, 4], exclude_faulty=False)
    assert not list(recipe.parent.glob("runs/*/*/training.json"))


@pytest.mark.slow
def test_points_are_nested_share_the_untouched_model_and_are_not_trained_again(recipe: Path) -> None:
    found = draw_curve(recipe, [], [2, 4], exclude_faulty=False)
    folder = recipe.parent / "runs" / "tiny-curve"
    assert found.sizes == (2, 4, 8)
    seen = []
    for name in ("2", "4", "all"):
        rows = [row for _, row in read_jsonl(folder / name / "samples.jsonl")]
        seen.append({row["id"] for row in rows if row["part"] in ("train", "dev")})
        held_out = {row["id"] for row in rows if row["part"] == "held_out"}
        assert len(rows) == 11 and len(held_out) == 3  # the others are in the ledger as beyond the limit
    assert seen[0] < seen[1] < seen[2]
    base = [(folder / name / "predictions" / "base_unconstrained.jsonl").read_bytes() for name in ("2", "4", "all")]
    assert base[0] == base[1] == base[2]
    own = json.loads((folder / "4" / "scores.json").read_text())
    assert found.values[1].value == pytest.approx(own["gain"][found.metric]["tuned"]["value"])
    times = [(folder / name / "training.json").stat().st_mtime_ns for name in ("2", "4", "all")]
    (folder / "4" / "report.html").unlink()  # as if killed before its report
    assert draw_curve(recipe, [], [2, 4], exclude_faulty=False) == found
    assert times == [(folder / name / "training.json").stat().st_mtime_ns for name in ("2", "4", "all")]
    assert "<svg" in (folder / "curve.html").read_text()
    assert json.loads((folder / "curve.json").read_text())["sizes"] == [2, 4, 8]
