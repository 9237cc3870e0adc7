"""Open any image, page of a document or set of views: the one place that chooses the decoder of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.remote import fetch_each, url_of
from mllm_tailor.core.sample import Media, MediaKind
from mllm_tailor.media.image import count_tiff_pages, decode_image, header_size
from mllm_tailor.media.pdf import count_pdf_pages, draw_page, page_size
from mllm_tailor.media.source import IMAGE_LIMITS, PAGED_SUFFIXES, ImageLimits, is_pdf

VIEW = (896, 448)  # pixels of each of several views: two tiles
MAX_PAGES = 100  # of one document


def open_image(media: Media, limits: ImageLimits = IMAGE_LIMITS) -> Image.Image:
    """An upright 8-bit RGB image of an image file, a page of a document, or several views stitched together.

    Raises:
        DataError: naming the file, for anything missing, empty, truncated, too large or not an image.
    """
    if media.views:
        return stitch([open_image(Media("image", view), limits) for view in media.views])
    return draw_page(media, limits) if is_pdf(media, limits) else decode_image(media, limits)


def image_size(media: Media, limits: ImageLimits = IMAGE_LIMITS) -> tuple[int, int]:
    """(width, height) in pixels of what `open_image` gives, from the header: pixels are not decoded.

    Raises:
        DataError: naming the file, as `open_image` does.
    """
    if media.views:
        columns, rows = _grid(len(media.views))
        return VIEW[0] * columns, VIEW[1] * rows
    return page_size(media, limits) if is_pdf(media, limits) else header_size(media, limits)


FileStamps = tuple[tuple[int, int], ...]


def file_stamps(media: Media) -> FileStamps:
    """When the files of an image were written, and their size: a file may be replaced while a program runs."""
    stamps = []
    for path in media.views or ((media.path,) if media.path is not None else ()):
        try:
            status = path.stat()
        except OSError:  # not there, or not yet fetched from a store: `open_image` says
            continue
        stamps.append((status.st_mtime_ns, status.st_size))
    return tuple(stamps)


def page_count(media: Media, limits: ImageLimits = IMAGE_LIMITS) -> int:
    """How many pages a PDF or TIFF has; 1 for any other image.

    Raises:
        DataError: naming the file.
    """
    return count_pdf_pages(media, limits) if is_pdf(media, limits) else count_tiff_pages(media, limits)


def pages_of(
    path: Path, kind: MediaKind = "image", max_pages: int = MAX_PAGES, limits: ImageLimits = IMAGE_LIMITS
) -> tuple[Media, ...]:
    """One `Media` for each page of a document, in order; any other file is one `Media` of its `kind`.

    Raises:
        DataError: naming the file, for one that cannot be opened, has no page, or has more than `max_pages`.
    """
    if path.suffix.lower() not in PAGED_SUFFIXES:
        return (Media(kind, path),)
    if not path.exists() and url_of(path) is not None and (problem := fetch_each([path])):  # a document of a store
        raise DataError(problem[path])
    count = page_count(Media("image", path), limits)
    if count > max_pages:
        raise DataError(
            f"{path}: {count:,} pages, over the limit of {max_pages:,} — keep the pages that matter, or split it"
        )
    return (Media("image", path),) if count == 1 else tuple(Media("image", path, page=page) for page in range(count))


def stitch(views: Sequence[Image.Image]) -> Image.Image:
    """Views of one scene side by side, each 896x448 pixels, in two rows where there are more than three.

    Six become 2688x896, as InternVL's transfer framework shows the cameras of a car (arXiv 2410.16261, section 3.3).
    """
    columns, rows = _grid(len(views))
    whole = Image.new("RGB", (VIEW[0] * columns, VIEW[1] * rows))
    for index, view in enumerate(views):
        row, column = divmod(index, columns)
        whole.paste(view.resize(VIEW, Image.Resampling.BICUBIC), (VIEW[0] * column, VIEW[1] * row))
    return whole


def _grid(count: int) -> tuple[int, int]:
    """Columns and rows of stitched views."""
    rows = 1 if count <= 3 else 2
    return -(-count // rows), rows
