"""Printed lines set one after the other: nothing is lost, rows lie on the model's tokens, and the way back is known."""

from __future__ import annotations

import io
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fixtures.printed_pages import photograph, printed
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media
from mllm_tailor.media import reflow as module
from mllm_tailor.media.reflow import (
    CELL,
    SETTINGS,
    Piece,
    Reflowed,
    Setting,
    TileSpec,
    count_reflowed_tiles,
    draw_lines,
    reflow,
    reflow_media,
    set_lines,
    set_on_tiles,
)
from mllm_tailor.media.reflow_lines import PrintedPage, TextLine, Word, read_page
from mllm_tailor.recipe.schema import MOST_FRAMINGS

TILES = TileSpec(tokens=16, size=224, fewest=1, most=12)


@st.composite
def pages(draw: st.DrawFn) -> PrintedPage:
    """Lines of words as they may be found on a page."""
    lines, top = [], 2
    for _ in range(draw(st.integers(1, 25))):
        height, left, words = draw(st.integers(6, 60)), draw(st.integers(0, 60)), []
        for width, gap in draw(st.lists(st.tuples(st.integers(1, 300), st.integers(3, 200)), min_size=1, max_size=6)):
            words.append(Word(left, left + width))
            left += width + gap
        lines.append(TextLine(top, top + height, tuple(words)))
        top += height + 4
    grey = Image.new("L", (2000, top + 2), 255)
    return PrintedPage(grey, tuple(lines), draw(st.floats(6, 30)), (0.0, draw(st.floats(-0.1, 0.1)), 0.02))


@settings(max_examples=60, deadline=None)
@given(page=pages(), columns=st.integers(1, 20), setting=st.sampled_from(SETTINGS))
def test_every_word_is_set_once_and_in_order(page: PrintedPage, columns: int, setting: Setting) -> None:
    layout = set_lines(page, columns, setting)
    for line in page.lines:
        parts = [(piece.left, piece.right) for piece in layout.pieces if piece.line is line]
        whole = [parts[0]]
        for part in parts[1:]:  # only a word that a row does not hold is cut, and its parts adjoin
            whole = [*whole[:-1], (whole[-1][0], part[1])] if part[0] == whole[-1][1] else [*whole, part]
        assert whole == [(word.left, word.right) for word in line.words]
    ends = [(piece.row, piece.x, piece.x + (piece.right - piece.left) * piece.scale) for piece in layout.pieces]
    assert all(0 <= x < end <= layout.width + 1e-6 for _, x, end in ends)
    assert all(row < after[0] or (row == after[0] and end <= after[1]) for (row, _, end), after in pairwise(ends))
    assert len(layout.marks) == len(page.lines) and layout.rows == ends[-1][0] + 1


@settings(max_examples=20, deadline=None)
@given(page=pages(), tokens=st.integers(1, 16), most=st.integers(1, 4), data=st.data())
def test_tiles_never_exceed_the_maximum(page: PrintedPage, tokens: int, most: int, data: st.DataObject) -> None:
    fewest, setting = data.draw(st.integers(1, most)), data.draw(st.sampled_from(SETTINGS))
    result = set_on_tiles(page, TileSpec(tokens, 14 * tokens, fewest, most), setting)
    assert fewest <= result.tiles <= most and result.layout.rows <= result.tiles * result.layout.columns
    assert result.layout.columns == tokens or set_lines(page, tokens, setting).tiles > most
    assert result.image().size == (14 * tokens, 14 * tokens * result.tiles)


@settings(max_examples=40, deadline=None)
@given(page=pages(), tokens=st.integers(1, 16), most=st.integers(1, 12), data=st.data())
def test_a_piece_is_found_on_its_page_to_within_a_cell(
    page: PrintedPage, tokens: int, most: int, data: st.DataObject
) -> None:
    result = set_on_tiles(page, TileSpec(tokens, 14 * tokens, 1, most), data.draw(st.sampled_from(SETTINGS)))
    piece: Piece = data.draw(st.sampled_from(result.layout.pieces))
    wide, high = 1000 / result.layout.width, 1000 / (result.layout.width * result.tiles)
    end = piece.x + (piece.right - piece.left) * piece.scale
    shown = (piece.x * wide, piece.row * CELL * high, end * wide, (piece.row + 1) * CELL * high)
    boxes = result.to_page(shown)
    width, height = page.grey.size
    cell = CELL / piece.scale
    left, top, right, bottom = boxes[0]
    assert len(boxes) == 1 and (left, right) == pytest.approx((piece.left * 1000 / width, piece.right * 1000 / width))
    slant = abs(page.slope((piece.line.top + piece.line.bottom) / 2)) * width / 2
    assert piece.line.top - slant - 1 <= top * height / 1000 and bottom * height / 1000 <= piece.line.bottom + slant + 1
    assert abs((right - left) * width / 1000 - (end - piece.x) / piece.scale) < cell
    middle = (piece.row + 0.5) * CELL * high
    assert result.to_page((shown[0], middle - 1e-3, shown[2], middle + 1e-3)) == boxes, "a flat box is of its row"


