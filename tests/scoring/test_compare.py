"""Paired comparison, baselines, kinds of error, marked differences, terminal text."""

from __future__ import annotations

import json
from html import unescape

import numpy as np
import pytest
from benchmarks.intervals import GROUPS, RESULT, cell
from hypothesis import given
from hypothesis import strategies as st

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.sample import Prediction
from mllm_tailor.core.terminal import plain, printable
from mllm_tailor.reporting.diff import LONGEST, mark_difference
from mllm_tailor.scoring import (
    Gain,
    MetricScore,
    Ratios,
    Scores,
    compare,
    constant_baseline,
    gain,
    nearest_neighbour_baseline,
    pool,
    samples_needed,
    score,
    seen_groups,
)
from mllm_tailor.scoring.errors import KINDS, count_errors, kind_of_error
from mllm_tailor.scoring.intervals import linearise, spread_of, t_quantile


def right_and_wrong(rights: list[bool]) -> Scores:
    labels = [{"total": "1"}] * len(rights)
    predictions = [Prediction(str(place), "", {"total": "1" if yes else "2"}) for place, yes in enumerate(rights)]
    return score(labels, predictions, ["exact", "f1", "absent_rate"], ["total"])


# --- paired comparison


def test_the_interval_of_a_mean_is_the_normal_one_for_many_samples() -> None:
    rng = np.random.default_rng(1)
    base, tuned = rng.random(2000) < 0.5, rng.random(2000) < 0.6
    result = compare(right_and_wrong(list(base)), right_and_wrong(list(tuned)))["exact"]
    differences = 100 * (tuned.astype(float) - base)
    half = 1.96 * differences.std() / np.sqrt(2000)
    assert result.difference.value == pytest.approx(differences.mean())
    assert result.difference.low == pytest.approx(differences.mean() - half, abs=0.02)
    assert result.difference.high == pytest.approx(differences.mean() + half, abs=0.02)
    assert result.base.value == pytest.approx(100 * base.mean()) and result.improved


