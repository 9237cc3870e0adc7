"""Open pictures safely: within limits, from an allow-list of formats, upright, in RGB.

Decoders are the widest door a hostile file finds, so only formats people really label are opened, sizes are read
before pixels are, and Pillow's own error texts (which may hold memory addresses, CVE-2026-22778) are not repeated.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, MediaKind

# Said of pictures that our own, lower limit refuses a moment later.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

VIEW = (896, 448)  # pixels of each of several views: two tiles
SMALLER = "save it smaller"
MOST_COUNTED = 10_000  # pages; a small TIFF can claim millions
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "MPO")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".avi", ".mov", ".webm"})
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".m4a"})
_KINDS: dict[str, MediaKind] = {
    **dict.fromkeys({*IMAGE_SUFFIXES, ".pdf"}, "image"),  # a page at a time, see `pages`
    **dict.fromkeys(VIDEO_SUFFIXES, "video"),
    **dict.fromkeys(AUDIO_SUFFIXES, "audio"),
}


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost: bytes on disk, pixels in memory (3 bytes each), and its thinnest side."""

    bytes: int = 64 * 2**20
    pixels: int = 80_000_000
    side: int = 2  # a 1-pixel-wide picture cannot be tiled


DEFAULT_LIMITS = ImageLimits()


def media_kind(path: str | Path) -> MediaKind | None:
    """`image`, `video`, `audio` by suffix, or None."""
    return _KINDS.get(os.path.splitext(path)[1].lower())


