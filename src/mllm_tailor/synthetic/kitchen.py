"""A drawn kitchen: images of dishes and videos of steps, for cooking data sets whose videos are not distributed.

Stand-ins, marked as such (`drawn: true` in every row): flat shapes in plain colours, enough to show that images, videos
and texts of one domain can train one model.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from mllm_tailor.core.io import atomic_folder
from mllm_tailor.core.progress import track
from mllm_tailor.media.video import encode_video

SIDE = 112  # pixels of an image or frame
FINE = 3  # drawn this much larger, then shrunk
FRAMES, SECONDS = 12, 3.0  # of a video
GROUNDS = ("#e8e2d4", "#cfd8dc", "#d7ccc8", "#dcedc8", "#f5f5f5")

# Colour, width and height in hundredths of the image, and whether it is round.
FOODS: Mapping[str, tuple[str, int, int, bool]] = {
    "tomato": ("#d32f2f", 20, 20, True),
    "lemon": ("#fdd835", 24, 17, True),
    "carrot": ("#f57c00", 34, 9, False),
    "cucumber": ("#388e3c", 36, 11, False),
    "eggplant": ("#6a1b9a", 30, 17, True),
    "egg": ("#fffdf0", 17, 22, True),
    "sausage": ("#8d4a32", 34, 10, False),
    "pepper": ("#7cb342", 20, 24, False),
    "cheese": ("#ffca28", 24, 20, False),
    "plum": ("#3949ab", 18, 18, True),
}
VESSELS = ("pan", "pot", "bowl", "plate")
DISHES = ("soup", "salad", "skewer", "sandwich")
STEPS = (
    "add the {food} to the {vessel}",
    "take the {food} out of the {vessel}",
    "stir the {food} in the {vessel}",
    "cut the {food} on the board",
)


@dataclass(frozen=True)
class Canvas:
    """An image addressed in hundredths of its side, shifted and scaled a little as a whole."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    shift: tuple[float, float]
    scale: float

    @classmethod
    def blank(cls, ground: str, shift: tuple[float, float], scale: float) -> Canvas:
        """An empty one."""
        image = Image.new("RGB", (SIDE * FINE, SIDE * FINE), ground)
        return cls(image, ImageDraw.Draw(image), shift, scale)

    def box(self, x: float, y: float, wide: float, high: float, colour: str, *, round_: bool = False) -> None:
        """A shape round its middle (x, y), outlined."""
        corners = [
            SIDE * FINE * (0.5 + (value - 50 + shift) * self.scale / 100)
            for value, shift in zip(
                (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2), self.shift * 2, strict=True
            )
        ]
        shape = self.draw.ellipse if round_ else self.draw.rectangle
        shape(corners, fill=colour, outline="#333333", width=FINE)

    def food(self, name: str, x: float, y: float, size: float = 1.0) -> None:
        """One piece of food."""
        colour, wide, high, round_ = FOODS[name]
        self.box(x, y, wide * size, high * size, colour, round_=round_)

    def vessel(self, name: str) -> None:
        """A vessel in the lower middle."""
        if name == "pan":
            self.box(82, 72, 30, 5, "#212121")
            self.box(46, 72, 52, 26, "#424242", round_=True)
        elif name == "pot":
            self.box(50, 66, 70, 6, "#78909c")
            self.box(50, 74, 54, 34, "#90a4ae")
        elif name == "bowl":
            self.box(50, 70, 56, 42, "#1e88e5", round_=True)
        else:
            self.box(50, 76, 70, 16, "#ffffff", round_=True)

    def finished(self) -> Image.Image:
        """At its true size."""
        return self.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def draw_dish(rng: random.Random, food: str, dish: str) -> Image.Image:
    """An image of `food` as a `dish`."""
    canvas = Canvas.blank(rng.choice(GROUNDS), _shift(rng), rng.uniform(0.85, 1.1))
    colour = FOODS[food][0]
    if dish == "soup":
        canvas.vessel("bowl")
        canvas.box(50, 66, 46, 26, colour, round_=True)
    elif dish == "salad":
        canvas.vessel("plate")
        for _ in range(9):
            canvas.food(food, 50 + rng.uniform(-22, 22), 72 + rng.uniform(-8, 5), 0.4)
    elif dish == "skewer":
        canvas.box(50, 55, 92, 2, "#5d4037")
        for index in range(4):
            canvas.food(food, 23 + 18 * index, 55 + rng.uniform(-2, 2), 0.5)
    else:
        canvas.box(50, 44, 60, 12, "#c68642", round_=True)
        canvas.food(food, 50, 57, 1.1)
        canvas.box(50, 70, 60, 12, "#c68642")
    return canvas.finished()


