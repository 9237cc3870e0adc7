"""Clips as frames and recordings as samples, decoded with PyAV (the `media` extra)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media

MOST_SECONDS = 3600.0  # of a clip or recording that are decoded at all


@contextmanager
def _opened(media: Media) -> Iterator[Any]:
    """The container, closed afterwards; what FFmpeg trips over becomes an error naming the file."""
    try:
        import av
    except ImportError:
        raise DataError(
            f"{media.describe()}: clips and recordings need PyAV — pip install 'mllm-tailor[media]'"
        ) from None
    name = media.describe()
    try:
        source = io.BytesIO(media.data) if media.data is not None else str(media.path)
        with av.open(source, metadata_errors="ignore") as container:
            yield container
    except FileNotFoundError:
        raise DataError(f"{name}: no such file — check the path in this row, or restore the file") from None
    except (av.FFmpegError, OSError, ValueError, IndexError, MemoryError):
        raise DataError(f"{name}: damaged, empty or in no known format — copy it again, or convert it") from None


def read_frames(media: Media, count: int) -> list[Image.Image]:
    """`count` RGB frames, evenly spread over the clip (or its `span` of seconds), each from the middle of its share.

    A clip with fewer frames shows some of them twice, so that every clip costs the same.

    Raises:
        DataError: naming the file, when it is damaged or holds no picture.
    """
    start, end = media.span or (0.0, MOST_SECONDS)
    with _opened(media) as container:
        if not container.streams.video:
            raise DataError(f"{media.describe()}: holds no pictures — is it a recording?")
        times = [frame.time or 0.0 for frame in container.decode(video=0) if start <= (frame.time or 0.0) <= end]
    if not times:
        raise DataError(f"{media.describe()}: no frame lies within {start:g} to {end:g} seconds — check the span")
    wanted = [int((place + 0.5) * len(times) / count) for place in range(count)]
    with _opened(media) as container:
        inside = (frame for frame in container.decode(video=0) if start <= (frame.time or 0.0) <= end)
        kept = {place: frame.to_image() for place, frame in enumerate(inside) if place in wanted}
    return [kept[place] for place in wanted]


def read_sound(media: Media, rate: int) -> np.ndarray:
    """One channel of float32 samples in -1..1, at `rate` a second, of the recording or its `span` of seconds.

    Raises:
        DataError: naming the file, when it is damaged or silent of sound.
    """
    import av

    pieces: list[np.ndarray] = []
    with _opened(media) as container:
        if not container.streams.audio:
            raise DataError(f"{media.describe()}: holds no sound — is it a silent clip?")
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        for frame in container.decode(audio=0):
            if frame.time is not None and frame.time > MOST_SECONDS:
                break
            pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
        pieces += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
    sound = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    start, end = media.span or (0.0, MOST_SECONDS)
    sound = sound[int(start * rate) : int(end * rate)]
    if not sound.size:
        raise DataError(f"{media.describe()}: no sound within {start:g} to {end:g} seconds — check the span")
    return sound.astype(np.float32)
