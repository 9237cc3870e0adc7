"""A composed document (rows of cells) and its placing: which character stands where, without drawing a pixel.

Rows say where their cells stand as fractions of the text width, so that one document can be placed with any font.
Placing finds the largest size at which no cell of any row touches its neighbour; text therefore never overlaps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple, TypedDict

LEFT, MIDDLE, RIGHT = 0.0, 0.5, 1.0  # the share of a cell's width that lies left of its anchor
CELL_GAP = 0.6  # smallest blank between two cells of a row, in em


class Cell(NamedTuple):
    """One piece of text; `at` is where its anchor stands, as a fraction of the text width."""

    text: str
    at: float = 0.5
    anchor: float = MIDDLE


class Row(NamedTuple):
    """One printed line; `rule`, `art` and `frame` are ink that carries no characters."""

    cells: tuple[Cell, ...] = ()
    scale: float = 1.0  # of the base size
    wide: float = 1.0  # horizontal stretch, as till printers do
    bold: bool = False
    before: float = 0.0  # blank above, in lines
    rule: str = ""  # "-", "=", "*", ".", "_" repeated across the page, or "line"
    art: str = ""  # "barcode" or "logo"
    frame: tuple[float, ...] = ()  # vertical lines of a boxed row, as fractions of the text width


class Look(TypedDict, total=False):
    """The settings of a `Row` other than its cells, for functions that build rows."""

    scale: float
    wide: float
    bold: bool
    before: float
    rule: str
    art: str
    frame: tuple[float, ...]


@dataclass
class Sheet:
    """A composed document: what it says and in which rows, for any width and font.

    `fields` are what a label would hold, `facts` further named values that are printed; both exactly as printed.
    """

    kind: str
    layout: str
    columns: int  # how many average characters fit across
    rows: list[Row] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    leading: float = 1.3  # line pitch in em
    items: list[dict[str, str]] = field(default_factory=list)  # line items as printed, where a label may hold them

    def add(self, *rows: Row) -> None:
        self.rows += rows


@dataclass(frozen=True)
class Metrics:
    """Widths and heights of a font in em."""

    advances: dict[str, float]
    usual: float  # the advance of any other character
    capital: float = 0.72  # height of H above the baseline
    descent: float = 0.21  # depth of p below it

    def starts(self, text: str) -> list[float]:
        """Where each character of the text begins and, last, where the text ends; in em."""
        get, usual = self.advances.get, self.usual
        return list(accumulate([get(char, usual) for char in text], initial=0.0))


def _sans() -> dict[str, float]:
    """Rounded advances of a usual grotesque, in em: good enough for layouts without pixels."""
    groups = {
        0.25: " .,:;|!'/\\ijlI[]ft`", 0.34: "()-r\"{}*°", 0.5: "csvxyzkJ", 0.56: "abdeghnopqu0123456789$£€#_?L",
        0.59: "+=<>~FTZ^", 0.67: "AEKPSVXYB&", 0.73: "CDHNRUw", 0.79: "GOQ", 0.84: "mM%", 0.95: "W@",
    }  # fmt: skip
    return {char: width for width, chars in groups.items() for char in chars}


MONO = Metrics({}, 0.6)
SANS = Metrics(_sans(), 0.56)


class PlacedLine(NamedTuple):
    """One cell on the page, in pixels; `starts` holds each character's left edge and, last, the right end."""

    text: str
    starts: list[float]
    baseline: float
    size: float  # em in pixels
    wide: float
    bold: bool
    row: int


class Mark(NamedTuple):
    """Ink without characters: what, its box in pixels, and the vertical lines of a frame."""

    what: str
    x0: float
    y0: float
    x1: float
    y1: float
    size: float
    stops: tuple[float, ...] = ()


