"""Drawn documents as the reader sees them: their lines found in the pixels, with a label for every cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mllm_tailor.media.reflow import Mark, Piece, draw_lines, set_lines
from mllm_tailor.media.reflow_lines import PrintedPage, read_page
from mllm_tailor.synthetic import DrawnPage
from PIL import Image

from pretraining import flow, glyph_slots, pictures, questions
from pretraining.flow_pages import FlowPage
from pretraining.language import Example

INVENTED = 0.5  # share of the practice documents whose names and streets are invented words
CAPITALS = 0.39  # of a character's box from its top: the middle of its capitals


@dataclass(frozen=True)
class FlowPicture:
    """Grey tiles [n, 448, 448] uint8 and the page they show; `page.shown.cells` are their labels."""

    tiles: np.ndarray
    page: FlowPage


@dataclass(frozen=True)
class Spot:
    """Where a character came to stand in the flow, and in which of the lines found."""

    row: int
    x: float
    line: int


def drawn(rng: np.random.Generator, held_out: bool = False, invent: float = 0.0) -> FlowPicture:
    """A drawn document whose lines were found in its pixels, mistakes included."""
    return as_flow(pictures.drawn_page(rng, held_out, invent))


def flow_image(image: Image.Image) -> Image.Image:
    """The lines of a page one after the other, as a grey image of whole tiles one above the other."""
    printed = read_page(image)
    return draw_lines(printed, set_lines(printed, flow.COLUMNS))


def as_flow(drawn_page: DrawnPage) -> FlowPicture:
    printed = read_page(drawn_page.image)
    layout = set_lines(printed, flow.COLUMNS)
    image, pieces, marks = np.asarray(draw_lines(printed, layout)), layout.pieces, layout.marks
    spots = _spots(drawn_page, printed, pieces, marks)
    lines = tuple(line.text for line in drawn_page.lines)
    cells, known = _labels(spots, "\n".join(lines), marks, len(image) // flow.CELL)
    tiles = image.reshape(-1, flow.WIDTH, flow.WIDTH)
    return FlowPicture(tiles, FlowPage(drawn_page.kind, flow.Flow(cells, lines, known), drawn_page.fields))


def _spots(
    drawn_page: DrawnPage,
    printed: PrintedPage,
    pieces: Sequence[Piece],
    marks: Sequence[Mark],
) -> list[Spot | None]:
    """For each character of the lines joined by line ends, where it stands in the flow."""
    factor = printed.grey.width / drawn_page.image.width
    found: list[Spot | None] = []
    boxes = iter(drawn_page.characters)
    for number, line in enumerate(drawn_page.lines):
        if number:
            found.append(None)
        for letter in line.text:
            found.append(None if letter == " " else _spot(next(boxes), factor, printed, pieces))
    text = "\n".join(line.text for line in drawn_page.lines)
    for index, letter in enumerate(text):
        if letter in " \n" and 0 < index < len(text) - 1:
            found[index] = _between(found[index - 1], found[index + 1], marks if letter == "\n" else None)
    return found


def _spot(box, factor: float, printed: PrintedPage, pieces: Sequence[Piece]) -> Spot | None:
    x = (box.x0 + box.x1) / 2 * factor
    y = (box.y0 + CAPITALS * (box.y1 - box.y0)) * factor
    y -= printed.slope(y) * (x - printed.grey.width / 2)
    near = 0.3 * printed.usual
    for piece in pieces:
        if piece.line.top - 2 <= y <= piece.line.bottom + 2 and piece.left - near <= x <= piece.right + near:
            return Spot(piece.row, piece.x + (x - piece.left) * piece.scale, printed.lines.index(piece.line))
    return None


def _between(before: Spot | None, after: Spot | None, marks: Sequence[Mark] | None) -> Spot | None:
    """The blank between two characters, or (with `marks`) the line end: the mark of the line that follows."""
    if before is None or after is None:
        return None
    if marks is not None:
        row, x = marks[after.line]
        return Spot(row, x + flow.MARK / 2, after.line) if after.line > before.line else None
    if before.line != after.line:
        return None
    if before.row == after.row:
        return Spot(before.row, (before.x + after.x) / 2, before.line)
    return Spot(before.row, min(before.x + flow.HEIGHT / 2, flow.WIDTH - 1), before.line)


def _labels(spots: list[Spot | None], text: str, marks: Sequence[Mark], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes of all cells, a cell with too many characters ignored, and the place of every character."""
    cells = np.zeros((rows * flow.COLUMNS, flow.SLOTS), np.int64)
    known = np.full(len(text), -1)
    shown = [(spot, flow.class_of(letter), index) for index, (spot, letter) in enumerate(zip(spots, text, strict=True))
             if spot and letter != "\n"]  # fmt: skip
    ends = {(spot.row, spot.x): index for index, spot in enumerate(spots) if spot and text[index] == "\n"}
    for number, (row, x) in enumerate(marks):
        at = x + flow.MARK / 2
        shown.append((Spot(row, at, number), flow.NEWLINE, ends.get((row, at), -1)))
    used = np.zeros(len(cells), int)
    for spot, kind, index in sorted(shown, key=lambda entry: (entry[0].row, entry[0].x)):
        cell = spot.row * flow.COLUMNS + int(np.clip(spot.x // flow.CELL, 0, flow.COLUMNS - 1))
        if kind == glyph_slots.NONE:
            cells[cell] = glyph_slots.IGNORED  # a letter that no slot can name
            used[cell] = flow.SLOTS + 1
        elif used[cell] < flow.SLOTS:
            cells[cell, used[cell]] = kind
            if index >= 0:
                known[index] = cell * flow.SLOTS + used[cell]
        used[cell] += 1
    crowded = used > flow.SLOTS
    cells[crowded] = glyph_slots.IGNORED
    known[(known >= 0) & crowded[known // flow.SLOTS]] = -1
    return cells, known


def random_example(rng: np.random.Generator, most: int = 3) -> tuple[np.ndarray, Example]:
    """Tiles of a drawn document and a conversation about it."""
    while True:
        picture = drawn(rng, invent=INVENTED)
        if len(picture.tiles) <= most and (turns := questions.conversation(picture.page, rng)):
            return picture.tiles, picture.page.example(turns)


def random_tile(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One tile of a drawn document and the labels of its cells [256, SLOTS]."""
    picture = drawn(rng, invent=INVENTED)
    index = int(rng.integers(len(picture.tiles)))
    return picture.tiles[index], picture.page.shown.cells.reshape(-1, flow.TOKENS, flow.SLOTS)[index]
