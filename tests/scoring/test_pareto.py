"""The front of score against cost, and its picture."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from hypothesis import given
from hypothesis import strategies as st

from mllm_tailor.reporting.pareto import Point, front, scatter
from mllm_tailor.scoring import Interval

values = st.floats(0, 100, allow_nan=False)
points = st.lists(
    st.builds(lambda cost, score: Point("m", cost, Interval(score, score, score)), st.floats(0, 50), values), min_size=1
)


@given(points)
def test_no_point_beats_one_on_the_front_in_both(points: list[Point]) -> None:
    best = front(points)
    assert best
    for one in best:
        assert not any(
            (other.cost <= one.cost and other.score.value > one.score.value)
            or (other.cost < one.cost and other.score.value >= one.score.value)
            for other in points
        )


def test_the_picture_is_valid_svg_with_names_escaped() -> None:
    picture = scatter(
        [Point("<lora>", 1.0, Interval(80, 75, 85)), Point("full", 2.0, Interval(82, 79, 88))], "GiB", "fuzzy"
    )
    text = "".join(ElementTree.fromstring(picture).itertext())
    assert "<lora>" in text and "full" in text
