"""From ink to the image of a scanned page: fading, dots, creases, skew, shadow, pen marks, blur, noise and JPEG.

Every effect is a few numpy or PIL calls; where characters end up is known because all geometry is one 3 x 3 matrix.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Array = np.ndarray
NOISE_SIDE = 1024  # pixels; one noise tile is drawn once and shifted about


def scanned(ink: Array, random: np.random.Generator, strength: float) -> tuple[Image.Image, Array]:
    """A photographed or scanned page of this ink, and the matrix (3, 3) from page pixels to image pixels.

    `strength` 1 is the full range of real scans, 0 leaves clean black on white.
    """
    if strength <= 0:
        return Image.fromarray(255 - ink).convert("RGB"), np.eye(3)
    ink = _print_faults(ink, random, strength)
    matrix, (width, height) = _geometry(ink.shape[1], ink.shape[0], random, strength)
    paper_ink = Image.fromarray(ink)
    inverse = np.linalg.inv(matrix)
    inverse = (inverse / inverse[2, 2]).ravel()[:8].tolist()
    affine = abs(inverse[6]) + abs(inverse[7]) < 1e-9
    method = Image.Transform.AFFINE if affine else Image.Transform.PERSPECTIVE
    data = inverse[:6] if affine else inverse
    moved = paper_ink.transform((width, height), method, data, Image.Resampling.BILINEAR)
    if random.random() < 0.35 * strength:
        moved = moved.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 0.9) * strength))
    grey = _on_paper(np.asarray(moved), random, strength)
    if random.random() < 0.12 * strength:
        sheet = Image.new("L", paper_ink.size, 255).transform((width, height), method, data, Image.Resampling.BILINEAR)
        grey = np.where(np.asarray(sheet) > 127, grey, random.integers(0, 90)).astype(np.uint8)
    image = _tinted(Image.fromarray(grey), random, strength)
    _pen(image, random, strength)
    return _jpeg(image, random, strength), matrix


def _waves(random: np.random.Generator, width: int, height: int, cells: int) -> Array:
    """A smooth random field in 0..1, (height, width)."""
    rows = max(2, round(cells * height / width))
    small = Image.fromarray(random.random((rows, cells), dtype=np.float32))
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def _print_faults(ink: Array, random: np.random.Generator, strength: float) -> Array:
    """Printer defects: pale patches, dead dots, weak lines, needles."""
    height, width = ink.shape
    pick = random.random()
    if pick < 0.30 * strength:  # thermal paper that has faded in places
        pale = random.uniform(0.2, 0.65) * strength
        ink = (ink * (1 - pale * _waves(random, width, height, 4))).astype(np.uint8)
    elif pick < 0.42 * strength:  # each band of lines printed with another pressure
        weight = 1 - strength * random.uniform(0.0, 0.5, height // 24 + 1).astype(np.float32)
        ink = (ink * np.repeat(weight, 24)[:height, None]).astype(np.uint8)
    elif pick < 0.54 * strength:  # a needle printer's dots
        period = int(random.integers(2, 4))
        dots = np.full((period, period), 255, dtype=np.uint8)
        dots[-1, :] = dots[:, -1] = 255 - int(150 * strength)
        grid = np.tile(dots, (height // period + 1, width // period + 1))[:height, :width]
        ink = np.minimum(ink, grid)
    elif pick < 0.66 * strength:  # speckled ink
        ink = np.where(_noise(random, width, height) > 55, ink // 3, ink)
    if random.random() < 0.15 * strength:  # dead heating elements leave white columns
        ink = ink.copy()
        for column in random.integers(0, width, random.integers(1, 4)):
            ink[:, column] //= 4
    return ink


def _geometry(width: int, height: int, random: np.random.Generator, strength: float) -> tuple[Array, tuple[int, int]]:
    """Skew, shear, slight perspective, resizing and a margin that is cropped or added."""
    angle = math.radians(
        strength * random.choice([0.0, random.uniform(-0.8, 0.8), random.uniform(-3, 3)], p=[0.4, 0.4, 0.2])
    )
    scale = 1 + strength * random.uniform(-0.1, 0.06)
    stretch = scale * (1 + strength * random.uniform(-0.06, 0.06))
    shear = strength * random.uniform(-0.01, 0.01)
    cos, sin = math.cos(angle), math.sin(angle)
    linear = np.array([[cos, -sin + shear, 0], [sin, cos, 0], [0, 0, 1]]) @ np.diag([scale, stretch, 1.0])
    if random.random() < 0.2 * strength:
        linear[2, :2] = strength * random.uniform(-0.05, 0.05, 2) / (width, height)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    moved = apply_matrix(linear, corners)
    low, high = moved.min(axis=0), moved.max(axis=0)
    roomy = random.random() < 0.25 * strength
    edge = width * strength * (random.uniform(0, 0.12, 4) if roomy else random.uniform(-0.025, 0.03, 4))
    shift = np.array([[1, 0, edge[0] - low[0]], [0, 1, edge[1] - low[1]], [0, 0, 1.0]])
    size = high - low + (edge[0] + edge[2], edge[1] + edge[3])
    return shift @ linear, (int(size[0]), int(size[1]))


def apply_matrix(matrix: Array, points: Array) -> Array:
    """Points (n, 2) moved by a homography (3, 3)."""
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    flat: Array = moved[:, :2] / moved[:, 2:]
    return flat


@lru_cache(maxsize=1)
def _noise_tile() -> Array:
    return np.clip(np.random.default_rng(7).standard_normal((2 * NOISE_SIDE, 2 * NOISE_SIDE)) * 40, -127, 127).astype(
        np.int8
    )


def _noise(random: np.random.Generator, width: int, height: int) -> Array:
    """Gaussian noise as int8 with a deviation of 40, cut from one tile and mirrored where the page is larger."""
    tile = _noise_tile()
    if width > NOISE_SIDE or height > NOISE_SIDE:
        tile = np.tile(tile, (1 + height // NOISE_SIDE, 1 + width // NOISE_SIDE))
    top, left = random.integers(0, NOISE_SIDE, 2)
    return tile[top : top + height, left : left + width]


def _on_paper(coverage: Array, random: np.random.Generator, strength: float) -> Array:
    """Grey levels of ink on shaded, creased, grainy paper, uint8 (height, width)."""
    height, width = coverage.shape
    white = 255 - strength * random.choice([0.0, random.uniform(0, 25), random.uniform(20, 90)], p=[0.45, 0.4, 0.15])
    black = strength * random.uniform(0, 60) if random.random() < 0.7 else strength * random.uniform(50, 120)
    black = min(black, white - 70)
    level = coverage * np.float32((white - black) / 255)
    np.subtract(np.float32(white), level, out=level)
    if random.random() < 0.45 * strength:
        level *= 1 - np.float32(strength * random.uniform(0.05, 0.3)) * _waves(random, width, height, 3)
    if random.random() < 0.2 * strength:
        _crease(level, random, strength)
    if random.random() < 0.5 * strength:
        level += _noise(random, width, height) * np.float32(strength * random.uniform(0.03, 0.35))
    return np.clip(level, 0, 255, out=level).astype(np.uint8)


def _crease(level: Array, random: np.random.Generator, strength: float) -> None:
    """Dark and light bands beside a fold, across or along the page."""
    for _ in range(random.integers(1, 4)):
        across = level if random.random() < 0.6 else level.T
        where, half = int(random.integers(0, across.shape[0])), int(random.integers(2, 30))
        band = across[max(0, where - half) : where + half]
        slope = np.linspace(-1, 1, len(band), dtype=np.float32)[:, None]
        band += np.sign(slope) * (1 - np.abs(slope)) * np.float32(strength * random.uniform(8, 45))


def _tinted(grey: Image.Image, random: np.random.Generator, strength: float) -> Image.Image:
    """Grey as RGB, with a colour cast now and then."""
    if random.random() > 0.2 * strength:
        return grey.convert("RGB")
    cast = 1 - strength * random.uniform(0, 0.06, 3)
    return Image.merge("RGB", [grey.point([int(value * part) for value in range(256)]) for part in cast])


INKS = ((20, 20, 30), (30, 40, 140), (20, 30, 110), (170, 30, 40), (90, 20, 110))


def _pen(image: Image.Image, random: np.random.Generator, strength: float) -> None:
    """Scribbles, ticks, rings, stamps and punch holes over whatever is there."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    if random.random() < 0.15 * strength:
        _scribble(draw, random, width, height)
    if random.random() < 0.08 * strength:  # a stamp: two frames and a bar
        x, y, w, h = (
            random.uniform(0, 0.6) * width,
            random.uniform(0, 0.8) * height,
            random.uniform(80, 180),
            random.uniform(40, 90),
        )
        shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
        ink = INKS[random.integers(1, len(INKS))]
        shape((x, y, x + w, y + h), outline=ink, width=2)
        shape((x + 6, y + 6, x + w - 6, y + h - 6), outline=ink, width=1)
    if random.random() < 0.06 * strength:
        for y in (0.2, 0.75)[: random.integers(1, 3)]:
            x, side = random.uniform(0.01, 0.08) * width, random.uniform(10, 18)
            draw.ellipse((x, y * height, x + side, y * height + side), fill=(15, 15, 15))


