"""Boxes move with their image: through trim and augmentation, and back in predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mllm_tailor.core.conversation import as_conversation
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.regions import cropped, move_boxes, uncropped
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.media.open import open_image
from mllm_tailor.models import encode, load_model
from mllm_tailor.tasks import open_task
from mllm_tailor.tasks.ground import read_box
from mllm_tailor.training.augment import augment_sample


def drawing(folder: Path) -> Media:
    """A dark rectangle with print in it, on a large white page."""
    image = Image.new("RGB", (800, 600), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((420, 330, 620, 450), fill="orange")
    for y in range(340, 440, 12):
        draw.text((430, y), "print print print print print", fill="black")
    image.save(folder / "a.png")
    return Media("image", folder / "a.png")


def test_a_box_moves_with_the_trimmed_image_and_back(tiny_model_folder: Path, tmp_path: Path) -> None:
    sample = Sample("a", (drawing(tmp_path),), "box", fields={"box": [420, 330, 620, 450]}, source="rows:1")
    model = replace(load_model(tiny_model_folder), trim=True)
    conversation = open_task("ground", {"unit": "pixels"}).phrase(sample)
    labels = encode(conversation, model).labels
    learned = read_box(model.tokenizer.decode(labels[labels >= 0]))
    assert learned is not None and learned[2] - learned[0] > 500, "most of the trimmed image"
    crop = model.crop_of(sample.media[0])
    assert crop is not None
    back = uncropped(*crop)(tuple(learned))
    assert np.allclose(back, (525, 550, 775, 750), atol=2)
    with pytest.raises(DataError, match=r"rows:1: the box .* lies in a margin"):
        encode(replace(conversation, answer="<box>[[0, 0, 90, 90]]</box>"), model)


def test_a_box_is_of_the_last_image_before_it() -> None:
    first, second = Media("image", data=b"1"), Media("image", data=b"2")
    text = "<box>[[0, 0, 500, 500]]</box>"
    sample = Sample("a", (first, second), f"{text}{text}", answer=text, positions=((0, 0), (0, len(text))))
    moved = move_boxes(as_conversation(sample), [cropped((0, 0, 50, 100), (100, 100)), None])
    assert moved.messages[0].content == (first, "<box>[[0, 0, 1000, 500]]</box>", second, text)
    assert moved.answer == text


def test_a_box_turns_with_its_image(tmp_path: Path) -> None:
    image = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(image).rectangle((200, 40, 260, 90), fill="black")
    image.save(tmp_path / "a.png")
    sample = Sample("a", (Media("image", tmp_path / "a.png"),), "box", answer="<box>[[667, 200, 870, 455]]</box>")
    for epoch in range(4):
        changed = augment_sample(as_conversation(sample), 0, epoch)
        dark = np.asarray(open_image(changed.media[0]).convert("L")) < 90
        y, x = np.nonzero(dark)
        found = [x.min() / dark.shape[1], y.min() / dark.shape[0], x.max() / dark.shape[1], y.max() / dark.shape[0]]
        box = read_box(changed.answer or "")
        assert box is not None and np.allclose(np.multiply(found, 1000), box, atol=12)
