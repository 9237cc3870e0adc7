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


def fill_slots(classes: np.ndarray, x: np.ndarray, y: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Characters (class, centre in px) to labels [rows, columns, SLOTS]; a patch holding more is ignored."""
    labels = np.zeros((rows, columns, SLOTS), np.int64)
    inside = (x >= 0) & (y >= 0) & (x < columns * PATCH) & (y < rows * PATCH) & (classes != NONE)
    order = np.argsort(x[inside], kind="stable")
    row = (y[inside][order] // PATCH).astype(int)
    column = (x[inside][order] // PATCH).astype(int)
    count = np.zeros((rows, columns), int)
    for index, r, c in zip(classes[inside][order], row, column, strict=True):
        if count[r, c] < SLOTS:
            labels[r, c, count[r, c]] = index
        count[r, c] += 1
    labels[count > SLOTS] = IGNORED
    return labels
