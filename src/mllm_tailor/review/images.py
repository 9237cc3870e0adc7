"""The images of a document as a browser shows them."""

from __future__ import annotations

import io
from functools import lru_cache

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media
from mllm_tailor.media.open import open_image
from mllm_tailor.media.video import film_strip, read_frames

SIDE = 2400  # pixels of the longer side of what is drawn
FRAMES = 6  # of a video


@lru_cache(maxsize=16)
def jpeg_of(media: Media) -> bytes:
    """An upright JPEG of an image, a page or a video's frames.

    Raises:
        DataError: for a recording, or a file that cannot be read.
    """
    if media.kind == "audio":
        raise DataError(f"{media.describe()}: a recording has no image")
    image = open_image(media) if media.kind == "image" else film_strip(read_frames(media, FRAMES))
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=88)
    return stream.getvalue()