def open_image(media: Media, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode one picture into an upright 8-bit RGB image.

    EXIF rotation is applied, transparency is laid on white, 16-bit grey is scaled by its own range, CMYK converted.

    Raises:
        DataError: naming the file, for anything missing, empty, truncated, too large or not a picture.
    """
    name = media.describe()
    if media.views:
        return stitch([open_image(Media("image", view), limits) for view in media.views])
    if is_pdf(media, limits):
        from mllm_tailor.media.pdf import open_page  # which builds on this module

        return open_page(media, limits)
    with open_bytes(media, limits.bytes, SMALLER) as stream:
        return _decode(stream, name, media.page, limits)


def image_size(media: Media, limits: ImageLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """(width, height) in pixels of the upright picture, read from its header: pixels are not decoded.

    Raises:
        DataError: naming the file, as `open_image` does.
    """
    name = media.describe()
    if media.views:
        columns, rows = _grid(len(media.views))
        return VIEW[0] * columns, VIEW[1] * rows
    if is_pdf(media, limits):
        from mllm_tailor.media.pdf import page_size

        return page_size(media, limits)
    with open_bytes(media, limits.bytes, SMALLER) as stream, _naming_faults(name):
        image = _open(stream, name, media.page, limits)
        told = image.format != "PNG" or _says_more(stream)
        lying = told and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        turned = lying and image.format != "TIFF"  # Pillow gives the upright size of a TIFF by itself
        return (image.height, image.width) if turned else image.size


def stitch(views: Sequence[Image.Image]) -> Image.Image:
    """Views of one scene side by side, each 896x448, in two rows where there are more than three.

    Six become 2688x896, as InternVL's transfer framework shows the cameras of a car (arXiv 2410.16261, section 3.3).
    """
    columns, rows = _grid(len(views))
    whole = Image.new("RGB", (VIEW[0] * columns, VIEW[1] * rows))
    for place, view in enumerate(views):
        row, column = divmod(place, columns)
        whole.paste(view.resize(VIEW, Image.Resampling.BICUBIC), (VIEW[0] * column, VIEW[1] * row))
    return whole


def _grid(count: int) -> tuple[int, int]:
    """Columns and rows of stitched views."""
    rows = 1 if count <= 3 else 2
    return -(-count // rows), rows


def count_pictures(media: Media, limits: ImageLimits = DEFAULT_LIMITS) -> int:
    """How many pages a TIFF has; one for other pictures, also for those that move.

    Raises:
        DataError: naming the file, as `open_image` does.
    """
    name = media.describe()
    with open_bytes(media, limits.bytes, SMALLER) as stream, _naming_faults(name):
        image = Image.open(stream, formats=IMAGE_FORMATS)
        return next(page for page in count(1) if page == MOST_COUNTED or not _has_page(image, page))


def is_pdf(media: Media, limits: ImageLimits = DEFAULT_LIMITS) -> bool:
    """Whether the file begins as PDFs do, or is named one.

    Raises:
        DataError: naming the file, when it is missing, empty or too large.
    """
    with open_bytes(media, limits.bytes, SMALLER) as stream:
        return stream.read(5) == b"%PDF-" or (media.path is not None and media.path.suffix.lower() == ".pdf")


def open_bytes(media: Media, most: int, fix: str) -> IO[bytes]:
    """The file, or the bytes that travelled in the row: not empty and at most `most` bytes, else `fix` is advised.

    Raises:
        DataError: naming the file.
    """
    name = media.describe()
    stream, size = _bytes_of(media, name)
    if 0 < size <= most:
        return stream
    stream.close()
    if size == 0:
        raise DataError(f"{name}: the file is empty — replace it or leave the row out")
    raise DataError(f"{name}: {size:,} bytes, over the limit of {most:,} — {fix}")


def _bytes_of(media: Media, name: str) -> tuple[IO[bytes], int]:
    if media.data is not None:
        return io.BytesIO(media.data), len(media.data)
    assert media.path is not None, "a Media has a path or data"
    try:
        return media.path.open("rb"), media.path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{name}: no such file — check the path in this row, or restore the file") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be opened ({error.strerror}) — check its permissions") from None


def _decode(stream: IO[bytes], name: str, page: int | None, limits: ImageLimits) -> Image.Image:
    with _naming_faults(name):
        image = _open(stream, name, page, limits)
        image.load()
    return to_rgb(image)


def _open(stream: IO[bytes], name: str, page: int | None, limits: ImageLimits) -> Image.Image:
    """The header of one page, its size within limits; pixels are not read yet."""
    image = Image.open(stream, formats=IMAGE_FORMATS)
    if page is None and _has_page(image, 1):
        raise DataError(f"{name}: has several pages and none is named — name a page, or split the document")
    if image.format == "TIFF" or page:
        image.seek(page or 0)
    width, height = image.size
    if width * height > limits.pixels:
        raise DataError(
            f"{name}: {width}x{height} = {width * height:,} pixels, over the limit of {limits.pixels:,} — shrink it"
        )
    if min(width, height) < limits.side:
        raise DataError(f"{name}: {width}x{height} pixels is too thin to show anything — replace it")
    return image


def _says_more(stream: IO[bytes]) -> bool:
    """Whether a PNG has a chunk that could tell how it lies, also behind its pixels, which Pillow decodes to see."""
    place = stream.tell()
    stream.seek(8)
    found = False
    while not found and len(head := stream.read(8)) == 8:
        found = head[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
        stream.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    stream.seek(place)
    return found


def _has_page(image: Image.Image, page: int) -> bool:
    """Whether a TIFF goes on to this page (from 0). Other pictures have one; their further frames are no pages."""
    if image.format != "TIFF":
        return page == 0
    try:
        image.seek(page)
    except EOFError:
        return False
    return True


@contextmanager
def _naming_faults(name: str) -> Iterator[None]:
    """Whatever a decoder trips over becomes an error that names the file, without the decoder's own words."""
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: not a picture in a known format ({', '.join(IMAGE_FORMATS)}) — convert it") from None
    except Image.DecompressionBombError:
        raise DataError(f"{name}: far more pixels than a document needs — shrink it") from None
    except EOFError:
        raise DataError(f"{name}: has no such page — check the page number") from None
    except Exception:  # decoders of damaged files raise whatever they stumble on: struct.error, zlib.error, KeyError, …
        raise DataError(f"{name}: damaged or cut off while decoding — copy it again from its source") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright 8-bit RGB copy of any decoded picture."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") and values.max(initial=0) > 255 else max(values.max(initial=0), 1.0)
        image = Image.fromarray((values.clip(0, top) * (255.0 / top)).round().astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, "white")
        image.paste(layer, mask=layer.getchannel("A"))
    return image if image.mode == "RGB" else image.convert("RGB")


def decode_data_uri(uri: str, where: str) -> bytes:
    """The bytes of a `data:...;base64,...` address; nothing is ever fetched from anywhere.

    Raises:
        DataError: when it is not base64.
    """
    head, comma, body = uri.partition(",")
    if not comma or not head.endswith(";base64"):
        raise DataError(f"{where}: a data address must look like data:image/png;base64,… — embed the file as base64")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise DataError(f"{where}: the base64 of this data address is damaged — embed the file again") from None


def inside(folder: Path, name: str, where: str) -> Path:
    """`folder/name`, refused when it leaves `folder` (by `..`, an absolute path or a link).

    Raises:
        DataError: naming the row.
    """
    if not _can_be_a_path(name):
        raise DataError(f"{where}: `{name[:80]!a}` cannot be the name of a file — mend the path")
    root, path = os.path.realpath(folder), os.path.realpath(os.path.join(folder, name))
    if path != root and not path.startswith(root.rstrip(os.sep) + os.sep):
        raise DataError(f"{where}: `{name}` leads out of {folder} — keep media inside the data folder")
    return Path(path)


def _can_be_a_path(name: str) -> bool:
    """No zero byte, no half character, and no longer than file systems allow (255 bytes a part)."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return False
    return b"\0" not in encoded and len(encoded) < 3000 and max(map(len, encoded.split(b"/"))) <= 255
