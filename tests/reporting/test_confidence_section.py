"""The part of the report on confidence: its sentences follow from the figures, whatever these are."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_tailor.reporting.confidence import reliability_diagram, risk_curve, rows, sentences, share
from mllm_tailor.reporting.report_data import ConfidenceData
from mllm_tailor.scoring.accept import Promise
from mllm_tailor.scoring.reliability import Reliability, measure

VALUES = st.lists(st.tuples(st.integers(0, 100), st.booleans(), st.booleans()), min_size=1, max_size=40)


def measured(values: list[tuple[int, bool, bool]]) -> Reliability:
    confidence, right, accepted = (np.array(column) for column in zip(*values, strict=True))
    return measure(confidence / 100, right.astype(bool), np.arange(len(values)), accepted.astype(bool))


@pytest.mark.slow
@settings(max_examples=30)
@given(VALUES, st.sampled_from([None, 0.5, 0.9]), st.sampled_from([0.9, 0.95]))
def test_sentences_follow_from_the_figures(values, threshold, promised) -> None:
    part = measured(values)
    reason = "" if threshold else "too few values"
    data = ConfidenceData({"all": part, "unseen": part}, Promise(promised, 0.95, threshold, reason=reason), "5 values")
    text = " ".join(sentences(data)).replace("\u00a0", " ")
    accepted = [right for _, right, taken in values if taken]
    wrong, limit = accepted.count(False), f"{round(100 * (1 - promised))}"
    assert ("Every value needs an eye" in text) == (threshold is None)
    if threshold is not None:
        counts = f"{len(accepted)} of {len(values)}"
        assert re.search(
            rf"{counts}\)? of the values need no eye, at most {limit} % of them wrong \(95 % certain", text
        )
        kept, broken = "The promise is kept" in text, "do not rely on it" in text
        within = "within the interval" in text
        assert (kept, broken or within) == (
            (False, False)
            if not accepted
            else (part_ok(wrong, accepted, promised), not part_ok(wrong, accepted, promised))
        )
        assert broken <= (wrong > (1 - promised) * len(accepted))
        assert "In groups never seen in training" in text
    for percent in re.findall(r"(\d+(?:\.\d)?) % \((\d+) of (\d+)\)", text):
        assert abs(float(percent[0]) - 100 * int(percent[1]) / int(percent[2])) <= 0.5 and int(percent[2]) >= 10
    assert "nan" not in text
    assert len(rows(data)) == 2
    drawn = reliability_diagram(part) + risk_curve(part, data.promise)
    assert "nan" not in drawn and drawn.count("<circle") == len(part.bins)
    numbers = [float(number) for number in re.findall(r'(?:c?[xy][12]?)="(-?[\d.]+)"', drawn)]
    assert min(numbers) >= 0 and max(numbers) <= 360


def part_ok(wrong: int, accepted: list[bool], promised: float) -> bool:
    return wrong <= (1 - promised) * len(accepted)


def test_shares_never_round_to_all_or_none() -> None:
    assert share(999, 1000).startswith("99.9") and share(1, 1000).startswith("0.1")
    assert share(1000, 1000).startswith("100\u00a0%") and share(3, 9) == "3 of 9"


def test_without_a_calibration_the_reason_is_given() -> None:
    assert sentences(ConfidenceData(reason="the dev split has 2 samples")) == [
        "The confidences of this run are not calibrated: the dev split has 2 samples."
    ]
    assert sentences(ConfidenceData()) == []


@pytest.mark.parametrize("wrong", [1, 6])
def test_a_broken_promise_is_called_one(wrong: int) -> None:
    values = [(95, index >= wrong, True) for index in range(20)]
    (_, counted, *_) = sentences(ConfidenceData({"all": measured(values)}, Promise(0.95, 0.95, 0.9)))
    assert ("do not rely on it" in counted) == (wrong == 6)
    assert ("The promise is kept" in counted) == (wrong == 1)
