"""Where on the page: cells of tiles and thumbnails, attention as the model computes it, text layers of turned PDFs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.pdfs import drawn
from fixtures.small_job import noise_pictures, save_lively
from PIL import Image
from torch.nn.functional import one_hot

from mllm_tailor.core.regions import Cropped
from mllm_tailor.core.sample import Media, Prediction, Sample
from mllm_tailor.generation import predict
from mllm_tailor.generation.locate import SUPPORT, Locator, _looked_lines, _peaks
from mllm_tailor.generation.predictor import Predictor
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.generation.visual_attention import visual_attention
from mllm_tailor.models import LoadedModel, encode
from mllm_tailor.models.bundled.build import build_tokenizer
from mllm_tailor.models.inputs.visual_tokens import TokenGrid, image_token_columns, token_grids
from mllm_tailor.models.patches.recorded_attention import recording
from mllm_tailor.recipe import DecodingMode
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import open_task

FIELDS = {
    "company": {"type": "string", "max_length": 8},
    "lines": {"type": "list", "items": {"name": {"type": "string", "max_length": 4}}, "max_items": 2},
    "total": {"type": "amount", "max_length": 6},
}
TASK = open_task("extract", FIELDS)
SETTINGS = Predict(batch_size=4, max_new_tokens=90, boxes=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return save_lively(tmp_path_factory.mktemp("lively"), build_tokenizer(), 3, head_width=16)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return noise_pictures(tmp_path_factory.mktemp("pictures"), (40, 70, 100))


def test_tokens_of_tiles_lie_row_by_row_and_a_thumbnail_covers_the_page() -> None:
    grid = TokenGrid(0, 3, columns=2, rows=3, side=4, thumbnail=True, view=Cropped((10, 20, 50, 80), (100, 100)))
    tokens = 3 + grid.count
    tile, row, column = 3, 1, 2  # the fourth tile: second row, second column
    cells = grid.spread(one_hot(torch.tensor([3 + tile * 16 + row * 4 + column]), tokens).float())
    assert cells.shape == (1, 12, 8) and cells.nonzero().tolist() == [[0, 4 + row, 4 + column]]
    thumbnail = grid.spread(one_hot(torch.tensor([3 + 6 * 16 + 1 * 4 + 3]), tokens).float())[0]
    assert thumbnail.sum() == pytest.approx(1)
    assert thumbnail.nonzero().tolist() == [[y, x] for y in (3, 4, 5) for x in (6, 7)]
    assert grid.on_page(0, 0, 8, 12) == [pytest.approx((100, 200, 500, 800))]
    assert grid.on_page(4, 6, 6, 9) == [pytest.approx((300, 500, 400, 650))]


def test_pixel_shuffle_keeps_the_order_of_rows(model: LoadedModel) -> None:
    """The order that `TokenGrid` assumes, asked of the model's own code."""
    patches = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"), -1)[None]
    joined = model.model.model.pixel_shuffle(patches, scale_factor=0.5).reshape(16, -1, 2)
    for token, members in enumerate(joined):
        row, column = divmod(token, 4)
        assert {tuple(map(int, member)) for member in members} == {
            (2 * row + a, 2 * column + b) for a in (0, 1) for b in (0, 1)
        }


def test_grids_follow_tiles_and_cropped_margins(model: LoadedModel, tmp_path: Path) -> None:
    page = np.full((400, 200, 3), 255, np.uint8)
    page[200:300:8, 60:160] = 0  # print
    Image.fromarray(page).save(tmp_path / "page.png")
    media = Media("image", tmp_path / "page.png")
    trimmed = replace(model, trim=True)
    (grid,) = token_grids((media,), trimmed)
    left, top, right, bottom = trimmed.view(media).box  # type: ignore[union-attr]
    assert 0 < left < 60 and 160 < right < 200 and top > 0
    whole = grid.on_page(0, 0, grid.columns * grid.side, grid.rows * grid.side)
    assert whole == [pytest.approx((left * 5, top * 2.5, right * 5, bottom * 2.5))]
    first, second = token_grids((media, media), model)
    assert second.first == first.count and (first.page, second.page) == (0, 1)
    encoded = encode(Sample("a", (media, media), prompt="?"), model)
    assert len(image_token_columns(encoded.ids, model)) == first.count + second.count


def sequence_of(model: LoadedModel, sample: Sample, text: str) -> ReplySequence:
    encoded = encode(TASK.phrase(sample), model)
    tokens = model.tokenizer(text, add_special_tokens=False).input_ids
    return ReplySequence(0, encoded, sample.media, DecodingMode.CONSTRAINED, None, 99, tokens=tokens)


