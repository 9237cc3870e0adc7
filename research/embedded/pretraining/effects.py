"""What paper, printer and scanner do to ink (float arrays, 0 none to 1 full): low ink, blur, shading, noise, JPEG."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter

_NOISE = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)  # shifted, so no fresh draw a page


def noise(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Gaussian noise of unit variance: a random window of a stored field."""
    top, left = rng.integers(0, 1024, 2)
    rows = (np.arange(shape[0]) + top) % 1024
    columns = (np.arange(shape[1]) + left) % 1024
    return _NOISE[rows[:, None], columns[None]]


def _smooth_field(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """A slowly varying field about -1..1."""
    small = rng.standard_normal((cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(small).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def wear_ink(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Low ink, broken dots and faded bands on the ink mask (0..1)."""
    kind = rng.random()
    if kind < 0.15:  # broken print: small holes
        ink = ink * (noise(rng, ink.shape) > rng.uniform(-1.6, -0.7))
    elif kind < 0.25:  # a dot matrix
        pitch = rng.integers(2, 4)
        grid = np.ones(ink.shape, np.float32)
        grid[:: int(pitch)] = rng.uniform(0.2, 0.7)
        ink = ink * grid
    elif kind < 0.45:  # faded areas
        ink = ink * np.clip(0.75 + 0.35 * _smooth_field(rng, ink.shape, rng.integers(2, 6)), 0.25, 1)
    return ink


def photograph(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn an ink mask (0..1) into an 8-bit grey page as a scanner or a camera would give it."""
    paper = rng.uniform(0.93, 1.0) if rng.random() < 0.6 else rng.uniform(0.7, 0.95)
    darkness = rng.uniform(0.05, 0.35) if rng.random() < 0.7 else rng.uniform(0.35, 0.6)
    darkness = min(darkness, paper - 0.3)
    if rng.random() < 0.8:
        blur = rng.uniform(0.3, 0.9) if rng.random() < 0.8 else rng.uniform(0.9, 1.5)
        picture = Image.fromarray((ink * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
        ink = np.asarray(picture, np.float32) / 255
    if rng.random() < 0.4:  # scanners sharpen: steeper edges
        ink = np.clip((ink - 0.5) * rng.uniform(1.0, 2.2) + 0.5, 0, 1)
    page = paper - (paper - darkness) * ink
    if rng.random() < 0.3:
        page = page * (1 + rng.uniform(0.02, 0.1) * _smooth_field(rng, ink.shape, rng.integers(2, 5)))
    if rng.random() < 0.6:
        page = page + rng.uniform(0.0, 0.06) * noise(rng, ink.shape)
    if rng.random() < 0.01:
        page = 1 - page
    grey = (np.clip(page, 0, 1) * 255).astype(np.uint8)
    if rng.random() < 0.35:
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, "JPEG", quality=int(rng.integers(35, 90)))
        grey = np.asarray(Image.open(buffer))
    return grey


def photograph_plainly(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Clean dark print on light paper with a trace of noise: the first tiles of the curriculum."""
    page = 0.97 - 0.85 * ink + 0.02 * noise(rng, ink.shape)
    return (np.clip(page, 0, 1) * 255).astype(np.uint8)
