"""Draw documents: compose, lay out, print, distort. The same kind and seed always give the same document."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from mllm_tailor.core.errors import DataError, nearest
from mllm_tailor.synthetic import documents, receipts
from mllm_tailor.synthetic.effects import apply_matrix, scanned
from mllm_tailor.synthetic.fonts import Face, FontSet
from mllm_tailor.synthetic.ink import print_text
from mllm_tailor.synthetic.page import MONO, SANS, DrawnText, PlacedLine, Sheet, lay_out

Composer = Callable[[random.Random], Sheet]
LAYOUTS: dict[str, dict[str, Composer]] = {"receipts": receipts.LAYOUTS, **documents.LAYOUTS}
KINDS = tuple(LAYOUTS)
DEMO_LAYOUTS = receipts.DEMO_LAYOUTS


class DrawnCharacter(NamedTuple):
    """A character and its box in pixels of the final image: its advance cell, capitals' top to descenders' foot."""

    char: str
    x0: float
    y0: float
    x1: float
    y1: float


class DrawnLine(NamedTuple):
    """A printed row's text and its four corners (x0, y0, ..., x3, y3), clockwise from the top left."""

    text: str
    quad: tuple[float, ...]


@dataclass(frozen=True)
class DrawnPage:
    """A drawn document: the image with its text, boxes and values.

    `characters` holds the non-blank characters of `lines` in the same order. `fields` are what a label would hold,
    `facts` further named values (cashier, change, ...); both exactly as printed.
    """

    image: Image.Image
    characters: tuple[DrawnCharacter, ...]
    lines: tuple[DrawnLine, ...]
    fields: dict[str, str]
    facts: dict[str, str]
    kind: str
    layout: str


@dataclass(frozen=True)
class Style:
    """The wanted look of a page; None leaves a setting to the seed."""

    layout: str | None = None  # a family of the kind, also one of `DEMO_LAYOUTS`
    width: int | None = None  # pixels, before effects
    margin: float | None = None  # pixels
    leading: float | None = None  # line pitch in em
    font: str | None = None  # a face's name
    on_a4: bool | None = None  # a small receipt on a large sheet


def layouts_of(kind: str) -> tuple[str, ...]:
    """The layout families of a kind that may be used for pretraining."""
    if kind not in LAYOUTS:
        raise DataError(f"no kind of drawn document is named {kind!r} — {nearest(kind, LAYOUTS)}")
    return tuple(layout for layout in LAYOUTS[kind] if layout not in DEMO_LAYOUTS)


def compose(kind: str, seed: int, layout: str | None = None, layouts: Sequence[str] | None = None) -> Sheet:
    """What a document says and in which rows; the family is `layout` or drawn from `layouts`."""
    rng, known = random.Random(f"{kind} {seed}"), layouts_of(kind)
    family = layout or rng.choice(layouts or known)
    if family not in LAYOUTS[kind]:
        raise DataError(f"{kind} have no layout {family!r} — {nearest(family, LAYOUTS[kind])}")
    return LAYOUTS[kind][family](rng)


def text_layout(kind: str, seed: int, *, layouts: Sequence[str] | None = None) -> DrawnText:
    """The document `draw_document` would draw, placed with a nominal font and without any pixels."""
    rng = random.Random(f"look {kind} {seed}")
    sheet = compose(kind, seed, layouts=layouts)
    paper = _paper(rng, kind)
    return lay_out(sheet, rng.choice((MONO, SANS)), paper.width, paper.margin, squeeze=paper.squeeze)


class Paper(NamedTuple):
    """A page's width and margin in pixels and how narrow its characters are."""

    width: int
    margin: float
    squeeze: float


def _paper(rng: random.Random, kind: str) -> Paper:
    till = kind in ("receipts", "tickets")
    width = rng.randint(448, 640) if till else rng.randint(640, 900)
    return Paper(
        width, width * rng.uniform(0.02, 0.09), rng.uniform(0.72, 0.95) if till and rng.random() < 0.5 else 1.0
    )


@lru_cache(maxsize=1)
def _shipped() -> FontSet:
    return FontSet.shipped()


def draw_document(
    kind: str,
    seed: int,
    *,
    style: Style | None = None,
    fonts: FontSet | None = None,
    effects: bool | float = True,
    layouts: Sequence[str] | None = None,
) -> DrawnPage:
    """Draw one document.

    `effects` scales everything that makes a page look scanned, 0 or False for clean ink; `layouts` limits the families.
    """
    style = style or Style()
    return draw_sheet(compose(kind, seed, style.layout, layouts), seed, style=style, fonts=fonts, effects=effects)


