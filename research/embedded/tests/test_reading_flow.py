"""Reading line after line: characters stand where a flow says, invented words stay consistent, real lines are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mllm_tailor.media.reflow import TileSpec, reflow
from mllm_tailor.media.reflow_lines import read_page
from mllm_tailor.synthetic import FontSet, Style, draw_document
from torch.optim.swa_utils import AveragedModel

from pretraining import (
    architecture,
    attention_supervision,
    checkpoint,
    flow,
    flow_join,
    flow_language,
    flow_pages,
    flow_pictures,
    flow_tiles,
    flow_vision,
    fonts,
    pictures,
    rewording,
    tower,
)


@pytest.mark.parametrize("seed", range(6))
def test_every_place_shows_its_character(seed: int) -> None:
    page = flow_pages.document(np.random.default_rng(seed))
    shown = page.shown.cells.ravel()
    pairs = list(zip(page.shown.text, page.shown.known, strict=True))
    assert all(flow.character_of(shown[place]) == letter for letter, place in pairs if place >= 0)
    assert sum(place >= 0 for _, place in pairs) > 0.97 * sum(letter.isascii() for letter, _ in pairs)


def test_cells_are_in_reading_order() -> None:
    page = flow_pages.document(np.random.default_rng(1))
    places = page.shown.known[page.shown.known >= 0]
    assert (np.diff(places) > 0).all()


def test_invented_words_are_the_same_on_the_page_and_in_its_fields() -> None:
    rng = np.random.default_rng(0)
    text = flow_pages.drawn(rng)
    again = rewording.reworded(text, rewording.Rewording(rng, 1.0, rewording.named_words(text.fields)))
    printed = " ".join(cell.text for cell in again.cells)
    assert again.fields["company"] != text.fields["company"]
    for key in ("company", "total"):
        assert all(word in printed for word in again.fields[key].split())
    assert again.fields["total"] == text.fields["total"]


@pytest.mark.slow
def test_lines_of_a_drawn_receipt_are_found_askew_too() -> None:
    page = draw_document("receipts", 5, fonts=FontSet.shipped(), effects=0.2, style=Style(on_a4=False))
    for degrees in (0, 2):
        image = page.image.convert("L").rotate(degrees, expand=True, fillcolor=255)
        found = read_page(image)
        assert abs(len(found.lines) - len(page.lines)) <= 0.15 * len(page.lines)


def test_a_tile_of_lines_labels_what_it_shows() -> None:
    face = next(face for face in FontSet.shipped().faces)
    pool = (fonts.make_atlas(Path(face.path), 18, np.random.default_rng(0), plain=True),)
    grey, labels = flow_tiles.flow_tile(np.random.default_rng(2), pool=pool)
    inked = (grey.reshape(16, 28, 16, 28).min((1, 3)) < 128).ravel()
    named = (labels > 1).any(1)
    assert (inked == named).mean() > 0.85  # a character may reach into the cell beside its own
    assert labels.max() <= flow.NEWLINE


@pytest.mark.slow
def test_the_copying_stage_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FOLDER", tmp_path)
    sizes = {"width": 64, "layers": 2, "heads": 2}
    monkeypatch.setattr(flow_language, "GUIDED", 1)
    flow_language.train(0, True, seed=1, **sizes)
    _, parts = flow_language.build(**sizes)
    checkpoint.load("copy", dict(parts.items()))
    stored = parts["lm_head"].weight.clone()
    flow_language.train(0, True, seed=2, **sizes)  # another seed: all of it comes from the checkpoint
    checkpoint.load("copy", dict(parts.items()))
    assert torch.equal(parts["lm_head"].weight, stored)


@pytest.mark.slow
def test_the_joined_model_sees_the_cells_that_its_training_sees() -> None:
    """What the stages compute by hand is what transformers computes from pixels."""
    torch.manual_seed(0)
    parts = flow_join.build(width=64, layers=2, heads=2)
    model = parts["model"].eval()
    grey = torch.randint(0, 255, (2, flow.WIDTH, flow.WIDTH), dtype=torch.uint8)
    with torch.no_grad():
        mine = flow_join.visual_tokens(model, flow_vision.features(model.model.vision_tower, grey))
        theirs = model.model.get_image_features(pixel_values=tower.normalise(grey)).pooler_output
    assert torch.allclose(mine, theirs.flatten(0, 1), atol=1e-5)


def test_the_product_shows_what_training_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "font_set", FontSet.shipped)
    page = pictures.drawn_page(np.random.default_rng([3, 2]))
    tiles = flow_pictures.as_flow(page).tiles.reshape(-1, flow.WIDTH)
    whole, half = (reflow(page.image, TileSpec(flow.COLUMNS, size, 1, 99)) for size in (flow.WIDTH, flow.WIDTH // 2))
    assert whole is not None and half is not None
    assert np.array_equal(np.asarray(whole.image())[..., 0], tiles)
    halved = torch.nn.functional.avg_pool2d(torch.from_numpy(tiles.copy())[None].float(), 2)[0]
    assert np.abs(np.asarray(half.image())[..., 0] - halved.numpy()).max() <= 0.5


def test_labels_of_a_drawn_document_name_its_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "font_set", FontSet.shipped)  # the same on every machine
    picture = flow_pictures.drawn(np.random.default_rng([3, 2]))
    shown, pairs = picture.page.shown.cells.ravel(), zip(picture.page.shown.text, picture.page.shown.known, strict=True)
    assert all(place < 0 or flow.character_of(shown[place]) == letter for letter, place in pairs)
    assert (picture.page.shown.known >= 0).mean() > 0.9
    assert len(picture.page.shown.cells) == len(picture.tiles) * flow.TOKENS


@pytest.mark.slow
def test_the_joined_model_starts_from_both_stages_and_learns_from_a_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "FOLDER", tmp_path)
    monkeypatch.setattr(flow_language, "GUIDED", 1)
    monkeypatch.setattr(pictures, "font_set", FontSet.shipped)
    sizes = {"width": 64, "layers": 2, "heads": 2}
    _, text = flow_language.build(**sizes)
    guide = attention_supervision.Guide(text["language"], 1, flow.SLOTS)
    checkpoint.save("copy", {"average": AveragedModel(text), "guide": guide}, [], {})
    checkpoint.save("lines", {"average": AveragedModel(flow_vision.build())}, [], {})
    parts = flow_join.build(**sizes)
    flow_join.take_stages(parts, "lines", "copy")
    assert torch.equal(parts["model"].lm_head.weight, text["lm_head"].weight)
    samples = iter(flow_join.Documents(5, 0))
    found, right = flow_join.losses(parts, [next(samples), next(samples)])
    assert all(torch.isfinite(loss) for loss in found.values()) and 0 <= right <= 1
    sum(found.values()).backward()
    assert parts["model"].model.vision_tower.embeddings.patch_embeddings.projection.weight.grad.abs().sum() > 0


def test_a_tower_of_larger_patches_starts_with_what_the_other_knows(tmp_path: Path) -> None:
    """It sees an enlarged picture as the tower that it starts from sees the picture as it is."""
    torch.manual_seed(0)
    small = architecture.build_model(width=64, layers=1, heads=2, vision={"width": 64, "layers": 1, "heads": 2})
    small.save_pretrained(tmp_path)
    large = tower.build_tower(width=64, layers=1, heads=2, patch=28)
    tower.start_from(large, tmp_path)
    grey = torch.randint(0, 255, (1, 224, 224), dtype=torch.uint8)
    seen = large.embeddings(tower.normalise(grey.repeat_interleave(2, 1).repeat_interleave(2, 2)))
    whole = torch.zeros(1, 448, 448, dtype=torch.uint8)
    whole[:, :224, :224] = grey
    grid = small.model.vision_tower.embeddings(tower.normalise(whole))[:, 1:].unflatten(1, (32, 32))
    assert torch.allclose(seen[:, 1:].unflatten(1, (16, 16)), grid[:, :16, :16], atol=1e-5)
