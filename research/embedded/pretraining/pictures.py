"""Drawn documents with pixels: tiles, dense labels of every patch, questions. What the joined model learns from."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from mllm_tailor.models.inputs.tiling import tile_image
from mllm_tailor.synthetic import DrawnPage, FontSet, Style
from mllm_tailor.synthetic.draw import compose, draw_sheet
from mllm_tailor.synthetic.fonts import Face
from PIL import Image

from pretraining import attention_supervision, effects, fonts, glyph_slots, pages, questions, rewording, tiles, words
from pretraining.tiles import GRID, TILE


@dataclass(frozen=True)
class Picture:
    """Grey tiles [n, 448, 448] uint8, labels [n, 32, 32, SLOTS], questions, their answers and where these are shown."""

    tiles: np.ndarray
    labels: np.ndarray
    turns: tuple[tuple[str, str], ...]
    places: tuple[np.ndarray, ...] = ()  # of each answer's characters, as attention_supervision.answer_places


@functools.cache
def font_set() -> FontSet:
    """The shipped faces and the machine's, but for those held out."""
    found = [
        Face(path.stem, str(path))
        for index, (path, _) in enumerate(fonts.font_files())
        if index % 7 != 3 and fonts.usable(path)
    ]
    return FontSet(FontSet.shipped().faces + tuple(found))


def characters(page: DrawnPage) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Class and centre (px of the page) of every character; blanks are put into the gaps of a line they fit.

    Last, for each line, the number of each of its characters among these; -1 for a blank that was not put.
    """
    classes, x, y, numbers = [], [], [], []
    boxes = iter(page.characters)
    for line in page.lines:
        last = None
        number = np.full(len(line.text), -1)
        numbers.append(number)
        for index, letter in enumerate(line.text):
            if letter == " ":
                last = (last[0], True) if last else None
                continue
            box = next(boxes)
            height = box.y1 - box.y0
            middle = box.y1 - height * (0.21 + pages.MIDDLE) / 0.93  # descent 0.21 em below the baseline, capitals 0.72
            if last and last[1] and 0 < box.x0 - last[0].x1 < 0.8 * height:
                classes.append(1)
                x.append((box.x0 + last[0].x1) / 2)
                y.append(middle)
                number[index - 1] = len(classes) - 1
            number[index] = len(classes)
            classes.append(glyph_slots.class_of(letter))
            x.append((box.x0 + box.x1) / 2)
            y.append(middle)
            last = (box, False)
    return np.array(classes, np.int64), np.array(x), np.array(y), numbers


def cut(page: DrawnPage, most: int) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """The page's grey tiles, cut by InternVL's rule with at most `most` tiles, their labels, and each line's places."""
    width, height = page.image.size
    columns, rows = pages.grid_of(width, height, most)
    grey = np.stack([np.asarray(tile.convert("L")) for tile in tile_image(page.image, 1, most, TILE, thumbnail=False)])
    classes, x, y, numbers = characters(page)
    labels, where = glyph_slots.place_slots(
        classes, x * columns * TILE / width, y * rows * TILE / height, rows * GRID, columns * GRID
    )
    tiled = labels.reshape(rows, GRID, columns, GRID, glyph_slots.SLOTS).transpose(0, 2, 1, 3, 4)
    places = np.append(pages.token_places(where, columns), -1)  # number -1 takes the last
    return (
        grey,
        tiled.reshape(rows * columns, GRID, GRID, glyph_slots.SLOTS),
        tuple(places[number] for number in numbers),
    )


def drawn_page(rng: np.random.Generator, held_out: bool = False, invent: float = 0.0) -> DrawnPage:
    """A document in ASCII; held-out pages are receipts of layout families never trained on.

    With probability `invent` most of the words of its names and streets are invented ones.
    """
    while True:
        kind = "receipts" if held_out else str(rng.choice(pages.KINDS, p=pages.SHARES))
        layouts = pages.receipt_layouts(held_out) if kind == "receipts" else None
        seed = int(rng.integers(1 << 40))
        sheet = compose(kind, seed, layouts=layouts)
        effects = float(rng.choice([0.3, 1.0]))
        if pages.is_ascii(sheet.fields):
            if rng.random() < invent:
                sheet = rewording.reworded_sheet(
                    sheet, rewording.Rewording(rng, 0.8, rewording.named_words(sheet.fields))
                )
            return draw_sheet(sheet, seed, style=Style(on_a4=False), fonts=font_set(), effects=effects)


def few_lines(rng: np.random.Generator, most: int = 5, held_out: bool = False) -> Picture:
    """One tile with a few short lines in one font, to be read out."""
    while True:
        pen = tiles.Pen(TILE, TILE)
        atlas = fonts.make_atlas(fonts.pick_font(rng, held_out), int(rng.integers(13, 22)), rng)
        y, texts = rng.uniform(0, 200), []
        for _ in range(int(rng.integers(1, most + 1))):
            text, x = words.snippet(rng)[:60].strip(), rng.uniform(4, 60)
            text = "".join(c for c in text if c in atlas.masks or c == " ")
            while text and x + sum(atlas.advances[c] for c in text) > TILE - 4:
                text = text[:-1].strip()
            if not text:
                continue
            pen.write(text, x, y, atlas)
            texts.append(text)
            y += atlas.height * rng.uniform(1.0, 2.0)
        if texts and y < TILE:
            break
    classes, x_centres, y_centres = pen.placed()
    ink, x_centres, y_centres = tiles.warp(effects.wear_ink(pen.ink, rng), x_centres, y_centres, rng)
    labels, where = glyph_slots.place_slots(classes, x_centres, y_centres, GRID, GRID)
    lines = np.split(pages.token_places(where, 1), np.cumsum([len(text) for text in texts])[:-1])
    about = pages.Page("lines", labels[None], tuple(texts), (), {}, tuple(lines))
    answer = "\n".join(texts)
    turns = (("Read the text.", answer),)
    return Picture(
        effects.photograph(ink, rng)[None], labels[None], turns, (attention_supervision.answer_places(about, answer),)
    )


def random_picture(rng: np.random.Generator, most: int = 3, invent: float = 0.0) -> Picture:
    """A training picture: mostly documents with a question, some short readings, now and then with a thumbnail.

    `invent`: share of the documents whose names and streets are mostly invented words.
    """
    if rng.random() < 0.25:
        return few_lines(rng)
    while True:
        drawn = drawn_page(rng, invent=invent)
        grey, labels, places = cut(drawn, most)
        about = pages.Page(drawn.kind, labels, tuple(line.text for line in drawn.lines), (), drawn.fields, places)
        turns = questions.conversation(about, rng)
        if turns:
            break
    if (
        len(grey) > 1 and rng.random() < 0.05
    ):  # plain transformers always appends one; its characters are too small to label
        small = drawn.image.convert("L").resize((TILE, TILE), Image.Resampling.BICUBIC)
        grey = np.concatenate([grey, np.asarray(small)[None]])
        labels = np.concatenate([labels, np.full_like(labels[:1], glyph_slots.IGNORED)])
    return Picture(
        grey, labels, turns, tuple(attention_supervision.answer_places(about, answer) for _, answer in turns)
    )