def _scribble(draw: ImageDraw.ImageDraw, random: np.random.Generator, width: int, height: int) -> None:
    """A handwritten-looking stroke, a tick or a ring."""
    ink, thick = INKS[random.integers(len(INKS))], int(random.integers(2, 4))
    x, y, size = random.uniform(0.1, 0.8) * width, random.uniform(0.02, 0.95) * height, random.uniform(20, 70)
    pick = random.random()
    if pick < 0.25:
        draw.line([(x, y), (x + size / 4, y + size / 3), (x + size, y - size / 2)], fill=ink, width=thick)
    elif pick < 0.4:
        draw.ellipse((x, y, x + 2.5 * size, y + size), outline=ink, width=thick)
    else:
        steps = np.linspace(0, 1, 60)
        wobble = np.sin(np.outer(steps, random.uniform(8, 40, 4)) + random.uniform(0, 6, 4)) @ random.uniform(0, 0.3, 4)
        loops = 0.12 * np.cos(steps * random.uniform(20, 60))
        draw.line(
            [(x + size * (2 * s + c), y + size * w / 2) for s, c, w in zip(steps, loops, wobble, strict=True)],
            fill=ink,
            width=thick,
        )


def _jpeg(image: Image.Image, random: np.random.Generator, strength: float) -> Image.Image:
    if random.random() > 0.4 * strength:
        return image
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(95 - strength * random.uniform(5, 55)))
    return Image.open(buffer).convert("RGB")
