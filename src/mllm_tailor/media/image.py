"""Decode image files safely: within limits, from an allow-list of formats, upright, in RGB.

Decoders are the widest door a hostile file finds, so only formats people really label are opened, sizes are read
before pixels are, and Pillow's own error texts (which may hold memory addresses, CVE-2026-22778) are not repeated.
"""

from __future__ import annotations

import itertools
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.optional import need
from mllm_tailor.core.sample import Media
from mllm_tailor.media.complete_image import check_image_complete
from mllm_tailor.media.source import IMAGE_LIMITS, SMALLER_IMAGE, ImageLimits, open_bytes

MAX_COUNTED_PAGES = 10_000  # a small TIFF can claim millions
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")  # as Pillow names them; its JPEG includes MPO
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})

_warnings_lock = threading.Lock()  # Python's warning filters are one list for all threads


def decode_image(media: Media, limits: ImageLimits = IMAGE_LIMITS) -> Image.Image:
    """Decode one image, or one page of a TIFF, into upright 8-bit RGB.

    EXIF rotation is applied, transparency is laid on white, 16-bit grey is scaled by its own range, CMYK converted.

    Raises:
        DataError: naming the file, for anything missing, empty, truncated, too large or not an image.
    """
    name = media.describe()
    with open_bytes(media, limits.bytes, SMALLER_IMAGE) as stream, _naming_the_file(name):
        check_image_complete(stream, name)
        image = _open(stream, name, media.page, limits)
        image.load()
        return to_rgb(image)


def header_size(media: Media, limits: ImageLimits = IMAGE_LIMITS) -> tuple[int, int]:
    """(width, height) in pixels of the upright image, read from its header: pixels are not decoded.

    Raises:
        DataError: naming the file, as `decode_image` does.
    """
    name = media.describe()
    with open_bytes(media, limits.bytes, SMALLER_IMAGE) as stream, _naming_the_file(name):
        image = _open(stream, name, media.page, limits)
        may_be_turned = image.format != "TIFF" and (image.format != "PNG" or _has_metadata(stream))  # TIFF: upright
        if may_be_turned and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
            return image.height, image.width
        return image.size


def is_shown_as_stored(media: Media, limits: ImageLimits = IMAGE_LIMITS) -> bool:
    """Whether every reader shows the file as `decode_image` does: upright, opaque, 8 bits a colour.

    Raises:
        DataError: naming the file, as `decode_image` does.
    """
    name = media.describe()
    with open_bytes(media, limits.bytes, SMALLER_IMAGE) as stream, _naming_the_file(name):
        image = _open(stream, name, media.page, limits)
        plain = image.mode in ("RGB", "L") and "transparency" not in image.info
        return plain and image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def count_tiff_pages(media: Media, limits: ImageLimits = IMAGE_LIMITS) -> int:
    """How many pages a TIFF has; 1 for other images, animated ones too.

    Raises:
        DataError: naming the file, as `decode_image` does.
    """
    name = media.describe()
    with open_bytes(media, limits.bytes, SMALLER_IMAGE) as stream, _naming_the_file(name):
        image = _identify(stream, name)
        return next(page for page in itertools.count(1) if page == MAX_COUNTED_PAGES or not _has_page(image, page))


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright 8-bit RGB copy of any decoded image."""
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


def _open(stream: IO[bytes], name: str, page: int | None, limits: ImageLimits) -> Image.Image:
    """The header of one page, its size within limits; pixels are not read yet."""
    image = _identify(stream, name)
    if page is None and _has_page(image, 1):
        raise DataError(f"{name}: has several pages and none is named — name a page, or split the document")
    if image.format == "TIFF" or page:
        with _without_warnings():
            image.seek(page or 0)
    width, height = image.size
    if width * height > limits.pixels:
        raise DataError(
            f"{name}: {width}x{height} = {width * height:,} pixels, over the limit of {limits.pixels:,} — shrink it"
        )
    if min(width, height) < limits.side:
        raise DataError(f"{name}: {width}x{height} pixels is too thin to show anything — replace it")
    return image


def _identify(stream: IO[bytes], name: str) -> Image.Image:
    """The image with its header read, whatever its size."""
    head = stream.read(12)
    stream.seek(0)
    with _without_warnings():
        if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
            heif = need("pillow_heif", "heif", name)
            image: Image.Image = heif.HeifImageFile(stream)  # used directly: registering it would change Pillow
            return image
        return Image.open(stream, formats=IMAGE_FORMATS)


def _has_metadata(stream: IO[bytes]) -> bool:
    """Whether a PNG has a chunk that could hold an orientation, also behind its pixels, where Pillow decodes first."""
    start = stream.tell()
    stream.seek(8)
    result = False
    while not result and len(head := stream.read(8)) == 8:
        result = head[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
        stream.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    stream.seek(start)
    return result


def _has_page(image: Image.Image, page: int) -> bool:
    """Whether a TIFF has this page (from 0). Other images have one; further frames of an animation are no pages."""
    if image.format != "TIFF":
        return page == 0
    try:
        with _without_warnings():
            image.seek(page)
    except EOFError:
        return False
    return True


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns of what is refused here a moment later, such as sizes over a limit of its own."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _naming_the_file(name: str) -> Iterator[None]:
    """Whatever a decoder fails with becomes an error that names the file, without the decoder's own words."""
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError:
        known = ", ".join((*IMAGE_FORMATS, "HEIF"))
        raise DataError(f"{name}: not an image in a known format ({known}) — convert it") from None
    except Image.DecompressionBombError:
        raise DataError(f"{name}: far more pixels than a document needs — shrink it") from None
    except EOFError:
        raise DataError(f"{name}: has no such page — check the page number") from None
    except Exception:  # decoders of damaged files raise anything: struct.error, zlib.error, KeyError, …  # noqa: BLE001
        raise DataError(f"{name}: damaged or cut off while decoding — copy it again from its source") from None
