"""Read frames of videos by their timestamps, so that variable frame rates, rotated phones and long videos are right.

A frame is on screen from its own timestamp to the next one's. Times are chosen first, from the timestamps of the
packets (nothing is decoded for that), and the frame on screen at each is then decoded, by way of the nearest key frame
where that saves work. Of a video with fewer frames than are asked for, some are returned twice.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

from PIL import Image

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.optional import need
from mllm_tailor.core.sample import Media
from mllm_tailor.media.container import clock, first_stream, open_container

Span = tuple[float, float]  # seconds from the first frame


@dataclass(frozen=True)
class VideoLimits:
    """What a video may cost."""

    bytes: int = 4 * 2**30
    pixels: int = 36_000_000  # in one frame; 8K film has 33 million
    seconds: float = 3600.0  # of the span frames are taken from
    frames: int = 512  # returned at most
    decoded: int = 20_000  # on the way to those returned


DEFAULT_LIMITS = VideoLimits()


class Stamp(NamedTuple):
    """When a packet is shown and decoded and how long it stays, in ticks of its stream, and if it decodes alone."""

    pts: int | None
    dts: int | None
    duration: int
    key: bool


@dataclass(frozen=True)
class Timeline:
    """The timestamps of a video's frames in seconds from the first, in the order shown."""

    times: tuple[float, ...]
    keys: tuple[float, ...]  # of them, those that decode alone; empty where the container cannot be trusted
    end: float  # when the last frame leaves the screen
    start: float  # the first timestamp as the container counts
    counted: bool = False  # frames carry no timestamps of their own; the n-th decoded is the n-th shown


class VideoFrames(NamedTuple):
    """Frames of a video, or of a span of it."""

    frames: list[Image.Image]  # upright RGB
    times: list[float]  # seconds from the first frame of the span
    seconds: float  # how long the span is


def read_frames(
    media: Media,
    count: int | None = None,
    *,
    rate: float | None = None,
    span: Span | None = None,
    limits: VideoLimits = DEFAULT_LIMITS,
) -> list[Image.Image]:
    """The frames alone of `read_video`."""
    return read_video(media, count, rate=rate, span=span, limits=limits).frames


def read_video(
    media: Media,
    count: int | None = None,
    *,
    rate: float | None = None,
    span: Span | None = None,
    cut: tuple[float, float] = (0.0, 0.0),
    limits: VideoLimits = DEFAULT_LIMITS,
) -> VideoFrames:
    """Upright RGB frames: `count` of them, in the middle of equal segments, or `rate` a second; default 8 in all.

    `span` is in seconds from the first frame; default: the span of `media`, else the whole video. `cut` takes a share
    off either end of it.

    Raises:
        DataError: naming the file, for anything missing, empty, damaged, too long or without frames.
    """
    if count is not None and rate is not None:
        raise ValueError("give count or rate, not both")
    name = media.describe()
    with open_container(media, limits.bytes) as container:
        stream = _video(container, name, limits)
        line = _timeline(container, stream, name)
        begin, end = _within(line, span or media.span, name)
        begin, end = begin + cut[0] * (end - begin), end - cut[1] * (end - begin)
        wanted = _choose(begin, end, count, rate, name, limits)
        frames = [_upright(frame) for frame in _on_screen(container, stream, line, wanted, name, limits)]
    return VideoFrames(frames, [time - begin for time in wanted], end - begin)


def film_strip(frames: Sequence[Image.Image]) -> Image.Image:
    """Frames side by side, for people to look at."""
    width, height = frames[0].size
    strip = Image.new("RGB", (width * len(frames), height))
    for index, frame in enumerate(frames):
        strip.paste(frame, (width * index, 0))
    return strip


