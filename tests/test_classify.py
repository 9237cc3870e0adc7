"""Classification end to end: classes read from the data, replies compared by likelihood, a class never learned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.models import OpenModel, open_model
from mllm_tailor.models.encode import NO_LOSS
from mllm_tailor.predicting import choose
from mllm_tailor.predicting.choices import _Chooser
from mllm_tailor.recipe import Predict, make_recipe
from mllm_tailor.run.settle import settle
from mllm_tailor.tasks import open_task

CLASSES = ["Swiping Up", "No gesture", "Tap"]


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> OpenModel:
    return open_model(tiny_model_folder, dtype="float32", device="cpu")


def shapes(folder: Path, labels: list[str]) -> Path:
    """A labelled folder: one picture a label, of different sizes."""
    folder.mkdir()
    rows = []
    for number, label in enumerate(labels):
        picture = Image.new("RGB", (60 + 60 * (number % 2), 60), "white")
        ImageDraw.Draw(picture).ellipse((5 + number, 5, 40, 30 + number), fill="black")
        picture.save(folder / f"{number}.png")
        rows.append(json.dumps({"image": f"{number}.png", "label": label}))
    (folder / "train.jsonl").write_text("\n".join(rows))
    return folder


def test_likelihoods_are_those_of_reading_each_whole_reply_alone(model: OpenModel, tmp_path: Path) -> None:
    shapes(tmp_path / "data", CLASSES)
    task = open_task("classify", CLASSES)
    samples = [Sample(str(n), (Media("image", tmp_path / "data" / f"{n}.png"),)) for n in range(3)]
    asked = [task.phrase(sample) for sample in samples]
    expected = torch.zeros(3, len(CLASSES))
    for row, question in enumerate(asked):
        for column, reply in enumerate(task.choices()):
            whole = model.encode(replace(question, answer=reply))
            batch = model.collate([whole])
            labels = batch.pop("labels")[0]
            with torch.inference_mode():
                chances = model.model(**batch).logits[0].log_softmax(-1)
            places = (labels != NO_LOSS).nonzero().squeeze(1)
            expected[row, column] = chances[places - 1, labels[places]].sum()
    chooser = _Chooser(model, task, Predict(), None)
    found = chooser.score([chooser._encode(sample) for sample in samples])
    assert torch.allclose(found, expected, atol=1e-3)
    predictions = choose(model, task, samples, Predict(batch=2))
    best = [CLASSES[column] for column in expected.argmax(-1)]
    assert [prediction.fields["class"] for prediction in predictions] == best
    shares = expected.softmax(-1).amax(-1)
    confidences = torch.tensor([prediction.confidence["class"] for prediction in predictions])
    assert torch.allclose(confidences, shares, atol=1e-3)


def test_a_file_that_cannot_be_read_is_a_row_with_a_problem(model: OpenModel, tmp_path: Path) -> None:
    shapes(tmp_path / "data", CLASSES)
    good = Sample("good", (Media("image", tmp_path / "data" / "0.png"),))
    lost = Sample("lost", (Media("image", tmp_path / "lost.png"),))
    first, second = choose(model, open_task("classify", CLASSES), [lost, good], Predict())
    assert "no such file" in str(first.problem) and not first.fields
    assert second.problem is None and second.fields["class"] in CLASSES


def test_classes_are_read_from_all_labelled_samples(tmp_path: Path) -> None:
    data = shapes(tmp_path / "data", ["Tap", "swiping  up", "tap", "No gesture"])
    recipe = settle(make_recipe({"data": str(data), "task": {"classify": {}}}))
    assert recipe.task["classify"]["classes"] == ["No gesture", "swiping up", "tap"]
    assert settle(recipe) == recipe
    named = make_recipe({"data": str(tmp_path / "nowhere"), "task": {"classify": CLASSES}})
    assert settle(named).task["classify"]["classes"] == CLASSES


def test_one_class_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    data = shapes(tmp_path / "data", ["Tap", "tap"])
    with pytest.raises(DataError, match="only `tap` in the data"):
        settle(make_recipe({"data": str(data), "task": "classify"}))