def draw_sheet(
    sheet: Sheet, seed: int, *, style: Style, fonts: FontSet | None = None, effects: bool | float = True
) -> DrawnPage:
    """Draw a composed document; the seed decides its look."""
    kind, strength = sheet.kind, float(effects)
    rng = random.Random(f"look {kind} {seed}")
    paper = _paper(rng, kind)
    face = _face(rng, fonts or _shipped(), style, sheet)
    margin = paper.margin if style.margin is None else style.margin
    text = lay_out(
        sheet, face.metrics, style.width or paper.width, margin, leading=style.leading, squeeze=paper.squeeze
    )
    ink, corner = print_text(text, face), (0, 0)
    small = rng.random() < 0.07 and strength > 0 and kind == "receipts"
    if style.on_a4 if style.on_a4 is not None else small:
        ink, corner = _on_a4(rng, ink)
    image, matrix = scanned(ink, np.random.default_rng(rng.getrandbits(64)), strength)
    matrix = matrix @ np.array([[1, 0, corner[0]], [0, 1, corner[1]], [0, 0, 1.0]])
    return DrawnPage(image, _characters(text, matrix), _lines(text, matrix), text.fields, text.facts, kind, text.layout)


def fit(page: DrawnPage, width: int, height: int) -> DrawnPage:
    """The page made smaller, boxes along with it, so that it is at most `width` x `height` pixels; never enlarged."""
    scale = min(1.0, width / page.image.width, height / page.image.height)
    if scale == 1.0:
        return page
    size = (round(page.image.width * scale), round(page.image.height * scale))
    characters = tuple(DrawnCharacter(char, *(value * scale for value in box)) for char, *box in page.characters)
    lines = tuple(DrawnLine(text, tuple(value * scale for value in quad)) for text, quad in page.lines)
    return replace(page, image=page.image.resize(size, Image.Resampling.BICUBIC), characters=characters, lines=lines)


def _face(rng: random.Random, fonts: FontSet, style: Style, sheet: Sheet) -> Face:
    """A face that has every character of the sheet; monospaced as often as not, as tills print."""
    if style.font:
        return fonts[style.font]
    needed = {char for row in sheet.rows for cell in row.cells for char in cell.text}
    mono = rng.random() < 0.5
    for face in (fonts.pick(rng, monospaced=mono) for _ in range(8)):
        if needed <= face.known:
            return face
    return _shipped()["Sans-Regular"]


def _on_a4(rng: random.Random, ink: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """The receipt's ink somewhere in the upper part of a large sheet, and where its corner lies."""
    height, width = ink.shape
    wide = max(int(width * rng.uniform(1.6, 2.4)), int((height + 40) / 1.414))
    sheet = np.zeros((int(wide * 1.414), wide), dtype=np.uint8)
    x, y = rng.randint(10, wide - width - 10), rng.randint(10, min(300, sheet.shape[0] - height - 10))
    sheet[y : y + height, x : x + width] = ink
    return sheet, (x, y)


def _characters(text: DrawnText, matrix: np.ndarray) -> tuple[DrawnCharacter, ...]:
    boxes = text.boxes
    corners = np.array([(x, y, x + w, y, x + w, y + h, x, y + h) for _, x, y, w, h in boxes]).reshape(-1, 2)
    moved = apply_matrix(matrix, corners).reshape(-1, 4, 2)
    bounds = np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1).tolist()
    return tuple(DrawnCharacter(box[0], *bound) for box, bound in zip(boxes, bounds, strict=True))


def _lines(text: DrawnText, matrix: np.ndarray) -> tuple[DrawnLine, ...]:
    rows: dict[int, list[PlacedLine]] = {}
    for cell in text.cells:
        rows.setdefault(cell.row, []).append(cell)
    metrics, quads = text.metrics, []
    for cells in rows.values():
        top = min(cell.baseline - metrics.capital * cell.size for cell in cells)
        foot = max(cell.baseline + metrics.descent * cell.size for cell in cells)
        left, right = min(cell.starts[0] for cell in cells), max(cell.starts[-1] for cell in cells)
        quads += [(left, top), (right, top), (right, foot), (left, foot)]
    moved = apply_matrix(matrix, np.array(quads)).reshape(-1, 8).tolist()
    return tuple(
        DrawnLine(" ".join(cell.text for cell in cells), tuple(quad))
        for cells, quad in zip(rows.values(), moved, strict=True)
    )