def encode_video(frames: Sequence[Image.Image], seconds: float, *, lossless: bool = True) -> bytes:
    """A Matroska file of `frames` (RGB, one even size), evenly spread over `seconds`.

    FFV1 keeps every bit; MPEG-4 (Part 2) is some ten times smaller.
    """
    av = need("av", "media", "a video to be written")
    stream = io.BytesIO()
    rate = Fraction(len(frames) / seconds).limit_denominator(1000)
    codec, pixels = ("ffv1", "bgr0") if lossless else ("mpeg4", "yuv420p")
    with av.open(stream, "w", format="matroska", options={"fflags": "+bitexact"}) as container:  # no random names
        track = container.add_stream(codec, rate=rate)
        track.width, track.height, track.pix_fmt = *frames[0].size, pixels
        if not lossless:
            track.codec_context.qmin = track.codec_context.qmax = 4
        for frame in frames:
            container.mux(track.encode(av.VideoFrame.from_image(frame).reformat(format=pixels)))
        container.mux(track.encode())
    return stream.getvalue()


def frame_size(media: Media, limits: VideoLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """(width, height) in pixels as the container states them: nothing is decoded, and rotation is not applied.

    Raises:
        DataError: naming the file.
    """
    name = media.describe()
    with open_container(media, limits.bytes) as container:
        stream = _video(container, name, limits)
        return stream.width, stream.height


def _video(container: Any, name: str, limits: VideoLimits) -> Any:
    stream = first_stream(container, "video", name)
    width, height = stream.width, stream.height
    if width * height > limits.pixels:
        raise DataError(f"{name}: frames of {width}x{height} pixels, over the limit of {limits.pixels:,} — shrink it")
    if min(width, height) < 2:
        raise DataError(f"{name}: frames of less than 2x2 pixels — replace it")
    stream.thread_type = "NONE"  # samples are decoded in parallel already
    return stream


def _timeline(container: Any, stream: Any, name: str) -> Timeline:
    """Timestamps from the packets alone. AVI stores the order of decoding only, so there frames are counted."""
    packets = [  # without their bytes, which would be the whole file
        Stamp(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe)
        for packet in container.demux(stream)
        if packet.size and not packet.is_discard
    ]
    if not packets:
        raise DataError(f"{name}: a video without frames — replace it or leave the row out")
    counted = container.format.name == "avi" or any(packet.pts is None for packet in packets)
    stamps = [packet.dts if counted else packet.pts for packet in packets]
    ticks = [tick for tick in stamps if tick is not None]
    if len(ticks) < len(packets):
        usual = float(1 / stream.average_rate) if stream.average_rate else 1 / 25
        times = [number * usual for number in range(len(packets))]
        return Timeline(tuple(times), (), times[-1] + usual, 0.0, counted=True)
    start = min(ticks)
    times = sorted(float((tick - start) * stream.time_base) for tick in ticks)
    marked = [] if counted else [packet.pts for packet in packets if packet.pts is not None and packet.key]
    keys = sorted(float((tick - start) * stream.time_base) for tick in marked)
    end = _end(stream, packets, times, name)
    return Timeline(tuple(times), tuple(keys), end, float(start * stream.time_base), counted)


def _end(stream: Any, packets: Sequence[Stamp], times: Sequence[float], name: str) -> float:
    """When the last frame leaves the screen: by what the file announces, else after the usual time."""
    announced = float(stream.duration * stream.time_base) if stream.duration else 0.0
    stored = float(sum(packet.duration for packet in packets) * stream.time_base)
    if stored and max(times[-1], stored) < 0.5 * announced:
        raise DataError(f"{name}: cut off after {clock(stored)} of {clock(announced)} — copy it again from its source")
    return announced if announced > times[-1] else times[-1] + (times[-1] / max(1, len(times) - 1) or 1.0)


def _choose(
    begin: float, end: float, count: int | None, rate: float | None, name: str, limits: VideoLimits
) -> list[float]:
    """The requested times, in seconds from the first frame, rising."""
    if end - begin > limits.seconds:
        raise DataError(
            f"{name}: {clock(end - begin)} of video, over the limit of {clock(limits.seconds)} — name a span, or cut it"
        )
    count = max(1, round((end - begin) * rate)) if rate is not None else 8 if count is None else count
    if not 1 <= count <= limits.frames:
        raise DataError(f"{name}: {count:,} frames wanted, from 1 to {limits.frames:,} are read — lower the rate")
    return [begin + (end - begin) * (number + 0.5) / count for number in range(count)]


def _within(line: Timeline, span: Span | None, name: str) -> Span:
    if span is None:
        return 0.0, line.end
    begin, end = max(0.0, span[0]), min(span[1], line.end)
    if not begin < end:
        raise DataError(
            f"{name}: the span {span[0]:g} to {span[1]:g} s lies outside its {clock(line.end)} — correct the span"
        )
    return begin, end


def _on_screen(
    container: Any, stream: Any, line: Timeline, wanted: Sequence[float], name: str, limits: VideoLimits
) -> Iterator[Any]:
    """The decoded frame on screen at each requested time."""
    decoder = _Decoder(container, stream, line, name, limits)
    for time in wanted:
        shown = line.times[max(0, bisect_right(line.times, time) - 1)]
        frame = decoder.frame_at(shown)
        if frame.is_corrupt:
            raise DataError(f"{name}: the frame at {clock(shown)} is damaged — copy it again from its source")
        yield frame


class _Decoder:
    """Decodes forward; jumps to a key frame where one lies between the current frame and the requested one."""

    def __init__(self, container: Any, stream: Any, line: Timeline, name: str, limits: VideoLimits) -> None:
        self.container, self.stream, self.line = container, stream, line
        self.name, self.limits = name, limits
        self.tolerance = 0.5 * float(stream.time_base)  # seconds; times are sums of floats
        self.decoded = 0
        self.current: tuple[float, Any]  # the frame on screen and when it came
        self.ahead: tuple[float, Any] | None  # the one after it
        self._rewind(0.0)

    def frame_at(self, time: float) -> Any:
        """The frame with the largest timestamp up to `time`; the first frame when all come later."""
        key = self._key_before(time)
        if key is not None and key > self.current[0] + self.tolerance:
            landed = self._rewind(key)
            if not landed or self.current[0] > time + self.tolerance:  # the file's index is wrong: from the start
                self.line = replace(self.line, keys=())
                self._rewind(0.0)
        while self.ahead is not None and self.ahead[0] <= time + self.tolerance:
            self.current, self.ahead = self.ahead, self._next()
        return self.current[1]

    def _key_before(self, time: float) -> float | None:
        index = bisect_right(self.line.keys, time + self.tolerance)
        return self.line.keys[index - 1] if index else None

    def _rewind(self, time: float) -> bool:
        """Continue decoding from the key frame at `time`; False where that leads behind the last frame."""
        tick = round((time + self.line.start) / self.stream.time_base)
        # Transport streams have no index: asked for the very first timestamp they land behind it.
        self.container.seek(tick if time else min(0, tick), stream=self.stream)
        self.frames = enumerate(self.container.decode(self.stream))
        first = self._next()
        if first is None and time:
            return False
        if first is None:
            raise DataError(f"{self.name}: no frame can be decoded — copy it again from its source")
        self.current, self.ahead = first, self._next()
        return True

    def _next(self) -> tuple[float, Any] | None:
        """The next frame and when it comes on screen, in seconds from the first."""
        self.decoded += 1
        if self.decoded > self.limits.decoded:
            raise DataError(f"{self.name}: over {self.limits.decoded:,} frames to decode — name a span, or cut it")
        index, frame = next(self.frames, (0, None))
        if frame is None:
            return None
        if self.line.counted or frame.pts is None:
            return self.line.times[min(index, len(self.line.times) - 1)], frame
        return float(frame.pts * self.stream.time_base) - self.line.start, frame


def _upright(frame: Any) -> Image.Image:
    """RGB, rotated as the container states (display matrix; degrees counter-clockwise)."""
    image: Image.Image = frame.to_image()
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    turn = turns.get(round((frame.rotation or 0) / 90) * 90 % 360)
    return image if turn is None else image.transpose(turn)