def draw_step(rng: random.Random, step: str, food: str, vessel: str) -> list[Image.Image]:
    """The frames of a video of one of `STEPS`."""
    ground, shift, scale = rng.choice(GROUNDS), _shift(rng), rng.uniform(0.85, 1.1)
    start, wave = rng.choice((12.0, 50.0, 88.0)), rng.uniform(0, 1)
    frames = []
    for number in range(FRAMES):
        done = number / (FRAMES - 1)
        canvas = Canvas.blank(ground, shift, scale)
        _MOVES[STEPS.index(step)](canvas, food, vessel, done, start, wave)
        frames.append(canvas.finished())
    return frames


def _add(canvas: Canvas, food: str, vessel: str, done: float, start: float, _wave: float) -> None:
    canvas.vessel(vessel)
    canvas.food(food, start + (50 - start) * done, 16 + 52 * done, 0.8)


def _take(canvas: Canvas, food: str, vessel: str, done: float, start: float, wave: float) -> None:
    _add(canvas, food, vessel, 1 - done, start, wave)


def _stir(canvas: Canvas, food: str, vessel: str, done: float, _start: float, wave: float) -> None:
    turn = 2 * math.pi * (2 * done + wave)
    canvas.vessel(vessel)
    canvas.food(food, 50 - 12 * math.cos(turn), 68 - 4 * math.sin(turn), 0.8)
    canvas.box(50 + 18 * math.cos(turn), 44 + 4 * math.sin(turn), 4, 46, "#a1887f")


def _cut(canvas: Canvas, food: str, _vessel: str, done: float, _start: float, wave: float) -> None:
    canvas.box(50, 80, 84, 16, "#bcaaa4")
    gap = 16 * max(0.0, done - 0.4)
    canvas.food(food, 42 - gap, 66, 0.6)
    canvas.food(food, 58 + gap, 66, 0.6)
    canvas.box(50, 40 + 14 * math.sin(2 * math.pi * (2 * done + wave)), 3, 44, "#eceff1")


_MOVES: Sequence[Callable[[Canvas, str, str, float, float, float], None]] = (_add, _take, _stir, _cut)


def _shift(rng: random.Random) -> tuple[float, float]:
    return rng.uniform(-6, 6), rng.uniform(-5, 5)


def draw_kitchen(folder: Path, train: int, held_out: int, seed: int = 0) -> None:
    """Draw `train` + `held_out` videos into `folder`/clips, as many images into `folder`/pictures, and their rows."""
    with atomic_folder(folder) as partial:
        _draw(partial, train, held_out, seed)


def _draw(folder: Path, train: int, held_out: int, seed: int) -> None:
    rng = random.Random(f"kitchen {seed}")
    for name, rows in (("clips", _videos), ("pictures", _images)):
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        made = track(rows(target, train + held_out, rng), f"Drawing {name}", total=train + held_out)
        lines = [
            row | {"split": "dev" if number >= train else "train", "drawn": True} for number, row in enumerate(made)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (target / "metadata.jsonl").write_text(text, encoding="utf-8")


def _videos(folder: Path, count: int, rng: random.Random) -> Iterator[dict[str, object]]:
    for number in range(count):
        step, food, vessel = rng.choice(STEPS), rng.choice(list(FOODS)), rng.choice(VESSELS)
        file = folder / f"{number:04}.mkv"
        file.write_bytes(encode_video(draw_step(rng, step, food, vessel), SECONDS, lossless=False))
        yield {"video": file.name, "id": file.stem, "caption": step.format(food=food, vessel=vessel)}


def _images(folder: Path, count: int, rng: random.Random) -> Iterator[dict[str, object]]:
    for number in range(count):
        food, dish = rng.choice(list(FOODS)), rng.choice(DISHES)
        file = folder / f"{number:04}.png"
        draw_dish(rng, food, dish).save(file)
        yield {"image": file.name, "id": file.stem, "question": "What dish is this?", "answer": f"{food} {dish}"}
