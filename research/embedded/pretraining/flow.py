"""Text lines brought to one height and written one after the other: the grid of cells that the reader sees.

A page is cut into its printed lines (`mllm_tailor.media.reflow` does it to pixels), each line is scaled to the same
height, and the lines are set like words of a paragraph: a mark, the line's words, the next mark, wrapped at the width
of a tile. One visual token is one cell of 28 x 28 px and holds about two characters of one line, so that the order of
the tokens is the order of the text. Here the same is done to characters, without pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mllm_tailor.media.reflow import CELL, GAP, HEIGHT, MARK, TALLEST
from mllm_tailor.synthetic import DrawnText

from pretraining import glyph_slots

COLUMNS = 16  # visual tokens of CELL x CELL px along a tile
TOKENS = COLUMNS * COLUMNS  # of a tile
WIDTH = CELL * COLUMNS
TOWER = {"patch": CELL, "ratio": 6}
SLOTS = 5  # characters a cell can name
NEWLINE = glyph_slots.CLASSES  # the class of the mark
CLASSES = glyph_slots.CLASSES + 1


@dataclass(frozen=True)
class Word:
    """Characters without a blank, and where each begins and, last, where the word ends; px of the source."""

    text: str
    starts: tuple[float, ...]


@dataclass(frozen=True)
class Line:
    """Words from left to right, and the em of their print in px of the source."""

    words: tuple[Word, ...]
    size: float

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True)
class Flow:
    """Classes [cells, SLOTS] of a page, its lines, and where every character is shown.

    `known` has one entry for each character of the lines joined by line ends: cell * SLOTS + slot, -1 where it has
    none. A line end is shown by the mark before the next line.
    """

    cells: np.ndarray
    lines: tuple[str, ...]
    known: np.ndarray

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def class_of(character: str) -> int:
    return NEWLINE if character == "\n" else glyph_slots.class_of(character)


def character_of(index: int) -> str:
    return "\n" if index == NEWLINE else glyph_slots.character_of(index)


def lines_of(text: DrawnText) -> tuple[Line, ...]:
    """The printed rows of a placed document; blanks between cells are as good as blanks in them."""
    rows: dict[int, list[Word]] = {}
    sizes: dict[int, float] = {}
    for cell in text.cells:
        words = rows.setdefault(cell.row, [])
        sizes[cell.row] = cell.size
        begin = 0
        for end in [*(at for at, letter in enumerate(cell.text) if letter == " "), len(cell.text)]:
            if end > begin:
                words.append(Word(cell.text[begin:end], tuple(cell.starts[begin : end + 1])))
            begin = end + 1
    return tuple(Line(tuple(words), sizes[row]) for row, words in rows.items() if words)


class _Pen:
    """Where the next character goes; fills `cells` and remembers the place of each character."""

    def __init__(self) -> None:
        self.row, self.x = 0, 0.0
        self.classes: list[int] = []
        self.cell: list[int] = []

    def put(self, character: str, centre: float) -> None:
        column = min(COLUMNS - 1, int(centre // CELL))
        self.classes.append(class_of(character))
        self.cell.append(self.row * COLUMNS + column)

    def wrap(self, width: float) -> None:
        """Go to the next row unless `width` px fit."""
        if self.x and self.x + width > WIDTH:
            self.row, self.x = self.row + 1, 0.0


def set_flow(lines: Sequence[Line], rng: np.random.Generator, whole_tiles: bool = False) -> Flow:
    """Set lines one after the other as the product sets their pixels; the height of print is measured roughly there."""
    usual = float(np.median([line.size for line in lines])) * rng.uniform(0.72, 0.95)
    pen = _Pen()
    for number, line in enumerate(lines):
        height = 0.8 * line.size / usual
        scale = HEIGHT / usual * min(1.0, TALLEST / max(height, 1e-6))
        pen.wrap(MARK + CELL)
        if number:
            pen.put("\n", pen.x + MARK / 2)
        first_mark = (pen.row, pen.x)
        pen.x += MARK
        before = None
        for word in line.words:
            starts = [(start - word.starts[0]) * scale for start in word.starts]
            if before is not None:
                gap = float(np.clip((word.starts[0] - before) * scale, *GAP))
                pen.put(" ", min(pen.x + gap / 2, WIDTH - 1))
                pen.x += gap
            if starts[-1] <= WIDTH:
                pen.wrap(starts[-1])
            for letter, left, right in zip(word.text, starts[:-1], starts[1:], strict=True):
                pen.wrap(right - left)  # only a word wider than a row is cut
                pen.put(letter, pen.x + (right - left) / 2)
                pen.x += right - left
            before = word.starts[-1]
        if number == 0:
            first = first_mark[0] * COLUMNS
    return _filled(pen, first, tuple(line.text for line in lines), whole_tiles)


def _filled(pen: _Pen, first: int, lines: tuple[str, ...], whole_tiles: bool) -> Flow:
    rows = pen.row + 1
    if whole_tiles:
        rows = -(-rows // COLUMNS) * COLUMNS
    cells = np.zeros((rows * COLUMNS, SLOTS), np.int64)
    cells[first, 0] = NEWLINE  # the mark of the first line ends no line
    used = np.zeros(len(cells), int)
    used[first] = 1
    known = np.full(len(pen.cell), -1)
    for index, (kind, cell) in enumerate(zip(pen.classes, pen.cell, strict=True)):
        if used[cell] < SLOTS and kind != glyph_slots.NONE:
            cells[cell, used[cell]] = kind
            known[index] = cell * SLOTS + used[cell]
        used[cell] += 1
    return Flow(cells, lines, known)
