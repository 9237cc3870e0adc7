"""Fonts: the few shipped with the package, every readable Latin font of the machine, and their glyphs as masks."""

from __future__ import annotations

import os
import random
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mllm_tailor.core.errors import DataError, nearest
from mllm_tailor.synthetic.page import Metrics

SHIPPED = Path(__file__).parent / "fonts"
ASCII = "".join(chr(code) for code in range(33, 127))
LATIN = ASCII + "£§°ÀÁÂÄÇÈÉÊËÍÌÑÓÖØÙÚÜßàáâäçèéêëíìîïñóòôöøùúûüº€"
REFERENCE_SIZE = 100  # pixels; glyphs are measured at this size
CACHED_SIZES = 96  # (face, size, stretch, weight) whose glyph masks are kept
FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts", "/Library/Fonts",
           "/System/Library/Fonts", "C:/Windows/Fonts")  # fmt: skip


class Glyph(NamedTuple):
    """A glyph's ink: uint8 coverage (height, width) and where its corner lies from the pen on the baseline."""

    mask: np.ndarray
    left: int
    top: int


@dataclass(frozen=True)
class Face:
    """One font file. Bold is its bold sibling, or the regular ink thickened."""

    name: str
    path: str
    bold_path: str | None = None

    @cached_property
    def metrics(self) -> Metrics:
        font = _font(self.path, REFERENCE_SIZE)
        advances = {char: font.getlength(char) / REFERENCE_SIZE for char in LATIN + " "}
        capital = -font.getbbox("H", anchor="ls")[1] / REFERENCE_SIZE
        descent = max(0.1, font.getbbox("p", anchor="ls")[3] / REFERENCE_SIZE)
        return Metrics(advances, advances["n"], capital, descent)

    @cached_property
    def known(self) -> frozenset[str]:
        """The characters of `LATIN` this font really has."""
        font = _font(self.path, 24)
        missing = _shape(font, "\uffff")
        return frozenset(char for char in LATIN if _shape(font, char) != missing) | {" "}

    @property
    def monospaced(self) -> bool:
        return abs(self.metrics.advances["i"] - self.metrics.advances["W"]) < 0.01

    def glyphs(self, size: float, wide: float = 1.0, *, bold: bool = False) -> GlyphMasks:
        """The glyph masks at an em of `size` pixels, stretched sideways by `wide`."""
        return _masks(self.path, self.bold_path if bold else None, round(size * 2) / 2, round(wide, 2), bold=bold)


class GlyphMasks(dict[str, Glyph]):
    """Character to Glyph, drawn when first asked for."""

    def __init__(self, path: str, size: float, wide: float, *, thicken: bool) -> None:
        super().__init__()
        self.font, self.wide, self.thicken = _font(path, size), wide, max(1, round(size / 18)) if thicken else 0

    def __missing__(self, char: str) -> Glyph:
        x0, y0, x1, y1 = self.font.getbbox(char, anchor="ls")
        image = Image.new("L", (max(1, int(x1 - x0)), max(1, int(y1 - y0))))
        ImageDraw.Draw(image).text((-x0, -y0), char, fill=255, font=self.font, anchor="ls")
        if self.wide != 1.0:
            image = image.resize((max(1, round(image.width * self.wide)), image.height), Image.Resampling.BILINEAR)
        mask = np.asarray(image)
        for _ in range(self.thicken):
            mask = np.maximum(np.pad(mask, ((0, 0), (0, 1))), np.pad(mask, ((0, 0), (1, 0))))
        self[char] = glyph = Glyph(mask, round(x0 * self.wide), int(y0))
        return glyph


_MASKS: OrderedDict[tuple[str, str | None, float, float, bool], GlyphMasks] = OrderedDict()


def _masks(path: str, bold_path: str | None, size: float, wide: float, *, bold: bool) -> GlyphMasks:
    key = (path, bold_path, size, wide, bold)
    if key not in _MASKS:
        _MASKS[key] = GlyphMasks(bold_path or path, size, wide, thicken=bold and bold_path is None)
        if len(_MASKS) > CACHED_SIZES:
            _MASKS.popitem(last=False)
    _MASKS.move_to_end(key)
    return _MASKS[key]


