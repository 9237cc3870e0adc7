"""Blank margins are found, and nothing printed is ever cut off."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mllm_tailor.core.sample import Media
from mllm_tailor.media.crop import CELL, KEPT, box_of, print_box
from mllm_tailor.media.open import open_image


def page(width: int, height: int, block: tuple[int, int, int, int], seed: int = 0) -> Image.Image:
    """A blank noisy sheet with a block of print-like strokes."""
    random = np.random.default_rng(seed)
    grey = 235 + random.normal(0, 4, (height, width))
    left, top, right, bottom = block
    grey[top:bottom, left:right] -= 180 * (random.random((bottom - top, right - left)) < 0.35)
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8))


@pytest.mark.slow
@settings(max_examples=40)
@given(
    width=st.integers(120, 1400),
    height=st.integers(120, 1400),
    place=st.tuples(*[st.floats(0, 1)] * 4),
    seed=st.integers(0, 5),
)
def test_the_box_holds_the_print_and_little_more(width: int, height: int, place: tuple, seed: int) -> None:
    block_width, block_height = 64 + int(place[0] * (width - 64)), 64 + int(place[1] * (height - 64))
    left, top = int(place[2] * (width - block_width)), int(place[3] * (height - block_height))
    block = (left, top, left + block_width, top + block_height)
    found = print_box(page(width, height, block, seed))
    step = CELL * (2 if max(width, height) > 1024 else 1)
    # A last cell that is not whole belongs to no cell, and one cell less holds only a corner of the block.
    assert all(near <= far for near, far in zip(found[:2], block[:2], strict=True))
    assert all(near >= far for near, far in zip(found[2:], block[2:], strict=True))
    assert all(abs(one - other) <= (KEPT + 1) * step for one, other in zip(found, block, strict=True))


def test_dust_does_not_hold_a_margin_open() -> None:
    picture = page(800, 1000, (300, 200, 500, 700))
    pixels = np.array(picture)
    for x, y in ((20, 30), (780, 20), (400, 960)):
        pixels[y : y + 4, x : x + 4] = 10
    assert print_box(Image.fromarray(pixels)) == print_box(picture)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_page_stays_whole(level: int) -> None:
    assert print_box(Image.new("L", (333, 444), level)) == (0, 0, 333, 444)
    assert print_box(Image.new("RGB", (5, 3))) == (0, 0, 5, 3)


@pytest.mark.slow
def test_no_transcribed_line_of_real_receipts_is_cut(sroie: Path) -> None:
    """Every sixteenth of the 626 receipts: all their transcribed lines lie inside, but for 1 in 200 at most."""
    rows = [json.loads(row) for row in (sroie / "metadata.jsonl").read_text().splitlines()][::16]
    inside = lines = 0
    for row in rows:
        name = row["file_name"] if "/" in row["file_name"] else f"images/{row['file_name']}"
        left, top, right, bottom = print_box(Image.open(sroie / name).convert("RGB"))
        for line in row["ocr"]:
            xs, ys = line["quad"][0::2], line["quad"][1::2]
            inside += min(xs) >= left - 3 and max(xs) <= right + 3 and min(ys) >= top - 3 and max(ys) <= bottom + 3
            lines += 1
    assert inside >= 0.995 * lines > 0


def test_the_box_is_of_the_file_as_it_is_now_and_of_all_stitched_views(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.png" for name in ("left", "right")]
    for path, block in zip(paths, ((40, 40, 120, 100), (200, 150, 380, 280)), strict=True):
        page(400, 300, block).save(path)
    media, views = Media("image", paths[0]), Media("image", paths[0], views=tuple(paths))
    before = box_of(media)
    assert before == print_box(open_image(media))
    assert box_of(views) == print_box(open_image(views)) != before
    page(400, 300, (250, 30, 390, 290)).save(paths[0])
    assert box_of(media) == print_box(open_image(media)) != before