def test_looks_are_the_attention_of_one_pass_over_prompt_and_reply(model: LoadedModel, samples: list[Sample]) -> None:
    sequence = sequence_of(model, samples[1], '{"company": "A"}')
    predictor = Predictor(model, TASK, SETTINGS, [DecodingMode.CONSTRAINED])
    looks = visual_attention(predictor.locator.prefill, sequence)  # type: ignore[arg-type]
    assert looks.shape[0] == len(sequence.tokens) and bool((looks.sum(1) <= 1 + 1e-5).all())
    encoded, kept = sequence.encoded, {}
    ids = torch.cat([encoded.ids, torch.tensor(sequence.tokens[:-1])])[None]
    inputs: dict[str, Any] = {"input_ids": ids, "pixel_values": encoded.media["pixel_values"]}
    with torch.inference_mode():
        plain = model.model(**inputs).logits
        with recording(model.model, kept.__setitem__):
            recorded = model.model(**inputs).logits
    assert torch.equal(plain, recorded) and sorted(kept) == [0, 1]
    columns = image_token_columns(encoded.ids, model)
    own = torch.stack([kept[layer][0][:, encoded.length - 1 :][..., columns] for layer in kept])
    variance = own.square().sum(-1).mean(-1) - own.mean(2).square().sum(-1)
    shares = variance.square() / variance.square().sum()
    assert torch.allclose(looks, torch.einsum("lh,lhtc->tc", shares, own), atol=1e-5)


def test_a_sharp_look_makes_lines_and_a_spread_one_none() -> None:
    cells = torch.zeros(8, 12, 10)
    for token in range(5):
        cells[token, 3, 2 + token] = 0.9
    for token in range(5, 8):
        cells[token, 6, token - 4] = 0.9
    looks = _peaks(cells)
    assert np.allclose(_looked_lines(looks), [(2.2, 3, 6.8, 4), (1, 6, 4, 7)], atol=0.01)
    assert _peaks(torch.full((4, 12, 10), 1 / 120))[:, 2].mean() < SUPPORT


@pytest.mark.slow
def test_boxes_change_no_reply_and_are_the_same_from_either_past(model: LoadedModel, samples: list[Sample]) -> None:
    plain = predict(model, TASK, samples, SETTINGS.model_copy(update={"boxes": False}))
    located = predict(model, TASK, samples, SETTINGS)
    assert [(each.text, each.raw) for each in plain] == [(each.text, each.raw) for each in located]
    assert all(each.where is None for each in plain)
    for prediction in located:
        assert prediction.where is not None
        leaves = {path for path in prediction.raw if not any(other.startswith(f"{path}.") for other in prediction.raw)}
        assert set(prediction.where) == leaves
        assert Prediction.from_row(json.loads(json.dumps(prediction.row()))).where == prediction.where
    predictor = Predictor(model, TASK, SETTINGS, [DecodingMode.CONSTRAINED])
    prefill = predictor.locator.prefill
    assert prefill is not None and prefill.shares_prefixes
    sequence = sequence_of(model, samples[2], located[2].text)
    prefixes, _, _ = prefill.read_prefixes([sequence.encoded])
    from_prefix = visual_attention(prefill, replace(sequence, prefix=prefixes[0]))
    assert torch.allclose(from_prefix, visual_attention(prefill, sequence), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fields", ["together", "side_by_side"])
@pytest.mark.parametrize("beams", [1, 2])
def test_every_way_of_decoding_has_boxes(model: LoadedModel, samples: list[Sample], fields: str, beams: int) -> None:
    settings = SETTINGS.model_copy(update={"fields": fields, "num_beams": beams, "max_new_tokens": 20})
    assert all(each.where for each in predict(model, TASK, samples[:2], settings))


@pytest.mark.parametrize(("turn", "side"), [(0, "left"), (90, "top"), (180, "right"), (270, "bottom")])
def test_a_text_layer_holds_the_value_on_the_page_as_it_is_drawn(turn: int, side: str) -> None:
    content = "BT /F1 10 Tf 8 40 Td (Kedai Kopi Sdn Bhd) Tj 0 -20 Td (Total 9.00) Tj ET"
    media = Media("image", data=drawn(content, turn=turn))
    pieces = [b'{"company": "', b"KEDAI KOPI", b'", "total": "', b"RM 9.00", b'", "date": "', b"2018-01-02", b'"}']
    sequence = ReplySequence(0, None, (media,), DecodingMode.CONSTRAINED, None, 9)  # type: ignore[arg-type]
    where = Locator({"total": "amount", "date": "date"}, None).locate(sequence, pieces)
    assert where is not None and where["date"] == () and set(where) == {"company", "total", "date"}
    (company,), (total,) = where["company"], where["total"]
    assert company.source == total.source == "text layer"
    edges = dict(zip(("left", "top", "right", "bottom"), company.box, strict=True))
    assert 40 < (edges[side] if side in ("left", "top") else 1000 - edges[side]) < 70
    across = slice(1, 4, 2) if turn % 180 == 0 else slice(0, 4, 2)
    assert company.box[across] != total.box[across]  # another line


def test_nothing_is_located_without_a_text_layer_and_attention() -> None:
    sequence = ReplySequence(0, None, (Media("image", data=drawn()),), DecodingMode.CONSTRAINED, None, 9)  # type: ignore[arg-type]
    assert Locator({}, None).locate(sequence, [b'{"company": "', b"A", b'"}']) is None
