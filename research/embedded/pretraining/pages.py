"""Drawn documents as grids of characters: the slots of every patch of every tile, with or without pixels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from mllm_tailor.synthetic import DrawnText, text_layout

from pretraining import glyph_slots
from pretraining.tiles import GRID, TILE

KINDS, SHARES = ("receipts", "tickets", "forms", "tables"), (0.8, 0.08, 0.06, 0.06)
HELD_OUT = ("kopitiam", "pharmacy", "counter", "franchise")  # receipt families that are only evaluated on
MIDDLE = 0.33  # of an em above the baseline: where a line's characters are said to be


@dataclass(frozen=True)
class Page:
    """A document without pixels: labels [tiles, 32, 32, SLOTS], its lines top to bottom, its fields as printed."""

    kind: str
    labels: np.ndarray
    lines: tuple[str, ...]
    middles: tuple[float, ...]  # y of each line in px of the stacked tiles (one column of tiles only)
    fields: dict[str, str]
    places: tuple[np.ndarray, ...] = ()  # of each line's characters: visual token * 12 + slot, -1 where it has none


def receipt_layouts(held_out: bool) -> tuple[str, ...]:
    from mllm_tailor.synthetic import layouts_of

    known = layouts_of("receipts")
    return tuple(name for name in known if (name in HELD_OUT) == held_out)


def is_ascii(fields: dict[str, str]) -> bool:
    return all(value.isascii() for value in fields.values())


def grid_of(width: int, height: int, most: int = 3) -> tuple[int, int]:
    from mllm_tailor.models.inputs.tiling import tile_grid

    return tile_grid(width, height, 1, most, TILE)


def text_page(rng: np.random.Generator, held_out: bool = False) -> Page:
    """A random document as characters in slots, stretched to its tiles and skewed a little as a scan would be."""
    while True:
        kind = "receipts" if held_out else str(rng.choice(KINDS, p=SHARES))
        layouts = receipt_layouts(held_out) if kind == "receipts" else None
        text = text_layout(kind, int(rng.integers(1 << 40)), layouts=layouts)
        if is_ascii(text.fields):
            return to_page(text, rng)


def characters(text: DrawnText) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class and centre (px of the page) of every character, blanks inside a line included."""
    classes, x, y = [], [], []
    for cell in text.cells:
        starts = cell.starts
        classes += [glyph_slots.class_of(character) for character in cell.text]
        x += [(a + b) / 2 for a, b in pairwise(starts)]
        y += [cell.baseline - MIDDLE * cell.size] * len(cell.text)
    return np.array(classes), np.array(x), np.array(y)


def to_page(text: DrawnText, rng: np.random.Generator) -> Page:
    columns, rows = grid_of(text.width, text.height)
    classes, x, y = characters(text)
    x = x * (columns * TILE / text.width)
    y = y * (rows * TILE / text.height)
    if rng.random() < 0.7:
        slope, lean = rng.normal(0, 0.008), rng.normal(0, 0.01)
        x, y = x + lean * (y - rows * TILE / 2), y + slope * (x - columns * TILE / 2)
    x = x + rng.normal(0, 0.7, len(x)) + rng.uniform(-6, 6)
    y = y + rng.uniform(-6, 6)
    labels, where = glyph_slots.place_slots(classes, x, y, rows * GRID, columns * GRID)
    tiled = labels.reshape(rows, GRID, columns, GRID, glyph_slots.SLOTS).transpose(0, 2, 1, 3, 4)
    found: dict[int, float] = {}
    for cell in text.cells:
        found.setdefault(cell.row, (cell.baseline - MIDDLE * cell.size) * rows * TILE / text.height)
    return Page(
        text.kind,
        tiled.reshape(rows * columns, GRID, GRID, glyph_slots.SLOTS),
        text.lines,
        tuple(found.values()),
        text.fields,
        places_of_lines(text, token_places(where, columns)),
    )


def token_places(where: np.ndarray, columns: int) -> np.ndarray:
    """Indices of flat labels [rows, columns, SLOTS] of a page to places among its visual tokens: token * 12 + slot."""
    patch, slot = where // glyph_slots.SLOTS, where % glyph_slots.SLOTS
    row, column = patch // (columns * GRID), patch % (columns * GRID)
    tile = row // GRID * columns + column // GRID
    token = (tile * GRID // 2 + row % GRID // 2) * (GRID // 2) + column % GRID // 2
    quadrant = row % 2 * 2 + column % 2
    return np.where(where < 0, -1, (token * 4 + quadrant) * glyph_slots.SLOTS + slot)


def places_of_lines(text: DrawnText, places: np.ndarray) -> tuple[np.ndarray, ...]:
    """The places of each line's characters; the blank between two cells of a line has none."""
    rows: dict[int, list[np.ndarray]] = {}
    start = 0
    for cell in text.cells:
        found = rows.setdefault(cell.row, [])
        if found:
            found.append(np.array([-1]))
        found.append(places[start : start + len(cell.text)])
        start += len(cell.text)
    return tuple(np.concatenate(parts) for parts in rows.values())


def to_tokens(labels: np.ndarray) -> np.ndarray:
    """[tiles, 32, 32, SLOTS] to the slots of each visual token: [tiles * 256, 4 * SLOTS], quadrants row by row."""
    tiles = labels.shape[0]
    grouped = labels.reshape(tiles, GRID // 2, 2, GRID // 2, 2, glyph_slots.SLOTS).transpose(0, 1, 3, 2, 4, 5)
    return grouped.reshape(tiles * (GRID // 2) ** 2, 4 * glyph_slots.SLOTS)