@lru_cache(maxsize=64)
def _font(path: str, size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def _shape(font: ImageFont.FreeTypeFont, char: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(char)
    return mask.size, bytes(mask)


@dataclass(frozen=True)
class FontSet:
    """The faces a document may be drawn in."""

    faces: tuple[Face, ...]

    @classmethod
    def shipped(cls) -> FontSet:
        """The fonts inside the package; the same on every machine."""
        return cls(_faces([path for path in sorted(SHIPPED.iterdir()) if path.suffix in (".ttf", ".otf")]))

    @classmethod
    def system(cls) -> FontSet:
        """The shipped fonts and every readable Latin font in the usual folders, in the order of their file names."""
        files: dict[str, Path] = {}
        for folder in FOLDERS:
            for root, _, names in os.walk(Path(folder).expanduser()):
                files |= {name: Path(root) / name for name in names if name.lower().endswith((".ttf", ".otf"))}
        faces = _faces([files[name] for name in sorted(files)])
        shipped = cls.shipped().faces
        return cls(shipped + tuple(face for face in faces if readable(face)))

    def pick(self, rng: random.Random, *, monospaced: bool) -> Face:
        """Any face; all fonts of one folder together weigh as much as those of another."""
        folders = self._folders[monospaced] or self._folders[not monospaced]
        return rng.choice(folders[rng.choice(list(folders))])

    @cached_property
    def _folders(self) -> dict[bool, dict[str, list[Face]]]:
        folders: dict[bool, dict[str, list[Face]]] = {True: {}, False: {}}
        for face in self.faces:
            folders[face.monospaced].setdefault(str(Path(face.path).parent), []).append(face)
        return folders

    def __getitem__(self, name: str) -> Face:
        for face in self.faces:
            if face.name == name:
                return face
        raise DataError(f"no font is named {name!r} — {nearest(name, [face.name for face in self.faces])}")


def _faces(paths: list[Path]) -> tuple[Face, ...]:
    """Pair each font with its bold sibling; slanted fonts have none."""
    by_stem = {path.stem: path for path in paths}
    faces = []
    for stem, path in by_stem.items():
        bold = by_stem.get(stem.removesuffix("-Regular") + "-Bold") or by_stem.get(stem.replace("Regular", "Bold"))
        faces.append(Face(stem, str(path), str(bold) if bold and bold != path else None))
    return tuple(faces)


def readable(face: Face) -> bool:
    """Whether a font has all of ASCII and its glyphs are nearest to the right characters of the shipped fonts.

    Keeps text fonts, dotted ones too; drops symbols, other scripts, capitals-only and most ornamental fonts.
    """
    try:
        font = _font(face.path, 24)
        if len({_shape(font, char) for char in "Aag5\uffff"}) < 5:
            return False  # cheap: most fonts of other scripts end here
        thumbnails = np.stack([_thumbnail(face, char) for char in PROBE])
        return _recognised(thumbnails) > LEGIBLE and set(ASCII) <= face.known
    except (OSError, ValueError, ZeroDivisionError):
        return False  # a font file FreeType cannot use; there are others


PROBE = "ABCDEFGHKMNPQRSTUYZabdefghijkmnqrtuy123456789&%$/"
LEGIBLE = 0.77  # share of PROBE recognised; upright text fonts reach it, ornamental ones rarely do


@lru_cache(maxsize=1)
def _models() -> np.ndarray:
    """Thumbnails (faces, characters, pixels) of PROBE in the shipped fonts."""
    return np.stack([[_thumbnail(face, char) for char in PROBE] for face in FontSet.shipped().faces])


def _recognised(thumbnails: np.ndarray) -> float:
    """The share of characters (n, pixels) whose nearest shipped glyph is their own."""
    likeness = np.einsum("np,fcp->nfc", thumbnails, _models()).max(axis=1)
    return float((likeness.argmax(axis=1) == np.arange(len(thumbnails))).mean())


def _thumbnail(face: Face, char: str) -> np.ndarray:
    """The glyph's ink on 10 x 14 pixels, flattened, zero mean and unit length: a product is a correlation."""
    mask = face.glyphs(24)[char].mask
    small = np.asarray(Image.fromarray(mask).resize((10, 14), Image.Resampling.BOX), dtype=np.float32).ravel()
    small = small - small.mean()
    thumbnail: np.ndarray = small / max(float(np.sqrt((small**2).sum())), 1e-6)
    return thumbnail
