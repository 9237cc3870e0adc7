"""Paired comparison, baselines, kinds of error, marked differences, terminal text."""

from __future__ import annotations

import json
from html import unescape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.sample import Prediction
from mllm_tailor.core.terminal import plain, printable
from mllm_tailor.reporting.diff import LONGEST, mark_difference
from mllm_tailor.scoring import (
    Gain,
    Scores,
    compare,
    constant_baseline,
    gain,
    nearest_neighbour_baseline,
    score,
    seen_groups,
)
from mllm_tailor.scoring.errors import KINDS, count_errors, kind_of_error


def right_and_wrong(rights: list[bool]) -> Scores:
    labels = [{"total": "1"}] * len(rights)
    predictions = [Prediction(str(place), "", {"total": "1" if yes else "2"}) for place, yes in enumerate(rights)]
    return score(labels, predictions, ["exact", "f1", "absent_rate"], ["total"])


# --- paired comparison


def test_the_interval_of_a_mean_is_the_normal_one_for_many_samples() -> None:
    rng = np.random.default_rng(1)
    base, tuned = rng.random(2000) < 0.5, rng.random(2000) < 0.6
    found = compare(right_and_wrong(list(base)), right_and_wrong(list(tuned)))["exact"]
    differences = 100 * (tuned.astype(float) - base)
    half = 1.96 * differences.std() / np.sqrt(2000)
    assert found.difference.value == pytest.approx(differences.mean())
    assert found.difference.low == pytest.approx(differences.mean() - half, abs=0.15)
    assert found.difference.high == pytest.approx(differences.mean() + half, abs=0.15)
    assert found.base.value == pytest.approx(100 * base.mean()) and found.improved and found.share_better > 0.99


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    rng = np.random.default_rng(2)
    base, tuned = (right_and_wrong(list(rng.random(50) < share)) for share in (0.3, 0.5))
    first, again, other = (compare(base, tuned, resamples=500, seed=seed)["exact"] for seed in (0, 0, 1))
    assert first == again
    assert first.difference != other.difference


def test_a_model_against_itself_gains_nothing() -> None:
    scores = right_and_wrong([True, False, True, False])
    for found in compare(scores, scores, resamples=200).values():
        assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)
        assert (found.share_better, found.fixed, found.new_errors) == (0, 0, 0)
        assert not found.improved


def test_samples_of_one_group_are_drawn_together() -> None:
    base, tuned = right_and_wrong([False] * 40), right_and_wrong([True] * 20 + [False] * 20)
    alone = compare(base, tuned, resamples=2000)["exact"].difference
    grouped = compare(base, tuned, groups=["a"] * 20 + ["b"] * 20, resamples=2000)["exact"].difference
    assert (grouped.low, grouped.high) == (0, 100)  # two units: both, one of each, or twice the same
    assert alone.low > 30 and alone.high < 70


def test_samples_without_a_group_are_groups_of_their_own() -> None:
    base, tuned = right_and_wrong([False] * 40), right_and_wrong([True] * 20 + [False] * 20)
    assert compare(base, tuned, groups=[None] * 40, resamples=300) == compare(base, tuned, resamples=300)


def test_fixed_and_new_errors_are_counted_by_sample() -> None:
    found = compare(right_and_wrong([False, False, False, True]), right_and_wrong([True, True, False, False]))["exact"]
    assert (found.fixed, found.new_errors, found.count) == (2, 1, 4)


def test_fewer_errors_are_an_improvement() -> None:
    labels = [{"total": "1"}] * 30
    base = score(labels, [Prediction(str(i), "", {}) for i in range(30)], ["absent_rate"], ["total"])
    tuned = score(labels, [Prediction(str(i), "", {"total": "1"}) for i in range(30)], ["absent_rate"], ["total"])
    found = compare(base, tuned, resamples=100)["absent_rate"]
    assert found.difference.value == -100 and found.improved and found.share_better == 1
    assert not compare(tuned, base, resamples=100)["absent_rate"].improved


def test_a_field_that_is_never_labelled_does_not_disturb() -> None:
    labels = [{"total": "1"}, {"total": ""}]
    scores = score(labels, [Prediction("a", "", {}), Prediction("b", "", {})], ["invented_rate"], ["total", "date"])
    found = compare(scores, scores, resamples=100)["invented_rate"]
    assert found.count == 1 and list(found.by_field) == ["total"]
    json.dumps(found.row(), allow_nan=False)


def test_gains_survive_json() -> None:
    found = compare(right_and_wrong([False, True]), right_and_wrong([True, True]), resamples=50)["f1"]
    assert Gain.from_row(json.loads(json.dumps(found.row()))) == found


def test_one_metric_alone_is_compared_on_the_same_draws() -> None:
    base, tuned = right_and_wrong([False, True, False]), right_and_wrong([True, True, False])
    assert gain(base, tuned, "exact", resamples=100) == compare(base, tuned, resamples=100)["exact"]


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
