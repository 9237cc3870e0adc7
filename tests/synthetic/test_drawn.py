"""Drawn documents: the same for the same seed, boxes on ink, fields on the page, a demo folder that reads back."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm_tailor.core.errors import DataError
from mllm_tailor.synthetic import (
    DEMO_LAYOUTS,
    KINDS,
    FontSet,
    Style,
    content,
    draw_document,
    draw_folder,
    ink,
    layouts_of,
    text_layout,
)
from mllm_tailor.synthetic.locales import LOCALES
from mllm_tailor.synthetic.subset_fonts import CHARACTERS

SEEDS = range(3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_page(kind: str) -> None:
    first, again, other = (draw_document(kind, seed) for seed in (5, 5, 6))
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert (first.characters, first.lines, first.fields) == (again.characters, again.lines, again.fields)
    assert first.lines != other.lines


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_boxes_hold_the_ink_of_their_character(kind: str, seed: int) -> None:
    page = draw_document(kind, seed, effects=False)
    ink = 255 - np.asarray(page.image.convert("L"))
    for char, x0, y0, x1, y1 in page.characters:
        box = ink[max(0, round(y0) - 1) : round(y1) + 1, max(0, round(x0) - 1) : round(x1) + 1]
        assert box.max() > 60, (char, x0, y0, x1, y1)


def test_no_ink_outside_the_boxes() -> None:
    """Boxes are where the text is: with them whitened only accents, swashes and rules remain."""
    page = draw_document("paragraphs", 4, effects=False, layouts=("prose",))
    ink = 255 - np.asarray(page.image.convert("L")).astype(int)
    before = ink.sum()
    for _, x0, y0, x1, y1 in page.characters:
        ink[round(y0) : round(y1) + 1, max(0, round(x0) - 1) : round(x1) + 1] = 0
    assert ink.sum() < 0.03 * before


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_boxes_move_along_with_skew_and_perspective(kind: str) -> None:
    """The mean darkness inside the boxes stays far above that of the page when everything is distorted."""
    for seed in SEEDS:
        page = draw_document(kind, seed, effects=0.6, style=Style(on_a4=False))
        grey = np.asarray(page.image.convert("L")).astype(float)
        paper = np.median(grey)
        cores = [
            (paper - grey[round(y0) : round(y1) + 1, round(x0) : round(x1) + 1]).mean()
            for _, x0, y0, x1, y1 in page.characters
            if x0 > 0 and y0 > 0 and x1 < grey.shape[1] and y1 < grey.shape[0]
        ]
        between = paper - grey.mean()
        assert np.mean(cores) > 1.5 * between


@pytest.mark.parametrize("kind", KINDS)
def test_characters_are_the_lines_without_blanks(kind: str) -> None:
    page = draw_document(kind, 9)
    assert "".join(char.char for char in page.characters) == "".join(line.text for line in page.lines).replace(" ", "")
    assert (page.kind, page.layout in layouts_of(kind)) == (kind, True)


@pytest.mark.parametrize("kind", KINDS)
def test_fields_are_printed_on_the_page(kind: str) -> None:
    """Values stand in the lines as they are; only an invoice's long names may be broken beside another column."""
    for seed in range(60):
        text = text_layout(kind, seed)
        printed = " ".join(text.lines)
        assert text.fields and all(value.strip() for value in text.fields.values())
        for name, value in (text.fields | text.facts).items():
            if name in ("seller", "buyer"):
                assert set(value.split()) <= set(printed.split()), (seed, text.layout, name)
            else:
                assert value in printed, (seed, text.layout, name)


@pytest.mark.parametrize("kind", KINDS)
def test_text_layout_is_the_drawn_document_without_pixels(kind: str) -> None:
    for seed in SEEDS:
        text, page = text_layout(kind, seed), draw_document(kind, seed, effects=False)
        assert text.lines == tuple(line.text for line in page.lines)
        assert text.fields == page.fields and text.layout == page.layout
        assert len(text.boxes) == len(page.characters)
        assert [box[0] for box in text.boxes] == [char.char for char in page.characters]


@pytest.mark.parametrize("kind", KINDS)
def test_cells_of_a_row_never_touch(kind: str) -> None:
    for seed in range(40):
        text = text_layout(kind, seed)
        ends: dict[int, float] = {}
        for cell in sorted(text.cells, key=lambda cell: (cell.row, cell.starts[0])):
            assert cell.starts[0] > ends.get(cell.row, 0.0) and cell.starts[-1] < text.width
            ends[cell.row] = cell.starts[-1]
        assert min(cell.size for cell in text.cells) > 6


