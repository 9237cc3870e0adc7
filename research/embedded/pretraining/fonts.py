"""Find usable Latin fonts on this machine and hold rendered glyphs.

The fonts come from Debian packages; `python -m pretraining fonts` prints the `apt-get install` line.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PRINTABLE = "".join(chr(code) for code in range(33, 127))  # 94 ASCII glyphs; the space has no ink
PACKAGES = (
    "fonts-dejavu fonts-liberation fonts-freefont-ttf fonts-croscore fonts-roboto-unhinted fonts-lato "
    "fonts-open-sans fonts-hack fonts-jetbrains-mono fonts-inconsolata fonts-anonymous-pro fonts-courier-prime "
    "fonts-ocr-a fonts-ocr-b fonts-firacode fonts-cantarell fonts-noto-mono fonts-noto-core fonts-3270 fonts-hermit "
    "fonts-proggy fonts-agave fonts-mononoki fonts-monoid fonts-terminus-otb fonts-league-mono fonts-dotgothic16 "
    "fonts-spleen fonts-roboto-slab fonts-linuxlibertine fonts-crosextra-carlito fonts-crosextra-caladea "
    "fonts-urw-base35 fonts-b612 fonts-cabin fonts-fantasque-sans fonts-sil-andika fonts-play fonts-tlwg-mono-ttf "
    "fonts-vollkorn fonts-oxygen wamerican"
)

_ROOT = Path("/usr/share/fonts")
_FOLDERS = (
    "3270|agave|andika|anonymous-pro|b612|cabin|cantarell|courier-prime|croscore|crosextra|dejavu|dotgothic16|"
    "fantasque-sans|firacode|freefont|hack|hermit|inconsolata|jetbrains-mono|lato|league-mono|liberation|"
    "linux-libertine|monoid|mononoki|noto|ocr-a|ocr-b|open-sans|oxygen|play|proggy|roboto|spleen|terminus|tlwg|"
    "urw-base35|vollkorn"
)
_UNUSABLE = re.compile(  # symbols, other scripts, hairline weights nobody prints
    r"D050000L|Z003|StandardSymbols|Math|Icon|Emoji|Thin|Hairline|ExtraLight|UltraLight|Music|Symbols|Initials|Gothic16$",
    re.IGNORECASE,
)
_NOTO = re.compile(r"^Noto(Sans|Serif|SansMono|SansDisplay|SerifDisplay|Mono)-")
_MONOSPACED = re.compile(
    r"mono|cour|typewriter|ocr|hack|3270|hermit|agave|spleen|terminus|proggy|anonymous|"
    r"inconsolata|fantasque|firacode|nimbusmonops|tlwg|cousine|dotgothic",
    re.IGNORECASE,
)


@functools.cache
def font_files() -> tuple[tuple[Path, bool], ...]:
    """Usable font files in a stable order, each with whether it is monospaced."""
    found = []
    for path in sorted(_ROOT.rglob("*")):
        if path.suffix.lower() not in {".ttf", ".otf"} or _UNUSABLE.search(path.stem):
            continue
        if not re.search(rf"/({_FOLDERS})(/|$)", str(path.parent)):
            continue
        if "/noto" in str(path.parent) and not _NOTO.match(path.stem):
            continue
        found.append((path, bool(_MONOSPACED.search(str(path)))))
    if not found:
        raise FileNotFoundError("no fonts under /usr/share/fonts: apt-get install " + PACKAGES)
    return tuple(found)


@dataclass(frozen=True)
class Atlas:
    """All glyphs of one font at one size: ink masks (float 0..1), their offsets from the pen, advances in px."""

    masks: dict[str, np.ndarray]
    offsets: dict[str, tuple[int, int]]  # x right of the pen, y below the line's top
    advances: dict[str, float]
    height: int  # px from the line's top to its bottom


def make_atlas(path: Path, size: int, rng: np.random.Generator, plain: bool = False) -> Atlas:
    """Render a font at `size` px (em), sometimes as a thermal printer would: blocky, stretched tall or wide, bold."""
    blocky = rng.random() < 0.15 and not plain
    tall = rng.choice([1.0, rng.uniform(0.8, 1.3), rng.uniform(1.3, 1.9)], p=[0.45, 0.4, 0.15])
    wide = rng.choice([1.0, rng.uniform(0.85, 1.2)], p=[0.6, 0.4])
    if plain:
        tall = wide = 1.0
    drawn_size = max(7, round(size / 2)) if blocky and size >= 16 else size
    scale = size / drawn_size
    font = ImageFont.truetype(str(path), drawn_size, layout_engine=ImageFont.Layout.BASIC)
    ascent, descent = font.getmetrics()
    box = (int(drawn_size * 2) + 8, ascent + descent + 4)
    bold = rng.random() < 0.12 and not plain
    masks, offsets, advances = {}, {}, {}
    for glyph in PRINTABLE + " ":
        canvas = Image.new("L", box)
        ImageDraw.Draw(canvas).text((4, 2), glyph, font=font, fill=255, stroke_width=0)
        if blocky:
            canvas = canvas.point(lambda value: 255 if value > 110 else 0)
        target = (max(1, round(box[0] * scale * wide)), max(1, round(box[1] * scale * tall)))
        if target != box:
            canvas = canvas.resize(target, Image.Resampling.NEAREST if blocky else Image.Resampling.BICUBIC)
        ink = np.asarray(canvas, np.float32) / 255
        if bold:
            ink = np.maximum(ink, np.pad(ink, ((0, 0), (1, 0)))[:, :-1])
        advances[glyph] = font.getlength(glyph) * scale * wide + (1 if bold else 0)
        rows, columns = np.nonzero(ink > 0.03)
        if len(rows):
            top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
            masks[glyph] = np.ascontiguousarray(ink[top:bottom, left:right])
            offsets[glyph] = (int(left - round(4 * scale * wide)), int(top - round(2 * scale * tall)))
    return Atlas(masks, offsets, advances, round((ascent + descent) * scale * tall))


@functools.cache
def usable(path: Path) -> bool:
    """Whether the font has its own visible, mostly different shapes for printable ASCII."""
    try:
        atlas = make_atlas(path, 24, np.random.default_rng(1))
    except OSError:
        return False
    shapes = {(mask.shape, mask.tobytes()) for mask in atlas.masks.values()}
    return len(atlas.masks) == len(PRINTABLE) and len(shapes) > 85 and max(atlas.advances.values()) < 60


def choose_plain(rng: np.random.Generator) -> Path:
    plain = [
        path
        for path, _ in font_files()
        if path.stem
        in {
            "DejaVuSansMono",
            "LiberationMono-Regular",
            "LiberationSans-Regular",
            "DejaVuSans",
            "Cousine-Bold",
            "Hack-Regular",
        }
    ]
    return plain[rng.integers(len(plain))]


def pick_font(rng: np.random.Generator, held_out: bool = False, easy: bool = False) -> Path:
    """A random font; every seventh file is held out for evaluation. Monospaced ones come in half of the cases."""
    if easy:  # a handful of plain faces to begin with
        return choose_plain(rng)
    monospaced = rng.random() < 0.5
    pool = [
        path for index, (path, mono) in enumerate(font_files()) if mono == monospaced and (index % 7 == 3) == held_out
    ]
    while True:  # few are unusable
        path = pool[rng.integers(len(pool))]
        if usable(path):
            return path
