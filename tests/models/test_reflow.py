"""A model that reads reflowed pages: tiles, lengths, files, boxes, and where values stand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.families import family_folder
from fixtures.printed_pages import photograph, printed
from transformers import InternVLForConditionalGeneration

from mllm_tailor.core.conversation import as_conversation
from mllm_tailor.core.errors import DataError, ModelError, RecipeError
from mllm_tailor.core.sample import Media, Prediction, Sample
from mllm_tailor.generation import locate, predict
from mllm_tailor.generation.predictor import Predictor
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.media.open import image_size
from mllm_tailor.media.reflow import CELL, Reflowed
from mllm_tailor.models import (
    InputSettings,
    LoadedModel,
    count_tokens,
    encode,
    load_model,
    measure_length,
    save_model,
)
from mllm_tailor.models.inputs.internvl import tile_counts
from mllm_tailor.models.inputs.tiling import tile_image
from mllm_tailor.models.inputs.visual_tokens import token_grids
from mllm_tailor.recipe import DecodingMode, make_recipe
from mllm_tailor.recipe.schema import Predict, Tiles
from mllm_tailor.run.resolve import resolve_saved
from mllm_tailor.tasks import open_task
from mllm_tailor.training.augment import augment_sample

REFLOW = InputSettings(reflow=True, tiles=Tiles(min=1, max=4, thumbnail=True))
TASK = open_task("extract", {"total": {"type": "string", "max_length": 6}})


@pytest.fixture
def model(tiny_model_folder: Path) -> LoadedModel:
    return load_model(tiny_model_folder, dtype="float32", device="cpu", inputs=REFLOW)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Media:
    path = tmp_path_factory.mktemp("pages") / "page.png"
    printed(4, turn=1.5).save(path)
    return Media("image", path)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Media:
    path = tmp_path_factory.mktemp("pages") / "photo.png"
    photograph().save(path)
    return Media("image", path)


def test_lines_fill_the_tiles_and_photographs_stay(
    model: LoadedModel, page: Media, photo: Media, tiny_model_folder: Path
) -> None:
    tiles = model.image_size(page)[1] // model.tile_size
    assert model.image_size(page) == model.open_image(page).size == (56, 56 * tiles)
    plain = load_model(tiny_model_folder, dtype="float32", device="cpu", inputs=replace(REFLOW, reflow=None))
    assert not plain.reflow and plain.image_size(page) == image_size(page)
    assert model.image_size(photo) == image_size(photo) and model.view(photo) is None
    for count in (1, 2, 3):  # images share the maximum, and a page of lines has no thumbnail
        sample = Sample("a", (*[page] * count, photo), "?", answer="x")
        shared = model.tiles.model_copy(update={"max": 4 // (count + 1), "thumbnail": False})
        counts = tile_counts(as_conversation(sample), model)
        assert counts[:count] == [model.image_size(page, shared)[1] // 56] * count
        assert max(counts[:count]) <= shared.max
        encoded = encode(sample, model)
        pixels = encoded.media["pixel_values"]
        assert len(pixels) == sum(counts) == measure_length(sample, model).tiles
        assert count_tokens(sample, model) == encoded.length
        assert pixels[counts[0] * count :].equal(encode(sample, plain).media["pixel_values"][-counts[-1] :])


def test_tiles_are_cut_between_rows(model: LoadedModel, page: Media) -> None:
    image = model.open_image(page)
    cut = tile_image(image, 1, 4, 56, thumbnail=False)
    assert np.array_equal(np.concatenate([np.asarray(tile) for tile in cut]), np.asarray(image))


def test_the_checkpoint_states_it(model: LoadedModel, page: Media, tmp_path: Path) -> None:
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved", dtype="float32", device="cpu")
    assert again.reflow and again.image_size(page) == model.image_size(page)
    assert json.loads((tmp_path / "saved" / "processor_config.json").read_text())["reflow"] is True
    off = load_model(tmp_path / "saved", dtype="float32", device="cpu", inputs=InputSettings(reflow=False))
    assert not off.reflow and off.image_size(page) == image_size(page)
    save_model(off, tmp_path / "off")
    assert not load_model(tmp_path / "off", dtype="float32", device="cpu").reflow
    assert InternVLForConditionalGeneration.from_pretrained(tmp_path / "saved").num_parameters()


def test_other_families_name_the_setting(families: Path) -> None:
    with pytest.raises(ModelError, match=r"`model\.reflow`: .* leave the setting out"):
        load_model(family_folder(families, "llava"), device="cpu", inputs=InputSettings(reflow=True))


@pytest.mark.parametrize("answer", ["<box>[[0, 0, 90, 90]]</box>", "bbox_2d: [1, 2, 3, 4]"])
def test_boxes_of_moved_lines_are_refused_by_row(model: LoadedModel, page: Media, photo: Media, answer: str) -> None:
    with pytest.raises(DataError, match=r"rows:7: a box .* model\.reflow: false"):
        encode(Sample("a", (page,), "?", answer=answer, source="rows:7"), model)
    assert encode(Sample("a", (photo,), "?", answer=answer), model).length


def test_tasks_of_boxes_read_pages_as_they_are() -> None:
    settings = {"data": "unused", "task": {"ground": {}}, "model": {"path": "tiny"}}
    assert resolve_saved(make_recipe(settings)).model.reflow is False
    with pytest.raises(RecipeError, match=r"model\.reflow: `ground` learns boxes"):
        resolve_saved(make_recipe(settings | {"model": {"path": "tiny", "reflow": True}}))
    other = settings | {"task": {"extract": {"total": "string"}}}
    assert resolve_saved(make_recipe(other)).model.reflow is None


def test_a_value_stands_where_its_line_is_on_the_page(
    model: LoadedModel, page: Media, monkeypatch: pytest.MonkeyPatch
) -> None:
    (grid,) = token_grids((page,), model)
    view = grid.view
    assert isinstance(view, Reflowed) and grid.count == 4 * view.tiles
    line = view.page.lines[2]
    piece = next(piece for piece in view.layout.pieces if piece.line is line)
    scale = view.layout.columns / 2  # cells of the layout a token: lines that did not fit are set smaller
    x = piece.x + min(CELL / 2, (piece.right - piece.left) * piece.scale / 2)
    column, row = int(x / CELL / scale), int((piece.row + 0.5) / scale)
    looks = torch.zeros(3, grid.count)
    looks[:, row // 2 * 4 + row % 2 * 2 + column] = 1
    monkeypatch.setattr(locate, "visual_attention", lambda *_: looks)
    sample = Sample("a", (page,))
    predictor = Predictor(model, TASK, Predict(boxes=True), [DecodingMode.CONSTRAINED])
    sequence = ReplySequence(
        0, encode(TASK.phrase(sample), model), (page,), DecodingMode.CONSTRAINED, None, 9, tokens=[1, 2, 3]
    )
    where = predictor.locator.locate(sequence, [b'{"total": "', b"9.00", b'"}'])
    assert where is not None and where["total"]
    width, height = view.page.grey.size
    slope = view.page.slope((line.top + line.bottom) / 2)
    middle = (line.top + line.bottom) / 2 + slope * (piece.left - width / 2)
    of_line = [place for place in where["total"] if place.box[1] <= middle * 1000 / height <= place.box[3]]
    assert of_line and of_line[0].source == "attention"
    assert of_line[0].box[0] <= (piece.left + 2) * 1000 / width + 1 < of_line[0].box[2]


def test_boxes_in_replies_come_back_to_the_page(model: LoadedModel, page: Media) -> None:
    predictor: Any = SimpleNamespace(task=open_task("answer"), model=model)
    reply = "at <box>[[0, 0, 1000, 1000]]</box>"
    fields = Predictor._on_whole_images(predictor, reply, {"answer": reply}, (page,))
    assert fields["answer"] != reply and "<box>[[" in fields["answer"]


def test_predictions_with_locations_run_end_to_end(model: LoadedModel, page: Media, photo: Media) -> None:
    samples = [Sample("a", (page,)), Sample("b", (photo,))]
    predictions: list[Prediction] = predict(model, TASK, samples, Predict(max_new_tokens=20, boxes=True))
    assert [prediction.id for prediction in predictions] == ["a", "b"]
    assert all(prediction.where is not None for prediction in predictions)


def test_a_framing_sets_the_lines_elsewhere(model: LoadedModel, page: Media) -> None:
    views = [model.view(replace(page, framing=index)) for index in range(3)]
    assert all(isinstance(view, Reflowed) for view in views)
    assert len({model.open_image(replace(page, framing=index)).tobytes() for index in range(3)}) == 3
    for index in range(3):
        media = replace(page, framing=index)
        assert model.image_size(media) == model.open_image(media).size
    predictions: list[Prediction] = predict(model, TASK, [Sample("a", (page,))], Predict(max_new_tokens=20, framings=3))
    assert "framings" in predictions[0].raw["total"]


def test_augmented_pages_are_reflowed_after_they_changed(model: LoadedModel, page: Media) -> None:
    sample = as_conversation(Sample("a", (page,), "?", answer="x"))
    plain = encode(sample, model).media["pixel_values"]
    for epoch in range(2):
        changed = augment_sample(sample, 0, epoch)
        encoded = encode(changed, model)
        assert count_tokens(changed, model) == encoded.length
        pixels = encoded.media["pixel_values"]
        assert pixels.shape[1:] == plain.shape[1:] and not (pixels.shape == plain.shape and pixels.equal(plain))
        view = model.view(changed.media[0])
        assert isinstance(view, Reflowed) and len(view.page.lines) == 4
