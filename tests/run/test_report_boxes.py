"""Where values stand, drawn into the images of a report."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

from mllm_tailor.core.sample import Location, Media, Prediction, Sample
from mllm_tailor.run.report import LABEL_COLOR, REPLY_COLOR, picture, value_boxes


def test_right_values_are_green_and_others_red(tmp_path: Path) -> None:
    Image.new("RGB", (400, 600), "white").save(tmp_path / "a.png")
    where = {
        "total": (Location(0, (500, 500, 750, 550), "attention"),),
        "items.0.name": (Location(0, (100, 100, 400, 150), "attention"), Location(1, (0, 0, 9, 9), "attention")),
        "date": (),
    }
    fields = {"total": "9.00", "items": [{"name": "TEA"}], "date": "x"}
    labels = {"total": "9.00", "items": [{"name": "COFFEE"}], "date": "x"}
    boxes = value_boxes(labels, Prediction("a", "", fields, where=where))
    assert {color: len(outlines) for color, outlines in boxes.items()} == {LABEL_COLOR: 1, REPLY_COLOR: 1}
    jpeg = picture(Sample("a", (Media("image", tmp_path / "a.png"),)), boxes)
    assert jpeg is not None
    drawn = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
    for color, (x, y) in ((LABEL_COLOR, (250, 300)), (REPLY_COLOR, (100, 60))):  # the middle of each upper edge
        assert np.abs(drawn[y, x] - ImageColor.getrgb(color)).max() < 60
    assert (drawn[400, 50] > 240).all()