@dataclass(frozen=True)
class DrawnText:
    """A document as placed characters, without pixels.

    `boxes` lists (character, x, y, width, height) in reading order, blanks left out: x and width are the character's
    advance cell, y and height reach from the capitals' top to the descenders' foot, the same for a whole line.
    """

    kind: str
    layout: str
    width: int
    height: int
    cells: tuple[PlacedLine, ...]
    marks: tuple[Mark, ...]
    fields: dict[str, str]
    facts: dict[str, str]
    metrics: Metrics

    @property
    def boxes(self) -> list[tuple[str, float, float, float, float]]:
        boxes = []
        for text, starts, baseline, size, _, _, _ in self.cells:
            top, tall = baseline - self.metrics.capital * size, (self.metrics.capital + self.metrics.descent) * size
            boxes += [
                (char, start, top, end - start, tall)
                for char, start, end in zip(text, starts, starts[1:], strict=False)
                if char != " "
            ]
        return boxes

    @property
    def lines(self) -> tuple[str, ...]:
        """The text of each printed row, cells joined by a blank."""
        rows: dict[int, list[str]] = {}
        for cell in self.cells:
            rows.setdefault(cell.row, []).append(cell.text)
        return tuple(" ".join(cells) for cells in rows.values())


def _fit(cells: list[tuple[Cell, float]], width: float, scale: float) -> float:
    """The largest em at which these (cell, length in em) stay within 0..width and do not overlap; pixels."""
    best = float("inf")
    before: tuple[float, float] | None = None  # the anchor of the cell to the left, and its reach to the right in em
    for cell, length in cells:
        grows_left, grows_right = cell.anchor * length * scale, (1 - cell.anchor) * length * scale
        anchor = cell.at * width
        if grows_left > 0:
            room, need = anchor, grows_left
            if before is not None:
                room, need = anchor - before[0], grows_left + before[1] + CELL_GAP
            best = min(best, room / need)
        elif before is not None and before[1] + CELL_GAP > 0:
            best = min(best, (anchor - before[0]) / (before[1] + CELL_GAP))
        before = (anchor, grows_right)
    if before is not None and before[1] > 0:
        best = min(best, (width - before[0]) / before[1])
    return best


def lay_out(
    sheet: Sheet, metrics: Metrics, width: int, margin: float, *, leading: float | None = None, squeeze: float = 1.0
) -> DrawnText:
    """Position every character of a sheet on a page `width` pixels wide with `margin` pixels of blank around the text.

    `squeeze` narrows all characters, which makes them taller at the same page width, as till printers' are.
    """
    inner = width - 2 * margin
    measured = [[(cell, metrics.starts(cell.text)) for cell in row.cells] for row in sheet.rows]
    size = inner / (sheet.columns * 0.56 * squeeze)  # about one column per average character of a common font
    for row, cells in zip(sheet.rows, measured, strict=True):
        if cells:
            size = min(
                size, _fit([(cell, starts[-1]) for cell, starts in cells], inner, row.scale * row.wide * squeeze)
            )
    pitch = size * (leading or sheet.leading)
    y = margin
    placed: list[PlacedLine] = []
    marks: list[Mark] = []
    for index, (row, cells) in enumerate(zip(sheet.rows, measured, strict=True)):
        y += row.before * pitch
        height = pitch * row.scale * (3.0 if row.art else 1.0)
        if row.rule or row.art:
            marks.append(Mark(row.rule or row.art, margin, y, margin + inner, y + height, size))
        if row.frame:
            stops = tuple(margin + stop * inner for stop in row.frame)
            marks.append(Mark("frame", stops[0], y, stops[-1], y + height, size, stops))
        em = size * row.scale
        baseline = y + (height + (metrics.capital - 0.4 * metrics.descent) * em) / 2
        for cell, starts in cells:
            wide = row.wide * squeeze
            stretch = em * wide
            left = margin + cell.at * inner - cell.anchor * starts[-1] * stretch
            placed.append(
                PlacedLine(cell.text, [left + x * stretch for x in starts], baseline, em, wide, row.bold, index)
            )
        y += height
    return DrawnText(
        sheet.kind,
        sheet.layout,
        width,
        round(y + margin),
        tuple(placed),
        tuple(marks),
        dict(sheet.fields),
        dict(sheet.facts),
        metrics,
    )
