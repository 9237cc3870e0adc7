"""Calibrated confidence: values judged, curves fitted, promises kept over many trials, figures by their definitions."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.sample import Prediction
from mllm_tailor.scoring.accept import (
    choose_threshold,
    design_effect,
    error_interval,
    tail_probability,
    within_correlation,
)
from mllm_tailor.scoring.calibration import FEWEST, Calibration, cross_fitted, deal, fit
from mllm_tailor.scoring.judged import JudgedValue, deciding_metric, judge
from mllm_tailor.scoring.reliability import calibration_error, measure, ranking

KINDS = {"total": "amount", "items": "list", "items.price": "amount"}


def verdicts(label: dict, fields: dict) -> dict[str, bool]:
    paths = [*fields, *(f"items.{row}.{key}" for row, cells in enumerate(fields.get("items", [])) for key in cells)]
    prediction = Prediction("a", "", fields, raw={path: {"mean": 0.5} for path in paths})
    return {value.path: value.right for value in judge([label], [prediction], [0], "normalised_exact", KINDS)}


def test_values_are_judged_as_the_report_scores_them() -> None:
    label = {"company": "ACME Bhd", "total": "RM 9.00", "date": "", "city": "KL"}
    found = verdicts(label, {"company": "acme  bhd", "total": "9.0", "date": "", "city": "PJ", "invented": "x"})
    assert found == {"company": True, "total": True, "date": True, "city": False}
    assert deciding_metric(["fuzzy", "exact", "normalised_exact"]) == "normalised_exact"
    assert deciding_metric(["rouge_l", "bleu"]) is None


def test_cells_are_judged_beside_the_row_they_belong_to() -> None:
    label = {"items": [{"name": "TEA", "price": "2.00"}, {"name": "EGG", "price": "1.50"}]}
    told = [{"name": "EGG", "price": "1.5"}, {"name": "TEA", "price": "3.00"}, {"name": "HAM", "price": ""}]
    assert verdicts(label, {"items": told}) == {
        "items": False,
        "items.0.name": True,
        "items.0.price": True,
        "items.1.name": True,
        "items.1.price": False,
        "items.2.name": False,  # a row that the label lacks, with all its cells
        "items.2.price": False,
    }
    assert verdicts(label, {"items": [told[0]]})["items"] is False  # a row is missing
    assert verdicts(label, {"items": [*label["items"]]})["items"] is True
    assert verdicts({"items": []}, {"items": []}) == {"items": True}


def values_of(means: np.ndarray, right: np.ndarray, units: np.ndarray | None = None, name: str = "a"):
    numbers = range(len(means)) if units is None else units.tolist()
    rows = zip(means.tolist(), right.tolist(), numbers, strict=True)
    return [JudgedValue(name, {"mean": m, "least": m * m}, bool(r), i, u) for i, (m, r, u) in enumerate(rows)]


def draw(random: np.random.Generator, count: int):
    """Overconfident probabilities whose true shares are known."""
    odds = random.normal(0.5, 2.0, count)
    return 1 / (1 + np.exp(-0.5 * odds - 2)), 1 / (1 + np.exp(-odds))


def test_overconfidence_is_taken_out_and_the_order_is_kept() -> None:
    random = np.random.default_rng(0)
    means, shares = draw(random, 800)
    calibration = fit(values_of(means, random.random(800) < shares))
    fresh, truth = draw(random, 4000)
    right = random.random(4000) < truth
    confidence = calibration.of(values_of(fresh, right))
    assert calibration_error(fresh, right) > 0.2
    assert calibration_error(confidence, right) < 0.04
    assert ranking(confidence, right) == pytest.approx(ranking(fresh, right), abs=1e-3)
    assert confidence.min() > 0 and confidence.max() < 1


@pytest.mark.slow
@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=FEWEST, max_size=60))
def test_any_calibration_is_a_rising_curve_within_0_and_1_and_survives_the_file(rows) -> None:
    means, right = (np.array(column) for column in zip(*rows, strict=True))
    calibration = fit(values_of(means.astype(float), right.astype(bool)))
    grid = np.linspace(0, 1, 50)
    confidence = calibration.of(values_of(grid, np.ones(50, bool)))
    assert np.all(np.diff(confidence) >= -1e-12) and np.all((confidence >= 0) & (confidence <= 1))
    again = Calibration.from_row(json.loads(json.dumps(calibration.row())))
    assert again.of(values_of(grid, np.ones(50, bool))) == pytest.approx(confidence, abs=0)


def test_a_field_of_few_values_takes_the_calibration_of_all() -> None:
    random = np.random.default_rng(1)
    means, shares = draw(random, 100)
    many = values_of(means, random.random(100) < shares)
    few = values_of(means[: FEWEST - 1], np.zeros(FEWEST - 1), name="rare")
    calibration = fit([*many, *few])
    assert calibration.curves["rare"] is calibration.pooled is not calibration.curves["a"]
    confidence = calibration.confidence({"rare": few[0].scores, "new": few[0].scores})
    assert list(confidence) == ["rare"]  # nothing is known of a field without labelled examples
    with pytest.raises(RunError, match="least"):
        calibration.confidence({"a": {"mean": 0.5}})
    with pytest.raises(ValueError, match="too few"):
        fit(many[: FEWEST - 1])


def test_cross_fitting_never_looks_at_the_unit_it_scores() -> None:
    random = np.random.default_rng(2)
    means, shares = draw(random, 200)
    right, units = random.random(200) < shares, np.repeat(np.arange(40), 5)
    values = values_of(means, right, units)
    turned = [JudgedValue(v.path, v.scores, v.right != (v.unit == 7), v.sample, v.unit) for v in values]
    before, after = cross_fitted(values), cross_fitted(turned)
    part = deal(values, 5)
    same = part == part[units == 7][0]
    assert np.array_equal(before[same], after[same]) and not np.array_equal(before[~same], after[~same])
    assert all(len(set(part[units == unit])) == 1 for unit in range(40))


def test_the_bound_is_the_binomial_one() -> None:
    for wrong, count, share in product((0, 1, 4), (20, 59), (0.05, 0.2)):
        exact = sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(wrong + 1))
        assert tail_probability(wrong, count, 1.0, share) == pytest.approx(exact, rel=1e-9)
    assert error_interval(0, 59)[1] == pytest.approx(1 - 0.025 ** (1 / 59))
    assert error_interval(0, 0) == (0.0, 1.0)


def test_clusters_that_err_together_count_as_one() -> None:
    units = np.repeat(np.arange(40), 10)
    wrong = units < 4
    effect = design_effect(wrong, units, 0.0)
    assert effect == pytest.approx(10 * 40 / 39)
    assert within_correlation(wrong.astype(float), units) == pytest.approx(1.0)
    assert within_correlation(wrong.astype(float), np.arange(400)) == 0.0
    assert design_effect(np.zeros(400, bool), units, 0.5) == pytest.approx(1 + 0.5 * 9)


def test_the_smallest_set_that_can_keep_a_promise() -> None:
    confidence = np.linspace(1.0, 0.9, 59)
    promise = choose_threshold(confidence, np.ones(59, bool), np.arange(59), 0.95)
    assert (promise.threshold, promise.accepted, promise.wrong) == (0.9, 59, 0)
    assert promise.accepts(0.9) and not promise.accepts(0.89)
    fewer = choose_threshold(confidence[:58], np.ones(58, bool), np.arange(58), 0.95)
    assert fewer.threshold is None and "58 values are too few: even without an error it takes 59" in fewer.reason
    wrong = choose_threshold(confidence, np.arange(59) > 0, np.arange(59), 0.95)
    assert wrong.threshold is None and wrong.reason.endswith("which does not show it")
    assert "2 independent units" in choose_threshold(confidence, np.ones(59, bool), np.arange(59) % 2, 0.95).reason


def broken_promises(trials: int, promised: float, spread: float, size: int) -> tuple[int, int]:
    """Trials in which a threshold was found, and those in which more than promised of what it accepts is wrong.

    Confidences are calibrated over all clusters; clusters differ by `spread` in their log-odds.
    """
    random = np.random.default_rng(3)
    given_count = broken = 0
    odds = random.normal(2.0, 2.0, 4000)
    truth = np.mean([1 / (1 + np.exp(-odds - spread * each)) for each in random.normal(size=40)], axis=0)
    for _ in range(trials):
        units = np.repeat(np.arange(400 // size), size)
        chosen = random.integers(0, len(odds), 400)
        effects = spread * random.normal(size=400 // size)[units]
        right = random.random(400) < 1 / (1 + np.exp(-odds[chosen] - effects))
        promise = choose_threshold(truth[chosen], right, units, promised)
        if promise.threshold is not None:
            given_count += 1
            broken += float(np.mean(truth[truth >= promise.threshold])) < promised
    return given_count, broken


@pytest.mark.slow
@pytest.mark.parametrize(("spread", "size", "least"), [(0.0, 1, (110, 50)), (1.0, 8, (50, 0))])
def test_promises_hold_over_many_trials(spread: float, size: int, least: tuple[int, int]) -> None:
    """At most 5 % of trials may break a promise; with 120 trials 13 is the 99.5 % point of chance."""
    for promised, fewest in zip((0.9, 0.95), least, strict=True):
        given_count, broken = broken_promises(120, promised, spread, size)
        assert broken <= 13
        assert given_count >= fewest  # a promise that is never given is no use; 50 clusters cannot show 95 %


@pytest.mark.slow
def test_the_trials_would_find_a_rule_that_takes_the_best_looking_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mllm_tailor.scoring.accept.tail_probability",
        lambda wrong, count, effect, share: 0.0 if wrong / count <= share else 1.0,
    )
    assert broken_promises(100, 0.9, 0.0, 1)[1] > 24


def test_figures_by_their_definitions() -> None:
    confidence, right = np.array([0.95, 0.92, 0.55, 0.15]), np.array([True, True, False, False])
    result = measure(confidence, right, np.arange(4), confidence > 0.5)
    assert result.ece == pytest.approx((abs(1.87 - 2) + 0.55 + 0.15) / 4)
    assert result.auroc == 1.0 and result.ece_of_chance > 0
    assert [(entry.count, entry.right) for entry in result.bins] == [(1, 0), (1, 0), (2, 2)]
    assert result.risk == ((0.25, 0.0), (0.5, 0.0), (0.75, pytest.approx(1 / 3)), (1.0, 0.5))
    assert result.accepted is not None and (result.accepted.count, result.accepted.wrong) == (3, 1)
    assert ranking(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    assert ranking(confidence, np.ones(4, bool)) is None
    assert json.loads(json.dumps(result.row()))["count"] == 4
