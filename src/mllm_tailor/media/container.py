"""Open videos and recordings with PyAV: known containers and codecs only, and nothing but the one file is ever read.

FFmpeg would follow a playlist named `film.mp4` to other files and to the network; here it is given a stream of bytes,
no protocol to open another with, and a list of the formats people really label.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.optional import need
from mllm_tailor.core.sample import Media
from mllm_tailor.media.complete import check_complete
from mllm_tailor.media.source import open_bytes

CONTAINERS = "mov,mp4,m4a,3gp,matroska,webm,avi,mpeg,mpegts,flv,asf,gif,wav,w64,aiff,au,flac,mp3,ogg,aac,amr,caf"
# How FFmpeg's names of known codecs begin.
CODECS = {
    "video": re.compile(
        r"h26|hevc|vp[89]|libvpx|(lib)?(dav1d|av1|aom)|(ms|m)?mpeg|mjpeg|gif|png|prores|theora|wmv|vc1|rawvideo|ffv1|dvv|flv"
    ),
    "audio": re.compile(r"pcm_|adpcm_|aac|mp[23]|e?ac3|(lib)?(opus|vorbis)|flac|alac|amr|libopencore_amr|wma"),
}


@contextmanager
def open_container(media: Media, limit: int) -> Iterator[Any]:
    """An `av.container.InputContainer`; whatever FFmpeg trips over inside the block becomes an error naming the file.

    Raises:
        DataError: naming the file, also when PyAV is not installed.
    """
    name = media.describe()
    av = need("av", "media", name)
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    with (
        open_whole(media, limit) as stream,
        _naming_the_file(name, media.kind, av),
        av.open(stream, options=options, metadata_errors="ignore") as container,
    ):
        yield container


def open_whole(media: Media, limit: int) -> IO[bytes]:
    """The bytes of a recording or video, which hold all that their container states.

    Raises:
        DataError: naming the file, also when it is cut off.
    """
    stream = open_bytes(media, limit, "cut it into pieces")
    try:
        check_complete(stream, media.describe())
    except BaseException:
        stream.close()
        raise
    return stream


def first_stream(container: Any, kind: str, name: str) -> Any:
    """The best stream of a kind (`video` or `audio`), its codec among the known ones; cover pictures are no video.

    Raises:
        DataError: when there is none.
    """
    streams = [stream for stream in getattr(container.streams, kind) if not _is_cover(stream)]
    if not streams:
        lacking = {"video": "no frames", "audio": "no sound"}[kind]
        raise DataError(f"{name}: a file with {lacking} in it — replace it, or declare the row as what it is")
    stream = streams[0]
    codec = stream.codec_context.name if stream.codec_context is not None else "unknown"
    if not CODECS[kind].match(codec):
        raise DataError(f"{name}: {kind} in the codec {codec!r}, which is not opened here — convert it to a common one")
    return stream


def clock(seconds: float) -> str:
    """Seconds as text.

    >>> clock(2.5), clock(10800)
    ('2.5 s', '3:00:00 h')
    """
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"


def _is_cover(stream: Any) -> bool:
    return stream.type == "video" and bool(stream.disposition & stream.disposition.__class__.attached_pic)


@contextmanager
def _naming_the_file(name: str, kind: str, av: Any) -> Iterator[None]:
    what = {"video": "video", "audio": "recording"}.get(kind, "file")
    try:
        yield
    except (av.FFmpegError, OSError, ValueError, IndexError, EOFError):
        raise DataError(
            f"{name}: no {what} in a known format, damaged, or cut off — copy it again from its source, or convert it"
        ) from None
