"""448 px tiles full of text with a label for every patch: what the vision tower learns to read from."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pretraining import effects, fonts, glyph_slots, words

TILE = 448  # px
GRID = TILE // glyph_slots.PATCH  # 32 patches a side


class Pen:
    """Writes text onto an ink mask and remembers the class and centre (px) of every character."""

    def __init__(self, width: int, height: int) -> None:
        self.ink = np.zeros((height, width), np.float32)
        self.classes: list[int] = []
        self.x: list[float] = []
        self.y: list[float] = []

    def write(self, text: str, x: float, y: float, atlas: fonts.Atlas) -> float:
        """Draw `text` with its line's top left at (x, y); the x after it. All its centres share the line's middle."""
        height, width = self.ink.shape
        middle = y + atlas.height / 2
        for character in text:
            advance = atlas.advances.get(character)
            if advance is None or (character != " " and character not in atlas.masks):
                continue
            if character != " ":
                mask, (right, down) = atlas.masks[character], atlas.offsets[character]
                left, top = round(x) + right, round(y) + down
                a, b = max(0, -left), max(0, -top)
                c, d = min(mask.shape[1], width - left), min(mask.shape[0], height - top)
                if a < c and b < d:
                    part = self.ink[top + b : top + d, left + a : left + c]
                    np.maximum(part, mask[b:d, a:c], out=part)
            self.classes.append(glyph_slots.class_of(character))
            self.x.append(x + advance / 2)
            self.y.append(middle)
            x += advance
        return x

    def placed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.array(self.classes, np.int64), np.array(self.x), np.array(self.y)


def warp(ink: np.ndarray, x: np.ndarray, y: np.ndarray, rng: np.random.Generator, strength: float = 1.0):
    """Rotate, shear, stretch and shift a little; returns the ink and the centres moved alike."""
    height, width = ink.shape
    if rng.random() < 0.25:
        shift = rng.uniform(-0.5, 0.5, 2)
        matrix = np.eye(2)
    else:
        angle, shear = rng.normal(0, 0.012) * strength, rng.normal(0, 0.02) * strength
        stretch = np.exp(rng.normal(0, 0.06, 2) * strength)
        matrix = np.array([[np.cos(angle), -np.sin(angle) + shear], [np.sin(angle), np.cos(angle)]]) * stretch
        shift = rng.uniform(-4, 4, 2)
    middle = np.array([width / 2, height / 2])
    offset = middle - matrix @ middle + shift  # source (column vector x, y) -> target
    inverse = np.linalg.inv(matrix)
    back = -inverse @ offset
    data = (inverse[0, 0], inverse[0, 1], back[0], inverse[1, 0], inverse[1, 1], back[1])
    picture = Image.fromarray((ink * 255).astype(np.uint8)).transform(
        (width, height), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC
    )
    moved = matrix @ np.stack([x, y]) + offset[:, None]
    return np.asarray(picture, np.float32) / 255, moved[0], moved[1]


def text_tile(
    rng: np.random.Generator, held_out: bool = False, easy: bool = False, pool: tuple[fonts.Atlas, ...] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One tile dense with text in a few fonts (of `pool`): grey [448, 448] uint8 and labels [32, 32, SLOTS]."""
    pen = Pen(TILE, TILE)
    y = rng.uniform(-6, 10)
    atlases = [pool[int(rng.integers(len(pool)))] if pool else random_atlas(rng, held_out, easy) for _ in range(2)]
    atlas = atlases[0]
    while y < TILE:
        if rng.random() < 0.2:
            atlas = atlases[int(rng.integers(2))]
        x = rng.uniform(-8, 60) if rng.random() < 0.6 else rng.uniform(-8, 200)
        while x < TILE:
            x = pen.write(words.snippet(rng), x, y, atlas)
            if rng.random() < 0.25:
                x += rng.uniform(10, 120)
            else:
                x = pen.write(" ", x, y, atlas)
        if rng.random() < 0.03:
            pen.ink[max(0, int(y)) : max(0, int(y)) + 1, :] = 1.0  # a ruled line
        y += atlas.height * (rng.uniform(0.78, 1.1) if rng.random() < 0.8 else rng.uniform(1.1, 2.0))
    classes, x_centres, y_centres = pen.placed()
    if easy:
        return effects.photograph_plainly(pen.ink, rng), glyph_slots.fill_slots(
            classes, x_centres, y_centres, GRID, GRID
        )
    ink, x_centres, y_centres = warp(effects.wear_ink(pen.ink, rng), x_centres, y_centres, rng)
    return effects.photograph(ink, rng), glyph_slots.fill_slots(classes, x_centres, y_centres, GRID, GRID)


def random_atlas(rng: np.random.Generator, held_out: bool, easy: bool = False) -> fonts.Atlas:
    """A font of the machine at a receipt's size; `easy` ones are plain and of one size."""
    size = int(rng.integers(15, 18)) if easy else _font_size(rng)
    return fonts.make_atlas(fonts.pick_font(rng, held_out, easy), size, rng, plain=easy)


def _font_size(rng: np.random.Generator) -> int:
    """Font sizes about the 14 to 16 px of a receipt squeezed to 448 px width; a few much larger."""
    return (
        int(np.clip(np.exp(rng.normal(np.log(15), 0.22)), 10, 34)) if rng.random() < 0.9 else int(rng.integers(20, 40))
    )
