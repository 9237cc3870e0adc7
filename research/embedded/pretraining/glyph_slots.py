"""Dense labels: which characters have their centre in each 14x14 patch of a 448 tile, left to right."""

from __future__ import annotations

import numpy as np

PATCH = 14  # px
SLOTS = 3  # characters a patch can name; a receipt at 448 px width has about 1.6
NONE = 0
CLASSES = 96  # none, space, 94 printable ASCII glyphs
IGNORED = -100


def class_of(character: str) -> int:
    """1 for a space, 2.. for printable ASCII, NONE for what the model is not asked to name."""
    code = ord(character)
    return code - 31 if 32 <= code < 127 else NONE


def character_of(index: int) -> str:
    return "" if index == NONE else chr(index + 31)


CHARACTERS = tuple(character_of(index) for index in range(CLASSES))


def fill_slots(classes: np.ndarray, x: np.ndarray, y: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Characters (class, centre in px) to labels [rows, columns, SLOTS]; a patch holding more is ignored."""
    return place_slots(classes, x, y, rows, columns)[0]


def place_slots(
    classes: np.ndarray, x: np.ndarray, y: np.ndarray, rows: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """The labels of `fill_slots` and which of them is each character's: its index in the flat labels, -1 for none."""
    labels = np.zeros((rows, columns, SLOTS), np.int64)
    where = np.full(len(classes), -1)
    inside = (x >= 0) & (y >= 0) & (x < columns * PATCH) & (y < rows * PATCH) & (classes != NONE)
    order = np.flatnonzero(inside)[np.argsort(x[inside], kind="stable")]
    row = (y[order] // PATCH).astype(int)
    column = (x[order] // PATCH).astype(int)
    count = np.zeros((rows, columns), int)
    for index, r, c in zip(order, row, column, strict=True):
        if count[r, c] < SLOTS:
            labels[r, c, count[r, c]] = classes[index]
            where[index] = (r * columns + c) * SLOTS + count[r, c]
        count[r, c] += 1
    crowded = count > SLOTS
    labels[crowded] = IGNORED
    where[crowded.repeat(SLOTS)[where] & (where >= 0)] = -1
    return labels, where
