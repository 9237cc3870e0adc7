"""Boxes move with their image: through trim and augmentation, and back in predictions."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mllm_tailor.core.conversation import Conversation, Message, as_conversation
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.regions import Cropped, cropped, image_mark, move_boxes
from mllm_tailor.core.sample import Media, Prediction, Sample
from mllm_tailor.generation.predictor import Predictor
from mllm_tailor.media.open import open_image
from mllm_tailor.models import encode, load_model
from mllm_tailor.recipe.schema import Tiles
from mllm_tailor.scoring import score
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
    view = model.view(sample.media[0])
    assert view is not None
    (back,) = view.to_page(tuple(learned))
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


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32))
def test_every_box_moves_with_its_own_image(seed: int) -> None:
    """Of several images, each cut in its own way; a box is of the one whose number stands before it, else the last."""
    rng = random.Random(seed)
    count = rng.randint(1, 4)
    images = [Media("image", data=bytes([number])) for number in range(count)]
    clip = Media("video", data=b"clip")
    shift = [20 * number for number in range(count)]  # percent cut off on the left
    moves = [cropped((cut, 0, 100, 100), (100, 100)) for cut in shift]
    pieces: list[str | Media] = []
    wanted: list[int] = []
    shown = 0

    def box(marked: int | None) -> str:
        index = max(shown, 1) - 1 if marked is None else marked
        wanted.append(round(1000 * (90 - shift[index]) / (100 - shift[index])))
        form = rng.choice(["[[900, 0, 1000, 500]]", "(900, 0),(1000,500)", "[[900, 0], [1000, 500]]"])
        return (image_mark(marked) if marked is not None else "") + f"<ref>x</ref><box>{form}</box> is "

    marks = [None, *range(count)]
    for image in images:
        pieces += [box(rng.choice(marks)), clip] if rng.random() < 0.5 else []
        pieces.append(image)
        shown += 1
    pieces.append(box(rng.choice(marks)))
    answer = box(rng.choice(marks)) + box(rng.choice(marks))
    asked = Conversation(Sample("a"), (Message("user", tuple(pieces)),), answer)
    of_media = [moves[images.index(media)] if media.kind == "image" else None for media in asked.media]
    moved = move_boxes(asked, of_media)
    texts = [*(part for part in moved.messages[0].content if isinstance(part, str)), moved.answer or ""]
    found = [int(left) for text in texts for left in re.findall(r"<box>[\[(]+(\d+)", text)]
    assert found == wanted
    with pytest.raises(DataError, match=r"Image-9, of \d images"):
        move_boxes(replace(asked, answer=f"{image_mark(8)}<box>[[1, 2, 3, 4]]</box>"), of_media)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("task", ["ground", "segment"])
def test_a_region_of_several_images_states_its_own(task: str, index: int, tmp_path: Path) -> None:
    """In pixels of its image, learned with its number, read back, moved back, and scored as of that image."""
    names = ("a.png", "b.png")
    for name, width in zip(names, (100, 400), strict=True):
        Image.new("RGB", (width, 200), "white").save(tmp_path / name)
    images = tuple(Media("image", tmp_path / name) for name in names)
    label = {"box": [10, 20, 50, 100]} if task == "ground" else {"polygon": [[[10, 20], [50, 20], [50, 100]]]}
    field, x = next(iter(label)), (100, 25)[index]
    sample = Sample("a", images, "cup", fields={**label, "image_index": index})
    opened = open_task(task, {"unit": "pixels"})
    labels = opened.labels(sample)
    wanted = [x, 100, 5 * x, 500] if task == "ground" else [[[x, 100], [5 * x, 100], [5 * x, 500]]]
    assert labels == {field: wanted, "image": index}
    answer = opened.phrase(sample).answer or ""
    assert f"Image-{index + 1}: <box>" in answer and opened.parse(answer).fields == labels
    crops = {images[0]: ((0, 0, 50, 200), (100, 200)), images[1]: ((0, 0, 200, 200), (400, 200))}
    model = SimpleNamespace(tiles=Tiles(), view=lambda image, _: Cropped(*crops[image]))
    predictor: Any = SimpleNamespace(task=opened, model=model)
    learned = move_boxes(opened.phrase(sample), [cropped(*crops[image]) for image in images]).answer or ""
    back = Predictor._on_whole_images(predictor, learned, dict(opened.parse(learned).fields), images)
    assert back == labels
    metric = ("iou", "mask_iou")[task == "segment"]
    for stated, score_wanted in ((index, 100.0), (1 - index, 0.0)):
        prediction = Prediction("a", answer, {**labels, "image": stated})
        assert score([labels], [prediction], [metric], [field]).values()[metric] == score_wanted


def test_boxes_in_free_answers_come_back_in_predictions() -> None:
    image = Media("image", data=b"1")
    model = SimpleNamespace(tiles=Tiles(), view=lambda *_: Cropped((0, 0, 50, 100), (100, 100)))
    predictor: Any = SimpleNamespace(task=open_task("answer"), model=model)
    for reply, answer in (
        ("at <box>[[200, 0, 1000, 500]]</box>.", "at <box>[[100, 0, 500, 500]]</box>."),
        ("at <box>[[9, 9, 1, 1]]</box>", "at <box>[[9, 9, 1, 1]]</box>"),  # no box: as the model wrote it
    ):
        fields = {"answer": reply}
        assert Predictor._on_whole_images(predictor, reply, fields, (image,)) == {"answer": answer}


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
