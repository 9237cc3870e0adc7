"""Tiles of flowing text with pixels and a label for every cell: what the tower learns to read lines from.

Text is printed at the size scans have, worn and photographed there, and only then are its lines brought to one height,
so that strokes are as soft and as broken as those of real lines that `mllm_tailor.media.reflow` enlarges.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from pretraining import effects, flow, fonts, glyph_slots, tiles, words

ROWS = flow.COLUMNS
CAPITALS = "AEHMNTX"
MARKED = 0.12  # share of the blanks between words at which a new line begins


def random_atlas(rng: np.random.Generator, held_out: bool = False) -> fonts.Atlas:
    """A font of the machine at the size of a scanned receipt's print."""
    while True:  # the thinnest fonts leave no ink at the smallest sizes
        size = int(np.clip(np.exp(rng.normal(np.log(19), 0.3)), 11, 40))
        atlas = fonts.make_atlas(fonts.pick_font(rng, held_out), size, rng)
        if all(letter in atlas.masks for letter in CAPITALS):
            return atlas


def print_height(atlas: fonts.Atlas) -> float:
    """Height of capitals in px."""
    return float(np.median([len(atlas.masks[letter]) for letter in CAPITALS]))


def flow_tile(
    rng: np.random.Generator, held_out: bool = False, pool: tuple[fonts.Atlas, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """One tile: grey [448, 448] uint8 and labels [256, SLOTS]."""
    atlases = [pool[int(rng.integers(len(pool)))] if pool else random_atlas(rng, held_out) for _ in range(2)]
    grey = np.full((flow.WIDTH, flow.WIDTH), 255, np.uint8)
    labels = np.zeros((flow.TOKENS, flow.SLOTS), np.int64)
    written = ROWS if rng.random() < 0.8 else int(rng.integers(1, ROWS + 1))
    for start, count in ((0, ROWS // 2), (ROWS // 2, ROWS // 2)):
        atlas = atlases[start > 0]
        rows = max(0, min(count, written - start))
        for offset, (image, cells) in enumerate(_lines(rng, atlas, rows)):
            row = start + offset
            grey[row * flow.CELL : (row + 1) * flow.CELL] = image
            labels[row * flow.COLUMNS : (row + 1) * flow.COLUMNS] = cells
    return grey, labels


def _lines(rng: np.random.Generator, atlas: fonts.Atlas, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """`count` rows of the flow printed with one font on one piece of paper: grey [28, 448] and labels [16, SLOTS]."""
    if not count:
        return []
    capital = print_height(atlas)
    scale = flow.HEIGHT / (capital * rng.uniform(1.0, 1.35))  # the page's lines may have been measured with descenders
    width, pitch = int(np.ceil(flow.WIDTH / scale)), round(capital * rng.uniform(1.7, 2.1)) + 4
    pen = tiles.Pen(width, pitch * count)
    marks: list[list[float]] = []
    ends = []
    for row in range(count):
        marks.append([])
        _write_row(rng, pen, row * pitch + (pitch - atlas.height) / 2, atlas, width, marks[-1])
        ends.append(len(pen.classes))
    page = effects.photograph(effects.wear_ink(pen.ink, rng), rng).astype(np.float32)
    paper = max(1.0, np.percentile(page, 90))  # a page printed in white on black is black throughout
    middle = _middle(atlas)
    found, begin = [], 0
    for row, end in enumerate(ends):
        centre = row * pitch + (pitch - atlas.height) / 2 + middle + capital * rng.normal(0, 0.05)
        image = _enlarged(page, paper, centre, scale * np.exp(rng.normal(0, 0.04)), scale)
        for mark in marks[row]:
            left = round(mark * scale) + 4
            image[:, max(0, left) : left + 4] = 0
        found.append((image, _labels(pen.classes[begin:end], [x * scale for x in pen.x[begin:end]])))
        begin = end
    return found


def _middle(atlas: fonts.Atlas) -> float:
    """Where the middle of print lies below a line's top: a little under that of the capitals."""
    top = atlas.offsets["H"][1]
    return top + 0.55 * len(atlas.masks["H"])


def _write_row(
    rng: np.random.Generator, pen: tiles.Pen, y: float, atlas: fonts.Atlas, width: int, marks: list[float]
) -> None:
    """Words with blanks or marks between them until the row is full; a row may begin or end anywhere."""
    x = rng.uniform(-0.1, 0.3) * atlas.height
    blank = atlas.advances[" "]
    while x < width:
        for text in words.snippet(rng).split():
            fits = x + sum(atlas.advances.get(letter, 0) for letter in text) <= width
            if not fits and x > 0.5 * atlas.height and rng.random() < 0.9:
                return
            x = pen.write(text, x, y, atlas)
            if rng.random() < MARKED:
                marks.append(x + rng.uniform(0, 0.2) * blank)
                pen.classes.append(flow.NEWLINE)
                pen.x.append(marks[-1] + flow.MARK / 2 * atlas.height / 40)
                pen.y.append(y)
                x = marks[-1] + flow.MARK * atlas.height / 34 + rng.uniform(0, 0.3) * blank
            else:
                x = pen.write(" ", x, y, atlas)
                if rng.random() < 0.15:
                    x += rng.uniform(0, 1.5) * blank


def _enlarged(page: np.ndarray, paper: float, centre: float, tall: float, wide: float) -> np.ndarray:
    """The print around a height of the page as a row of the flow: paper white, print as dark as any."""
    top, bottom = centre - flow.CELL / 2 / tall, centre + flow.CELL / 2 / tall
    image = Image.fromarray(np.minimum(255, page * (255 / paper)).astype(np.uint8))
    row = image.transform(
        (flow.WIDTH, flow.CELL),
        Image.Transform.AFFINE,
        (1 / wide, 0, 0, 0, (bottom - top) / flow.CELL, top),
        Image.Resampling.BICUBIC,
        fillcolor=255,
    )
    levels = 255 - np.asarray(row, np.float32)
    darkest = max(40.0, float(np.percentile(levels, 97)))
    return (255 - np.minimum(255, levels * (230 / darkest))).astype(np.uint8)


def _labels(classes: list[int], x: list[float]) -> np.ndarray:
    """Classes of characters at their centres (px of the row) to the slots of the row's cells."""
    cells = np.zeros((flow.COLUMNS, flow.SLOTS), np.int64)
    used = np.zeros(flow.COLUMNS, int)
    for kind, at in sorted(zip(classes, x, strict=True), key=lambda pair: pair[1]):
        column = int(at // flow.CELL)
        if not 0 <= column < flow.COLUMNS or kind == glyph_slots.NONE:
            continue
        if used[column] < flow.SLOTS:
            cells[column, used[column]] = kind
        used[column] += 1
    cells[used > flow.SLOTS] = glyph_slots.IGNORED
    return cells