@pytest.mark.parametrize("turn", [0.0, 2.0, -3.0])
def test_all_ink_of_a_page_is_shown(turn: float) -> None:
    image = printed(turn=turn)
    result = reflow(image, TILES)
    assert result is not None and len(result.page.lines) == 14
    dark = np.asarray(image.convert("L")) < 120
    covered = np.zeros(dark.shape, bool)
    for left, top, right, bottom in result.to_page((0, 0, 1000, 1000)):
        x0, x1 = (value * image.width / 1000 for value in (left, right))
        y0, y1 = (value * image.height / 1000 for value in (top, bottom))
        covered[max(0, int(y0) - 1) : int(y1) + 2, max(0, int(x0) - 1) : int(x1) + 2] = True
    assert (dark & covered).sum() >= 0.99 * dark.sum()
    shown = (np.asarray(result.image().convert("L")) < 128).mean(1)
    rows = shown.reshape(-1, 14)
    assert (rows[: result.layout.rows].max(1) > 0).all() and (rows[result.layout.rows :] == 0).all()


def test_each_framing_moves_the_print_to_other_places_of_its_tokens(tmp_path: Path) -> None:
    assert len(SETTINGS) == MOST_FRAMINGS and SETTINGS[0] == Setting()
    printed().save(tmp_path / "page.png")
    media = [Media("image", tmp_path / "page.png", framing=index) for index in range(MOST_FRAMINGS)]
    views = [reflow_media(each, TILES) for each in media]
    assert all(view is not None and view.page == views[0].page for view in views)
    places = [tuple(round(piece.x % CELL, 1) for piece in view.layout.pieces) for view in views]
    assert len(set(places)) == len(places)
    assert [count_reflowed_tiles(each, TILES) for each in media] == [view.tiles for view in views]


@pytest.mark.parametrize("size", [112, 224, 448])
def test_the_image_is_the_drawing_reduced_as_in_training(size: int) -> None:
    result = reflow(printed(), TileSpec(16, size, 1, 3))
    assert result is not None
    drawn = np.asarray(draw_lines(result.page, result.layout, result.tiles), np.float32)
    step = 448 // size
    mean = drawn.reshape(len(drawn) // step, step, size, step).mean((1, 3))
    shown = np.asarray(result.image())
    assert shown.shape == (size * result.tiles, size, 3) and np.abs(shown[..., 0] - mean).max() <= 0.5


def test_the_same_page_fills_the_same_rows_at_every_size() -> None:
    small, large = (reflow(printed(size=size), TILES) for size in (12, 40))
    assert small is not None and large is not None
    assert abs(small.layout.rows - large.layout.rows) <= 2


def test_a_large_scan_is_reduced_before_it_is_read() -> None:
    image = printed(20, size=20).resize((2600, 5446), Image.Resampling.BICUBIC)
    page = read_page(image)
    assert page.is_print and len(page.lines) == 20 and page.usual <= 31
    width, height = page.grey.size
    assert width * height < image.width * image.height / 4
    assert read_page(printed(20, size=20)).grey.size == printed(20, size=20).size


def test_shade_along_a_side_hides_no_line() -> None:
    page = read_page(printed(shade=24))
    assert page.is_print and len(page.lines) == 14


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (300, 400), "white"),
        Image.new("RGB", (300, 400), "black"),
        Image.new("RGB", (9, 700), (120, 130, 90)),
        photograph(),
        photograph(1),
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)),
    ],
    ids=["white", "black", "thin", "photograph", "another", "noise"],
)
def test_what_is_no_print_stays_as_it_is(image: Image.Image) -> None:
    assert reflow(image, TILES) is None


@pytest.mark.parametrize("width", [3, 8, 40])
@pytest.mark.parametrize("height", [3, 7, 90])
def test_tiny_images_are_read(width: int, height: int) -> None:
    rng = np.random.default_rng(width * height)
    levels = np.where(rng.random((height, width)) < 0.1, 0, 255).astype(np.uint8)
    result = reflow(Image.fromarray(levels), TILES)
    assert result is None or result.image().width == TILES.size


def test_a_file_is_read_once_until_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Media] = []

    def counting(media: Media) -> Image.Image:
        opened.append(media)
        return Image.open(media.path or io.BytesIO(media.data or b"")).convert("RGB")

    monkeypatch.setattr(module, "open_image", counting)
    page = tmp_path / "page.png"
    printed(40).save(page)
    media = Media("image", page)
    count = count_reflowed_tiles(media, TILES)
    result = reflow_media(media, TILES)
    assert isinstance(result, Reflowed) and result.tiles == count and len(opened) == 1
    for other in range(module.RECENT + 1):  # more than the recent ones
        Image.new("L", (40, 40 + other), 255).save(tmp_path / f"{other}.png")
        assert count_reflowed_tiles(Media("image", tmp_path / f"{other}.png"), TILES) == 0
    before = len(opened)
    assert count_reflowed_tiles(media, TILES) == count and len(opened) == before
    Image.new("L", (50, 50), 255).save(page)
    os.utime(page, ns=(1, 1))
    assert count_reflowed_tiles(media, TILES) == 0
    inline = io.BytesIO()
    printed(40).save(inline, "PNG")
    assert count_reflowed_tiles(Media("image", data=inline.getvalue()), TILES) == count


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png"):
        count_reflowed_tiles(Media("image", tmp_path / "gone.png"), TILES)