@pytest.mark.slow
def test_the_interval_of_equal_groups_is_the_t_interval_of_their_means() -> None:
    base = right_and_wrong([False] * 2000)
    tuned = right_and_wrong([place % 1000 < 100 * (2 + place // 1000 * 3) for place in range(2000)])
    groups = [str(place // 500) for place in range(2000)]  # means 40, 0, 100, 0 of 500 samples each
    means = np.array(tuned["exact"].samples.numerator).reshape(4, 500).mean(axis=1)
    half = 3.1824 * 100 * means.std(ddof=1) / 2  # Student's t with 3 degrees of freedom
    difference = compare(base, tuned, groups=groups)["exact"].difference
    assert difference.high == 100  # never beyond what is possible
    assert difference.low == pytest.approx(difference.value - half, rel=0.01)
    assert difference.units == 4


def test_a_model_against_itself_shows_no_change() -> None:
    scores = right_and_wrong([True, False, True, False])
    for result in compare(scores, scores).values():
        assert result.difference.value == 0 and result.difference.low < 0 < result.difference.high
        assert (result.fixed, result.new_errors) == (0, 0)
        assert not result.improved and not result.worsened


def test_samples_without_a_change_leave_room_for_unseen_ones() -> None:
    """The rule of three: of 60 samples none changed, so up to 4.9 % may change."""
    scores = right_and_wrong([True] * 60)
    difference = compare(scores, scores)["exact"].difference
    assert difference.low == pytest.approx(-100 * (1 - 0.05 ** (1 / 60)))
    assert compare(scores, scores)["exact"].base.low == pytest.approx(100 * 0.05 ** (1 / 60))


def test_samples_of_one_group_are_one_unit() -> None:
    base, tuned = right_and_wrong([False] * 40), right_and_wrong([True] * 20 + [False] * 20)
    alone = compare(base, tuned)["exact"].difference
    grouped = compare(base, tuned, groups=[str(place // 10) for place in range(40)])["exact"].difference
    assert alone.clear
    assert not grouped.clear and grouped.units == 4


@pytest.mark.parametrize("groups", [["a"] * 40, ["a"] * 20 + ["b"] * 20])
def test_one_or_two_groups_are_too_few_to_say(groups: list[str]) -> None:
    result = compare(right_and_wrong([False] * 40), right_and_wrong([True] * 40), groups=groups)["exact"]
    assert result.difference.value == 100 and not result.difference.known
    assert (result.difference.low, result.difference.high) == (-100, 100)
    assert not result.improved and not result.worsened


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.sampled_from([None, *"abcde"])), min_size=1, max_size=30)
)
def test_intervals_hold_their_value_and_stay_possible(rows: list[tuple[float, float, str | None]]) -> None:
    ones = (1.0,) * len(rows)
    ids = tuple(map(str, range(len(rows))))
    base, tuned = (
        Scores(ids, {"m": MetricScore(Ratios(tuple(row[side] for row in rows), ones), {})}) for side in (0, 1)
    )
    for folds in (1, 5):
        result = gain(base, tuned, "m", groups=[row[2] for row in rows], folds=folds)
        for interval, low in ((result.base, 0), (result.tuned, 0), (result.difference, -100)):
            assert low <= interval.low <= interval.value + 1e-6 and interval.value <= interval.high + 1e-6
            assert interval.high <= 100
        json.dumps(result.row(), allow_nan=False)


def test_error_rates_over_a_hundred_percent_have_intervals() -> None:
    ratios = [Ratios((5.0, 0.0, 1.0, 2.0), (2.0, 2.0, 2.0, 2.0)), Ratios((0.0, 0.0, 1.0, 0.0), (2.0, 2.0, 2.0, 2.0))]
    base, tuned = (Scores(("a", "b", "c", "d"), {"m": MetricScore(each, {}, "lower")}) for each in ratios)
    result = gain(base, tuned, "m")
    assert result.base.value == 100 and result.base.high > 100 and result.difference.value < 0


def test_t_quantiles_are_those_of_the_tables() -> None:
    table = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 30: 2.042, 120: 1.980}
    for freedom, value in table.items():
        assert t_quantile(freedom) == pytest.approx(value, abs=1e-3)


def test_degrees_of_freedom_fall_with_unequal_groups() -> None:
    sizes = [30, 3, 3, 3, 3]
    units = np.repeat(np.arange(5), sizes)
    rng = np.random.default_rng(0)
    values = rng.random(len(units)) + rng.random(5)[units]
    statistic = linearise(Ratios(tuple(values), (1.0,) * len(units)))
    equal = linearise(Ratios(tuple(values[:40]), (1.0,) * 40))
    assert spread_of(statistic, units).freedom < 2 < spread_of(equal, np.repeat(np.arange(5), 8)).freedom


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_a_score_is_one_number_wherever_it_is_shown(values: list[float], draw) -> None:
    shuffled = draw.sample(values, len(values))
    ratios, other = (Ratios(tuple(rows), (1.0,) * len(rows)) for rows in (values, shuffled))
    assert linearise(ratios).value == ratios.value == other.value


@pytest.mark.slow
def test_the_simulation_finds_no_false_claims_beyond_the_promise() -> None:
    """The quick version of `benchmarks/intervals.py`, on the kind of score that piles up at 100."""
    for size, count in (("unequal", 3), ("equal", 8), ("single", 12)):
        figures = cell("fuzzy", size, count, trials=300, seed=0)
        assert figures["false_claims"] <= 7 and figures["coverage"] >= 93, figures


def test_the_stored_simulation_keeps_the_promise() -> None:
    result = json.loads(RESULT.read_text())
    assert {each["units"] for each in result["cells"]} == set(GROUPS)
    for each in result["cells"]:
        assert each["false_claims"] <= 7 and each["coverage"] >= 93, each
        if each["scores"] == "smooth":  # scores that are right or wrong cannot err in exactly 5 % of few units
            assert each["coverage"] <= 97, each
    assert all(93 <= each["coverage"] <= 97 for each in result["cross_validation"])


# --- cross-validation and the size of a held-out split


def test_pooled_folds_are_the_samples_in_order() -> None:
    whole = right_and_wrong([True, False, True, True, False])
    folds = [whole.subset([3, 0]), whole.subset([4]), whole.subset([1, 2])]
    assert pool(folds, whole.ids) == whole
    with pytest.raises(RunError, match="no fold scored `4`"):
        pool([folds[0], folds[2]], whole.ids)
    with pytest.raises(RunError, match="several folds"):
        pool([*folds, folds[1]], whole.ids)


def test_models_that_share_training_data_have_wider_intervals() -> None:
    base, tuned = right_and_wrong([False] * 40), right_and_wrong([True, False] * 20)
    single, pooled = (compare(base, tuned, folds=folds)["exact"].difference for folds in (1, 5))
    assert pooled.high - pooled.low == pytest.approx((single.high - single.low) * 1.11, rel=0.02)


def test_samples_needed_follow_from_the_power_of_the_comparison() -> None:
    alone = samples_needed([None] * 40)
    assert alone.units == alone.samples and not alone.enough
    half = (t_quantile(alone.units - 1) + t_quantile(alone.units - 1, 0.8)) * 25 / alone.units**0.5
    assert half == pytest.approx(5, rel=0.01)
    grouped = samples_needed([str(place // 10) for place in range(40)])
    assert grouped.samples > 2 * alone.samples and grouped.units == -(-grouped.samples // 10)
    assert samples_needed(["a"] * 100).smallest_gain is None
    assert samples_needed([None] * 400).enough


def test_samples_without_a_group_are_groups_of_their_own() -> None:
    base, tuned = right_and_wrong([False] * 40), right_and_wrong([True] * 20 + [False] * 20)
    assert compare(base, tuned, groups=[None] * 40) == compare(base, tuned)


def test_fixed_and_new_errors_are_counted_by_sample() -> None:
    found = compare(right_and_wrong([False, False, False, True]), right_and_wrong([True, True, False, False]))["exact"]
    assert (found.fixed, found.new_errors, found.count) == (2, 1, 4)


def test_fewer_errors_are_an_improvement() -> None:
    labels = [{"total": "1"}] * 30
    base = score(labels, [Prediction(str(i), "", {}) for i in range(30)], ["absent_rate"], ["total"])
    tuned = score(labels, [Prediction(str(i), "", {"total": "1"}) for i in range(30)], ["absent_rate"], ["total"])
    found = compare(base, tuned)["absent_rate"]
    assert found.difference.value == -100 and found.improved
    assert not compare(tuned, base)["absent_rate"].improved


def test_a_field_that_is_never_labelled_does_not_disturb() -> None:
    labels = [{"total": "1"}, {"total": ""}]
    scores = score(labels, [Prediction("a", "", {}), Prediction("b", "", {})], ["invented_rate"], ["total", "date"])
    found = compare(scores, scores)["invented_rate"]
    assert found.count == 1 and list(found.by_field) == ["total"]
    json.dumps(found.row(), allow_nan=False)


def test_gains_survive_json() -> None:
    found = compare(right_and_wrong([False, True]), right_and_wrong([True, True]))["f1"]
    assert Gain.from_row(json.loads(json.dumps(found.row()))) == found


def test_one_metric_alone_is_compared_on_the_same_draws() -> None:
    base, tuned = right_and_wrong([False, True, False]), right_and_wrong([True, True, False])
    assert gain(base, tuned, "exact") == compare(base, tuned)["exact"]


def test_only_the_same_samples_can_be_compared() -> None:
    with pytest.raises(RunError, match="not of the same samples"):
        compare(right_and_wrong([True]), right_and_wrong([True, False]))


# --- baselines and groups


def test_constant_baseline_is_the_most_frequent_value_of_each_field() -> None:
    train = [{"a": "x", "b": 1.0}, {"a": "y", "b": 2.0}, {"a": "y"}, {"a": "x", "b": 2.0}]
    assert constant_baseline(train, 2, ["a", "b"]) == [{"a": "x", "b": 2.0}] * 2


def test_nearest_neighbour_baseline_copies_the_labels_of_the_largest_cosine() -> None:
    train = np.array([[1.0, 0.0], [0.0, 5.0], [0.0, 0.0]])
    held = np.array([[0.1, 9.0], [3.0, 1.0]])
    labels = [{"total": "first"}, {"total": "second"}, {"total": "blank page"}]
    assert nearest_neighbour_baseline(train, held, labels) == [{"total": "second"}, {"total": "first"}]


def test_baselines_hand_out_copies() -> None:
    labels = [{"total": "1"}]
    nearest_neighbour_baseline(np.ones((1, 2)), np.ones((1, 2)), labels)[0]["total"] = "changed"
    assert labels == [{"total": "1"}]


def test_seen_and_unseen_groups() -> None:
    assert seen_groups(["a", None, "b"], ["b", "c", None, "a"]) == {"seen": [0, 3], "unseen": [1]}
    assert seen_groups([None], [None]) == {}


# --- kinds of error


@pytest.mark.parametrize(
    ("name", "predicted", "kind"),
    [
        ("company", "ACME SDN BHD", "right"),
        ("company", "Acme  Sdn Bhd", "case or spaces"),
        ("company", "ACNE SDN BHD", "one or two characters"),
        ("company", "ACME", "truncated"),
        ("company", "ACME SDN BHD (123-X)", "extra text"),
        ("company", "9.00", "another field's value"),
        ("company", "SOMETHING ELSE", "different"),
        ("company", None, "absent"),
        ("total", "RM9", "amount format"),
        ("total", "19.00", "one or two characters"),
        ("date", "2018-03-13", "date format"),
        ("date", "13 MAR 18", "date format"),
        ("date", "14/03/2018", "one or two characters"),
        ("phone", "012", "invented"),
        ("phone", " ", "right"),
    ],
)
def test_kinds_of_error(name: str, predicted: str | None, kind: str) -> None:
    labels = {"company": "ACME SDN BHD", "date": "13/03/2018", "total": "9.00", "phone": ""}
    assert kind_of_error(name, labels, {name: predicted}) == kind


def test_any_of_several_right_answers_is_right() -> None:
    assert kind_of_error("total", {"total": "1,049.00"}, {"total": "1.049.00"}) == "one or two characters"  # no date
    assert kind_of_error("a", {"a": ["x-ray", "xray"]}, {"a": "xray"}) == "right"
    assert kind_of_error("a", {"a": ["radiograph", "x-ray"]}, {"a": "X-ray"}) == "case or spaces"


def test_a_ranking_keeps_its_ranks() -> None:
    ranking = Prediction("1", "", {"a": ["first", "second", "third"]})
    scores = score([{"a": "second"}], [ranking], ["recall_1", "recall_5"], ["a"])
    assert scores.values() == {"recall_1": 0, "recall_5": 100}


@given(st.text(max_size=20), st.text(max_size=20))
def test_every_pair_of_texts_has_a_kind(label: str, predicted: str) -> None:
    kind = kind_of_error("a", {"a": label, "b": "other"}, {"a": predicted})
    assert kind in KINDS
    assert (kind == "right") == (label == predicted or not (label.strip() or predicted.strip()))


def test_errors_are_counted_by_field() -> None:
    counts = count_errors([{"a": "x1", "b": ""}] * 2, [Prediction("1", "", {"a": "x1"}), Prediction("2", "")], "ab")
    assert counts["a"]["right"] == 1 and counts["a"]["absent"] == 1 and counts["b"]["right"] == 2
    assert all(sum(kinds.values()) == 2 for kinds in counts.values())


# --- what people see


def test_differing_characters_are_marked_and_markup_is_text() -> None:
    wanted, said = mark_difference("<b>9.25", "<b>9.85!")
    assert wanted == "&lt;b&gt;9.<del>2</del>5"
    assert said == "&lt;b&gt;9.<ins>8</ins>5<ins>!</ins>"


@given(st.text(), st.text())
def test_marks_never_change_the_text(label: str, predicted: str) -> None:
    for markup, text in zip(mark_difference(label, predicted), (label, predicted), strict=True):
        for tag in ("<del>", "</del>", "<ins>", "</ins>"):
            markup = str(markup).replace(tag, "")
        assert "<" not in markup
        assert unescape(markup) == printable(text)


def test_a_runaway_reply_is_cut_with_a_word_about_it() -> None:
    assert "(7 more characters)" in mark_difference("", "x" * (LONGEST + 7))[1]


@given(st.text())
def test_terminal_text_holds_no_control_characters(text: str) -> None:
    shown = plain(text).plain
    assert len(shown) == len(text)
    assert not any(
        ord(character) < 32 or 0x7F <= ord(character) < 0xA0 or 0x202A <= ord(character) <= 0x202E
        for character in shown
    )


def test_terminal_text_is_not_markup() -> None:
    assert plain("[red]:smile:\x1b[2J").plain == "[red]:smile:�[2J"
