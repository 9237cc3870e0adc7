"""The test of confidences: its rate of false alarms, and that it sees a shift."""

from __future__ import annotations

import numpy as np
import pytest

from mllm_tailor.scoring.drift import compare_confidences, count_confidences


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1000, 12])  # almost continuous; as many ties as an isotonic calibration makes
def test_false_alarms_are_as_rare_as_stated(steps: int) -> None:
    random = np.random.default_rng(0)

    def draw(count: int) -> np.ndarray:
        return np.floor(random.beta(6, 1, count) * steps) / steps

    trials = 2000
    alarms = sum(
        compare_confidences(count_confidences(draw(69)), count_confidences(draw(200))).p < 0.01 for _ in range(trials)
    )
    assert alarms / trials < 0.01 + 3 * np.sqrt(0.01 * 0.99 / trials)


def test_a_shift_is_seen_and_described() -> None:
    random = np.random.default_rng(1)
    before, after = random.beta(6, 1, 69), random.beta(3, 1.5, 200)
    difference = compare_confidences(count_confidences(before), count_confidences(after))
    assert difference.p < 1e-3 and difference.mean < difference.reference_mean
    assert difference.mean == pytest.approx(after.mean(), abs=0.01)
    assert compare_confidences(count_confidences(before), count_confidences(before)).p == 1
    with pytest.raises(ValueError, match="no values"):
        compare_confidences(count_confidences([]), count_confidences([0.5]))
