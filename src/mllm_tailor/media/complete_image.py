"""Is an image file whole? Its decoder notices most cuts, but not those behind a first frame, nor unfinished copies.

A download or a crash may leave a file at its full size whose end is zeros; decoders show the rest as grey. Sources: PNG
(ISO/IEC 15948), GIF89a, JPEG (ISO/IEC 10918-1, B.1.1.3).
"""

from __future__ import annotations

import os
from typing import IO

from mllm_tailor.core.errors import DataError
from mllm_tailor.media.complete import BEYOND, EndOf, Matches, at, end_of_gif

MOST_ZEROS = 512  # at the end of an image whose pixels are compressed


def check_image_complete(stream: IO[bytes], name: str) -> None:
    """Leaves `stream` at its start.

    Raises:
        DataError: naming the file, when its end is missing.
    """
    size = stream.seek(0, os.SEEK_END)
    head = at(stream, 0, 16)
    end_of = next((end_of for matches, end_of in _IMAGES if matches(head)), None)
    end = None if end_of is None else end_of(stream, size)
    stream.seek(0)
    if end is not None and end > size:
        raise DataError(f"{name}: cut off or not copied to its end — copy it again from its source, or save it anew")


def _end_of_png(stream: IO[bytes], _size: int) -> int | None:
    """The chunk that ends every PNG; of an animation a decoder reads the first frame alone."""
    offset = 8
    while len(head := at(stream, offset, 8)) == 8:
        offset += 12 + int.from_bytes(head[:4], "big")
        if head[4:] == b"IEND":
            return offset
    return BEYOND


def _end_of_animation(stream: IO[bytes], size: int) -> int | None:
    return max(end_of_gif(stream, size) or 0, _end_of_compressed(stream, size) or 0)


def _end_of_compressed(stream: IO[bytes], size: int) -> int | None:
    """Compressed pixels do not end in a long run of zeros, as files do that were made at full size and never filled."""
    tail = at(stream, max(0, size - MOST_ZEROS), MOST_ZEROS)
    return BEYOND if len(tail) == MOST_ZEROS and not any(tail) else None


def _end_of_jpeg(stream: IO[bytes], size: int) -> int | None:
    """The same, but cameras may pad a file behind its end mark."""
    if _end_of_compressed(stream, size) is None:
        return None
    return None if at(stream, 0, size).rstrip(b"\0").endswith(b"\xff\xd9") else BEYOND


_IMAGES: tuple[tuple[Matches, EndOf], ...] = (
    (lambda head: head[:4] == b"GIF8", _end_of_animation),
    (lambda head: head[:8] == b"\x89PNG\r\n\x1a\n", _end_of_png),
    (lambda head: head[:2] == b"\xff\xd8", _end_of_jpeg),
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", _end_of_compressed),
    (lambda head: head[4:8] == b"ftyp", _end_of_compressed),  # AVIF, HEIC
)
