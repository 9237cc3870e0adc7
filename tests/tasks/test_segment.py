"""Outlines as text: labels become answers that read back, areas are compared, the report draws them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.regions import cropped, move_boxes, move_value, uncropped
from mllm_tailor.core.sample import Media, Prediction, Sample
from mllm_tailor.scoring import score
from mllm_tailor.scoring.metrics.mask_iou import mask_overlap
from mllm_tailor.tasks import open_task
from mllm_tailor.tasks.segment import simplified

SQUARE = [[100, 100], [500, 100], [500, 500], [100, 500]]
IMAGE = Media("image", "a.png")  # type: ignore[arg-type]


def sample(polygon: object) -> Sample:
    return Sample("a", (IMAGE,), prompt="the leaf", fields={"polygon": polygon}, source="rows.jsonl:1")


def test_the_answer_reads_back_as_the_label() -> None:
    task = open_task("segment")
    triangle = [[10, 20], [300, 20], [300, 400]]
    labelled = sample([SQUARE, triangle])
    conversation = task.phrase(labelled)
    assert conversation.prompt == "Outline <ref>the leaf</ref>."
    assert conversation.answer is not None and conversation.answer.startswith("<ref>the leaf</ref><box>[[100, 100], ")
    assert task.parse(conversation.answer).fields == task.labels(labelled) == {"polygon": [SQUARE, triangle]}
    assert task.labels(sample(SQUARE)) == {"polygon": [SQUARE]}, "one outline need not be in a list"
    assert task.parse("It is not there.").problem


@pytest.mark.parametrize(
    "polygon", [[[1, 2]], [[[1, 2], [3, 4]]], "x", [[[0, 0], [5, "a"], [9, 9]]], [[[0, 0], [2000, 5], [9, 9]]]]
)
def test_what_is_no_outline_is_named(polygon: object) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1"):
        open_task("segment").labels(sample(polygon))


def test_masks_are_compared_by_area() -> None:
    half = [[100, 100], [300, 100], [300, 500], [100, 500]]
    assert mask_overlap([SQUARE], [half]) == pytest.approx(0.5, abs=0.01)
    assert mask_overlap([half, [[300, 100], [500, 100], [500, 500], [300, 500]]], [SQUARE]) == pytest.approx(1.0)
    replies = ({"polygon": [SQUARE]}, {"polygon": [half]}, {})
    labels = [{"polygon": [SQUARE]}] * 3
    predictions = [Prediction(str(number), "", fields) for number, fields in enumerate(replies)]
    scores = score(labels, predictions, ["mask_iou", "mask_iou_50"], ["polygon"]).values()
    assert scores["mask_iou"] == pytest.approx(50, abs=0.5) and scores["mask_iou_50"] == pytest.approx(200 / 3, abs=1)


def test_outlines_move_with_their_image_and_back() -> None:
    crop = ((20.0, 10.0, 120.0, 60.0), (200, 100))
    conversation = open_task("segment").phrase(sample([[[150, 150], [500, 150], [500, 500]]]))
    moved = move_boxes(conversation, [cropped(*crop)])
    assert moved.answer is not None and moved.answer != conversation.answer
    (outline,) = open_task("segment").parse(moved.answer).fields["polygon"]
    assert outline == [[100, 100], [800, 100], [800, 800]]
    assert move_value([outline], uncropped(*crop)) == [[[150, 150], [500, 150], [500, 500]]]
    assert move_value([100, 100, 800, 800], uncropped(*crop)) == [150, 150, 500, 500]


@settings(max_examples=30)
@given(corners=st.integers(3, 400), radius=st.integers(150, 480), most=st.integers(16, 40))
def test_a_simplified_outline_covers_the_same_area(corners: int, radius: int, most: int) -> None:
    angles = [2 * math.pi * index / corners for index in range(corners)]
    outline = [[round(500 + radius * math.cos(a)), round(500 + radius * math.sin(a))] for a in angles]
    short = simplified(outline, most)
    assert len(short) <= most and all(corner in outline for corner in short)
    assert mask_overlap([outline], [short]) > 0.93
