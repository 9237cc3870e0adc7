"""What the embedded model's pretraining tells its heads: where on a page each character of an answer is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mllm_tailor.models.resolve import EMBEDDED
from mllm_tailor.synthetic import FontSet
from transformers import InternVLForConditionalGeneration

from pretraining import (
    architecture,
    attention_supervision,
    checkpoint,
    glyph_slots,
    language,
    optim,
    pages,
    pictures,
    questions,
    stage3_joint,
)


@pytest.mark.parametrize("seed", range(12))
def test_every_place_shows_its_character(seed: int) -> None:
    """Of all characters of a page at least four fifths have a place (the rest stood too close or slid off a tile)."""
    page = pages.text_page(np.random.default_rng(seed))
    shown = pages.to_tokens(page.labels).ravel()
    found = [(letter, place) for line, places in zip(page.lines, page.places, strict=True)
             for letter, place in zip(line, places, strict=True)]  # fmt: skip
    placed = [(letter, glyph_slots.character_of(shown[place])) for letter, place in found if place >= 0]
    assert all(letter == seen for letter, seen in placed)
    assert len(placed) > 0.8 * sum(letter.isascii() for letter, _ in found)


@pytest.mark.parametrize("ask", [questions.extraction, questions.passage, questions.single])
def test_answers_are_found_where_they_stand(ask) -> None:
    for seed in range(8):
        page = pages.text_page(np.random.default_rng(seed))
        _, answer = ask(page, np.random.default_rng(seed))
        shown = pages.to_tokens(page.labels).ravel()
        places = attention_supervision.answer_places(page, answer)
        for letter, where in zip(answer, places, strict=True):
            assert {glyph_slots.character_of(shown[place]) for place in where if place >= 0} <= {letter}
        copied = sum(len(piece) for _, piece in attention_supervision.copied_pieces(answer))
        assert (places >= 0).any(1).sum() > 0.6 * copied


@pytest.mark.slow
def test_a_strip_keeps_the_places_of_its_lines_and_shows_all_of_them() -> None:
    kept = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        page = pages.text_page(rng)
        if page.labels.shape[0] > 3:
            continue
        example = language.strip(page, rng, 4)
        if example is None:  # a line of it leaves the strip, or has a letter that no slot can name
            continue
        kept += 1
        (_, answer), (places,) = example.turns[0], example.places
        for letter, place in zip(answer, places[:, 0], strict=True):
            assert place < 0 or glyph_slots.character_of(example.tokens.ravel()[place]) == letter
            assert place >= 0 or letter.isspace()
    assert kept > 10


def test_the_guide_rewards_looking_at_the_place() -> None:
    """With queries and keys forced towards one token, its loss is near nothing there and large elsewhere."""
    model = architecture.build_model(width=64, layers=2, heads=2).model.language_model
    guide = attention_supervision.Guide(model)
    attention = model.layers[1].self_attn
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.zero_()
            projection.bias.zero_()
        for head in range(guide.heads):
            attention_supervision.look_back_by(model, attention, head, 1, strength=12.0)
    embeds = torch.randn(1, 6, 64)
    losses = []
    for token in (4, 2):  # position 5 looks at position 4
        places = torch.full((1, 6, attention_supervision.MOST), -1)
        places[0, 5, 0] = token * attention_supervision.SLOTS
        model(inputs_embeds=embeds, use_cache=False)
        losses.append(float(guide(places, 0)[0].detach()))
    assert losses[0] < 0.1 < 2 < losses[1]


def test_pictures_know_where_their_lines_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "font_set", FontSet.shipped)  # the same on every machine
    drawn = pictures.drawn_page(np.random.default_rng(3))
    _, labels, places = pictures.cut(drawn, 3)
    shown = pages.to_tokens(labels).ravel()
    found = [(letter, place) for line, where in zip(drawn.lines, places, strict=True)
             for letter, place in zip(line.text, where, strict=True)]  # fmt: skip
    assert all(glyph_slots.character_of(shown[place]) == letter for letter, place in found if place >= 0)
    assert sum(place >= 0 for _, place in found) > 0.7 * len(found)


def test_joining_goes_on_from_the_shipped_model_and_leaves_a_still_tower_alone() -> None:
    shipped = InternVLForConditionalGeneration.from_pretrained(EMBEDDED).float().state_dict()
    parts = stage3_joint.from_folder(EMBEDDED)
    assert all(torch.equal(value, shipped[name]) for name, value in parts["model"].state_dict().items())
    tower = parts["model"].model.vision_tower.requires_grad_(False)
    still = {id(parameter) for parameter in tower.parameters()}
    trained = {id(parameter) for parameter in optim.trained(stage3_joint.make_optimizers(parts, 1e-3))}
    assert trained and not trained & still


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    """In bf16, to its rounding, and into other modules of the same names."""
    first, again = ({"part": torch.nn.Linear(5, 3)} for _ in range(2))
    assert not checkpoint.step(tmp_path / "kept.safetensors", again)
    checkpoint.keep(tmp_path / "kept.safetensors", first)
    assert checkpoint.step(tmp_path / "kept.safetensors", again)
    assert torch.equal(again["part"].weight, first["part"].weight.bfloat16().float())
