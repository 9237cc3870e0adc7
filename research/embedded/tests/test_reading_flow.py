"""Reading line after line: characters stand where a flow says, invented words stay consistent, real lines are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mllm_tailor.synthetic import FontSet, Style, draw_document

from pretraining import checkpoint, flow, flow_language, flow_pages, flow_tiles, fonts, text_lines


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
    again = flow_pages.reworded(text, rng, 1.0, flow_pages.named_words(text))
    printed = " ".join(cell.text for cell in again.cells)
    assert again.fields["company"] != text.fields["company"]
    for key in ("company", "total"):
        assert all(word in printed for word in again.fields[key].split())
    assert again.fields["total"] == text.fields["total"]


def test_lines_of_a_drawn_receipt_are_found_askew_too() -> None:
    page = draw_document("receipts", 5, fonts=FontSet.shipped(), effects=0.2, style=Style(on_a4=False))
    for degrees in (0, 2):
        image = page.image.convert("L").rotate(degrees, expand=True, fillcolor=255)
        found = text_lines.read_page(image)
        assert abs(len(found.lines) - len(page.lines)) <= 0.15 * len(page.lines)
    whole = text_lines.flow_image(page.image)
    assert whole.width == flow.WIDTH and whole.height % flow.WIDTH == 0


def test_a_blank_page_has_no_lines() -> None:
    from PIL import Image

    assert text_lines.read_page(Image.new("L", (300, 400), 250)).lines == ()
    assert text_lines.flow_image(Image.new("L", (300, 400), 250)).size == (flow.WIDTH, flow.WIDTH)


def test_a_tile_of_lines_labels_what_it_shows() -> None:
    face = next(face for face in FontSet.shipped().faces)
    pool = (fonts.make_atlas(Path(face.path), 18, np.random.default_rng(0), plain=True),)
    grey, labels = flow_tiles.flow_tile(np.random.default_rng(2), pool=pool)
    inked = (grey.reshape(16, 28, 16, 28).min((1, 3)) < 128).ravel()
    named = (labels > 1).any(1)
    assert (inked == named).mean() > 0.85  # a character may reach into the cell beside its own
    assert labels.max() <= flow.NEWLINE


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