@pytest.mark.parametrize("width", [40, 180, 900])
def test_a_logo_stays_in_its_place_however_tall(width: int) -> None:
    for top in range(40):  # its width is drawn from its place
        page = np.zeros((260, width + 20), np.uint8)
        ink.draw_logo(page, 10, top, 10 + width, top + 180)
        assert page.any() and not page[:, :10].any() and not page[:, 10 + width :].any()


@pytest.mark.slow
def test_receipts_come_in_many_families_and_the_demo_is_kept_apart() -> None:
    assert len(layouts_of("receipts")) >= 12
    assert not set(DEMO_LAYOUTS) & set(layouts_of("receipts"))
    seen = {text_layout("receipts", seed).layout for seed in range(300)}
    assert seen == set(layouts_of("receipts"))
    assert {text_layout("receipts", seed, layouts=("cafe",)).layout for seed in range(5)} == {"cafe"}
    assert draw_document("receipts", 0, style=Style(layout=DEMO_LAYOUTS[0])).layout == DEMO_LAYOUTS[0]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(DataError, match="receipts"):
        draw_document("reciepts", 0)
    with pytest.raises(DataError, match="cafe"):
        draw_document("receipts", 0, style=Style(layout="cafee"))
    with pytest.raises(DataError, match="Sans-Bold"):
        draw_document("receipts", 0, style=Style(font="Sans-Bolt"))


def test_purchases_add_up() -> None:
    rng = random.Random(0)
    for _ in range(300):
        locale = content.pick_locale(rng)
        bought = content.make_purchase(rng, locale, upper=False)
        extra = 0 if bought.tax_included else bought.tax
        parts = sum(item.amount for item in bought.items) - bought.discount + bought.service + extra + bought.rounding
        assert parts == bought.total <= bought.paid and bought.total % locale.rounds_to == 0


def test_money_is_written_as_the_country_does() -> None:
    assert [content.money(LOCALES[name], 123450) for name in ("my", "de")] == ["1,234.50", "1.234,50"]
    assert content.money(LOCALES["my"], -2) == "-0.02"


def test_shipped_fonts_are_small_licensed_and_complete() -> None:
    fonts = FontSet.shipped()
    folder = Path(fonts.faces[0].path).parent
    assert 4 <= len(fonts.faces) <= 6 and any(face.monospaced for face in fonts.faces)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 400_000
    assert (folder / "LICENSES.txt").read_text("utf-8").count("SIL OPEN FONT LICENSE") >= 1
    needed = {chr(code) for code in CHARACTERS if 33 <= code < 127}
    assert all(needed <= face.known for face in fonts.faces)


def test_large_sheet_holds_the_small_receipt() -> None:
    page = draw_document("receipts", 2, style=Style(on_a4=True, width=420))
    left, right = min(c.x0 for c in page.characters), max(c.x1 for c in page.characters)
    assert page.image.width > 1.4 * (right - left)
    assert left > 0 and right < page.image.width and max(c.y1 for c in page.characters) < page.image.height


@pytest.mark.slow
def test_demo_folder_reads_like_sroie(tmp_path: Path) -> None:
    draw_folder(tmp_path, 12, 8, seed=1)
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text("utf-8").splitlines()]
    assert [row["split"] for row in rows] == ["train"] * 12 + ["dev"] * 8
    groups = {split: {row["group"] for row in rows if row["split"] == split} for split in ("train", "dev")}
    assert groups["dev"] - groups["train"], "some branches occur among the held-out receipts only"
    for row in rows:
        with Image.open(tmp_path / row["file_name"]) as image:
            assert image.size == (row["width"], row["height"]) and image.height <= 896 and image.width <= 448
        entities = json.loads((tmp_path / "entities" / f"{row['id']}.json").read_text("utf-8"))
        assert entities == row["entities"] and set(entities) == {"company", "date", "address", "total"}
        printed = " ".join(line["text"] for line in row["ocr"])
        assert all(value in printed for value in entities.values())


@pytest.mark.slow
def test_drawing_that_fails_leaves_no_half_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mllm_tailor.synthetic.folder.fit", full)
    with pytest.raises(OSError, match="No space"):
        draw_folder(tmp_path / "d", 1, 1)
    assert list(tmp_path.iterdir()) == []


def test_system_fonts_are_text_fonts() -> None:
    fonts = FontSet.system()
    names = {face.name for face in fonts.faces}
    assert {face.name for face in FontSet.shipped().faces} <= names
    assert not {"OpenSymbol", "D050000L", "StandardSymbolsPS", "NotoColorEmoji"} & names
