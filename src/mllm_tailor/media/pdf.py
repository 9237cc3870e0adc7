"""Draw the pages of a PDF as images.

PDFs are drawn by pdfium (the optional pypdfium2, built without its JavaScript engine) at a stated resolution, filled-in
forms included. pdfium must not be called from two threads at once, hence the lock.
"""

from __future__ import annotations

import ctypes
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.optional import need
from mllm_tailor.core.sample import Media
from mllm_tailor.media.source import IMAGE_LIMITS, SMALLER_IMAGE, ImageLimits, open_bytes

GRID = 100_000  # steps across a page, to which pdfium rounds positions
RESOLUTION = 150  # dots an inch: A4 becomes 1240x1754 pixels, about what scans of receipts have

_pdfium_lock = threading.Lock()


def count_pdf_pages(media: Media, limits: ImageLimits = IMAGE_LIMITS) -> int:
    """How many pages a PDF has.

    Raises:
        DataError: naming the file, also for a document without pages.
    """
    with _document(media, limits) as document:
        if not (count := len(document)):
            raise DataError(f"{media.describe()}: a document without pages — replace it or leave the row out")
        return int(count)


def draw_page(media: Media, limits: ImageLimits = IMAGE_LIMITS, resolution: float = RESOLUTION) -> Image.Image:
    """Draw one page of a PDF as RGB at `resolution` dots an inch.

    Raises:
        DataError: naming the file, for a password, damage, a page that is not there or over the limit of pixels.
    """
    with _page(media, limits, resolution) as (page, _):
        image: Image.Image = page.render(scale=resolution / 72).to_pil()
        return image.convert("RGB")


def page_text(media: Media, limits: ImageLimits = IMAGE_LIMITS) -> str:
    """The text layer of one page; empty where the page is a scan.

    Raises:
        DataError: as `draw_page`.
    """
    with _text_page(media, limits) as (_, layer):
        return str(layer.get_text_bounded())


@dataclass(frozen=True)
class TextLayer:
    """The text of a page, and where it stands."""

    text: str
    boxes: tuple[tuple[float, float, float, float] | None, ...]  # of each character, in thousandths; None: no ink


def page_characters(media: Media, limits: ImageLimits = IMAGE_LIMITS) -> TextLayer:
    """The characters of one page with their boxes on the page as it is drawn, turned pages upright.

    Raises:
        DataError: as `draw_page`.
    """
    raw = need("pypdfium2", "pdf", f"{media.describe()}: PDF").raw
    with _text_page(media, limits) as (page, layer):
        count = layer.count_chars()
        text = "".join(_character(raw, layer, index) for index in range(count))
        return TextLayer(text, tuple(_character_box(raw, page, layer, index) for index in range(count)))


@contextmanager
def _text_page(media: Media, limits: ImageLimits) -> Iterator[tuple[Any, Any]]:
    """A page and its text layer."""
    with _page(media, limits, RESOLUTION) as (page, _):
        layer = page.get_textpage()
        try:
            yield page, layer
        finally:
            layer.close()


def _character(raw: Any, layer: Any, index: int) -> str:
    """One letter of the text per character of the layer; those beyond 16 bits are halves of a pair in pdfium."""
    code = raw.FPDFText_GetUnicode(layer, index)
    return " " if code == 0 or 0xD800 <= code < 0xE000 else chr(code)


def _character_box(raw: Any, page: Any, layer: Any, index: int) -> tuple[float, float, float, float] | None:
    left, bottom, right, top = layer.get_charbox(index, loose=True)
    if right <= left or top <= bottom:
        return None
    x, y = ctypes.c_int(), ctypes.c_int()
    corners = []
    for corner in ((left, bottom), (right, top)):
        raw.FPDF_PageToDevice(page, 0, 0, GRID, GRID, 0, *corner, x, y)
        corners.append((x.value * 1000 / GRID, y.value * 1000 / GRID))
    (x0, y0), (x1, y1) = corners
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def page_size(media: Media, limits: ImageLimits = IMAGE_LIMITS, resolution: float = RESOLUTION) -> tuple[int, int]:
    """(width, height) in pixels that `draw_page` gives, without drawing."""
    with _page(media, limits, resolution) as (_, size):
        return size


@contextmanager
def _page(media: Media, limits: ImageLimits, resolution: float) -> Iterator[tuple[Any, tuple[int, int]]]:
    """The page and its size in pixels, within limits."""
    name = media.describe()
    with _document(media, limits) as document:
        count = len(document)
        if media.page is None and count > 1:
            raise DataError(f"{name}: has {count:,} pages and none is named — name a page, or split the document")
        if not 0 <= (number := media.page or 0) < count:
            raise DataError(f"{name}: has no page {number + 1} — check the page number")
        page = document[number]
        width, height = (math.ceil(points * (resolution / 72)) for points in page.get_size())
        if not limits.side <= min(width, height) or width * height > limits.pixels:
            raise DataError(
                f"{name}: page {number + 1} would be {width:,}x{height:,} pixels at {resolution:g} dots an inch, "
                f"outside the limits of {limits.side} a side and {limits.pixels:,} in all — scale the page"
            )
        yield page, (width, height)


@contextmanager
def _document(media: Media, limits: ImageLimits) -> Iterator[Any]:
    name = media.describe()
    pdfium = need("pypdfium2", "pdf", name)
    with _pdfium_lock:
        with open_bytes(media, limits.bytes, SMALLER_IMAGE) as stream:
            data = stream.read()
        if b"%PDF-" in data[:1024] and _is_cut_off(data):
            raise DataError(f"{name}: cut off (its end is missing) — copy it again from its source, or save it anew")
        try:
            document = pdfium.PdfDocument(data)
            try:
                if document.get_formtype():
                    document.init_forms()
                yield document
            finally:
                document.close()
        except pdfium.PdfiumError as error:
            if error.err_code == pdfium.raw.FPDF_ERR_PASSWORD:
                raise DataError(f"{name}: locked with a password — save a copy without it") from None
            raise DataError(f"{name}: damaged, cut off or no PDF — save it again from its source") from None


def _is_cut_off(data: bytes) -> bool:
    """Whether objects are left that no end mark follows, or the length stated for the web is not reached.

    pdfium would find what pages it can in the rest (ISO 32000-1, 7.5.5 and annex F).
    """
    end = data.rfind(b"%%EOF")
    stated = re.search(rb"/Linearized\b[^>]*?/L\s+(\d+)", data[:1024])
    if stated is not None and int(stated[1]) > len(data):
        return True
    return end < 0 or re.search(rb"\d\s+\d+\s+obj\b", data[end:]) is not None
