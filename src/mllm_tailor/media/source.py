"""The bytes of a media file: its kind, where it may lie, how large it may be. Nothing is decoded here."""

from __future__ import annotations

import base64
import binascii
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, MediaKind

HEIF_SUFFIXES = frozenset({".heic", ".heif"})
PAGED_SUFFIXES = frozenset({".pdf", ".tif", ".tiff"})
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif", *HEIF_SUFFIXES}
)
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mkv", ".avi", ".mov", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv"}
)
AUDIO_SUFFIXES = frozenset(
    {".wav", ".w64", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".au", ".caf", ".amr"}
    | {".wma"}
)
_KINDS: dict[str, MediaKind] = {
    **dict.fromkeys({*IMAGE_SUFFIXES, ".pdf"}, "image"),  # one image a page, see `open.pages_of`
    **dict.fromkeys(VIDEO_SUFFIXES, "video"),
    **dict.fromkeys(AUDIO_SUFFIXES, "audio"),
}


@dataclass(frozen=True)
class ImageLimits:
    """What an image may cost: bytes on disk, pixels in memory (3 bytes each), and its shorter side."""

    bytes: int = 64 * 2**20
    pixels: int = 80_000_000
    side: int = 2  # an image one pixel wide cannot be tiled


IMAGE_LIMITS = ImageLimits()
SMALLER_IMAGE = "save it smaller"


def media_kind(path: str | Path) -> MediaKind | None:
    """`image`, `video`, `audio` by suffix, or None."""
    return _KINDS.get(os.path.splitext(path)[1].lower())  # noqa: PTH122


def open_bytes(media: Media, limit: int, fix: str) -> IO[bytes]:
    """The file, or the bytes inside the row: not empty and at most `limit` bytes, else `fix` is advised.

    The size is known before anything is read.

    Raises:
        DataError: naming the file.
    """
    name = media.describe()
    stream, size = _bytes_of(media, name)
    if 0 < size <= limit:
        return stream
    stream.close()
    if size == 0:
        raise DataError(f"{name}: the file is empty — replace it or leave the row out")
    raise DataError(f"{name}: {size:,} bytes, over the limit of {limit:,} — {fix}")


def _bytes_of(media: Media, name: str) -> tuple[IO[bytes], int]:
    if media.data is not None:
        return io.BytesIO(media.data), len(media.data)
    if media.path is None:
        raise DataError(f"{name}: neither a path nor data — name a file in this row")
    try:
        if not media.path.exists() or media.path.is_file():
            stream = media.path.open("rb")
            return stream, os.fstat(stream.fileno()).st_size
    except FileNotFoundError:
        raise DataError(f"{name}: no such file — check the path in this row, or restore the file") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be opened ({error.strerror}) — check its permissions") from None
    # A named pipe would be waited for without end.
    raise DataError(f"{name}: a folder, pipe or device, not a file — name a file in this row")


def is_pdf(media: Media, limits: ImageLimits = IMAGE_LIMITS) -> bool:
    """Whether the file begins as PDFs do, or has the suffix of one.

    Raises:
        DataError: naming the file, when it is missing, empty or too large.
    """
    with open_bytes(media, limits.bytes, SMALLER_IMAGE) as stream:
        return stream.read(5) == b"%PDF-" or (media.path is not None and media.path.suffix.lower() == ".pdf")


def decode_data_uri(uri: str, where: str) -> bytes:
    """The bytes of a `data:...;base64,...` address; nothing is fetched from anywhere.

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
        raise DataError(f"{where}: `{name[:80]!a}` cannot be the name of a file — correct the path")
    path = os.path.join(folder, name)  # noqa: PTH118
    if not leads_inside(folder, path):
        raise DataError(f"{where}: `{name}` leads out of {folder} — keep media inside the data folder")
    return Path(os.path.realpath(path))


def leads_inside(folder: str | Path, path: str | Path) -> bool:
    """Whether `path` lies in `folder` once every link is followed."""
    root, target = os.path.realpath(folder), os.path.realpath(path)
    return target == root or target.startswith(root.rstrip(os.sep) + os.sep)


def _can_be_a_path(name: str) -> bool:
    """No zero byte, no lone surrogate, and no longer than file systems allow (255 bytes a component)."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return False
    return b"\0" not in encoded and len(encoded) < 3000 and max(map(len, encoded.split(b"/"))) <= 255
