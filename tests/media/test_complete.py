"""A recording or video that is cut off is refused, or gives bit for bit what the whole file gives."""

from __future__ import annotations

import io
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media
from mllm_tailor.media.audio import read_audio
from mllm_tailor.media.complete import check_complete
from mllm_tailor.media.video import read_video

RATE = 16_000
# By libsndfile: (format, subtype). By FFmpeg: (format, codec, rate, options).
PLAIN = {
    "wav": ("WAV", None), "wavex": ("WAVEX", "PCM_24"), "ulaw.wav": ("WAV", "ULAW"), "adpcm.wav": ("WAV", "MS_ADPCM"),
    "rf64": ("RF64", None), "w64": ("W64", None), "flac": ("FLAC", None), "aiff": ("AIFF", None), "au": ("AU", None),
    "caf": ("CAF", None), "vorbis.ogg": ("OGG", None), "opus.ogg": ("OGG", "OPUS"), "mp3": ("MP3", None),
}  # fmt: skip
MUXED = {
    "ff.wav": ("wav", "pcm_s16le", RATE, {}), "ff.mp3": ("mp3", "mp3", RATE, {}), "ff.flac": ("flac", "flac", RATE, {}),
    "ff.aiff": ("aiff", "pcm_s16be", RATE, {}), "ff.au": ("au", "pcm_s16be", RATE, {}),
    "ff.caf": ("caf", "pcm_s16le", RATE, {}), "ff.ogg": ("ogg", "libopus", 48_000, {}),
    "ff.mka": ("matroska", "aac", RATE, {}), "ff.webm": ("webm", "libopus", 48_000, {}),
    "ff.m4a": ("ipod", "aac", RATE, {}), "fast.m4a": ("ipod", "aac", RATE, {"movflags": "faststart"}),
}  # fmt: skip
# Formats that state no length: a cut between two frames cannot be known, but nothing may be made up.
OPEN = {
    "bare.mp3": ("mp3", "mp3", RATE, {"write_xing": "0"}), "aac": ("adts", "aac", RATE, {}),
    "amr": ("amr", "libopencore_amrnb", 8_000, {}), "ts": ("mpegts", "aac", RATE, {}),
}  # fmt: skip
VIDEOS = {
    "mkv": ("matroska", "mpeg4", {}), "webm": ("webm", "libvpx-vp9", {}), "avi": ("avi", "mpeg4", {}),
    "mp4": ("mp4", "libx264", {}), "fast.mp4": ("mp4", "libx264", {"movflags": "faststart"}),
    "mov": ("mov", "mpeg4", {}), "3gp": ("3gp", "mpeg4", {}), "asf": ("asf", "wmv2", {}),
    "mpg": ("mpeg", "mpeg1video", {}), "flv": ("flv", "flv", {}), "mjpeg.avi": ("avi", "mjpeg", {}),
}  # fmt: skip
STREAMS = {"ts": ("mpegts", "mpeg2video", {})}
RATES = {"mpg": 25, "ts": 25}  # MPEG-1 and MPEG-2 know a few only


def sound(seconds: float = 1.5) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    return (0.4 * np.sin(2 * np.pi * 440 * time) + np.random.default_rng(0).normal(0, 0.05, len(time))).astype(
        "float32"
    )


@cache
def recording(name: str) -> bytes:
    if name in PLAIN:
        kind, subtype = PLAIN[name]
        stream = io.BytesIO()
        soundfile.write(stream, sound(), RATE, format=kind, subtype=subtype)
        return stream.getvalue()
    kind, codec, rate, options = (MUXED | OPEN)[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a")
        with av.open(str(path), "w", format=kind, options=options) as container:
            track = container.add_stream(codec, rate=rate)
            track.layout = "mono"
            shape = {"format": track.codec_context.format, "layout": "mono", "rate": rate}
            resampler = av.AudioResampler(**shape, frame_size=track.codec_context.frame_size or 0)
            frame = av.AudioFrame.from_ndarray(sound()[None], format="flt", layout="mono")
            frame.sample_rate = RATE
            for part in [*resampler.resample(frame), *resampler.resample(None), None]:
                container.mux(track.encode(part))
        return path.read_bytes()


@cache
def video(name: str) -> bytes:
    kind, codec, options = (VIDEOS | STREAMS)[name]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a")
        with av.open(str(path), "w", format=kind, options=options) as container:
            track = container.add_stream(codec, rate=RATES.get(name, 10))
            track.width, track.height, track.pix_fmt = 32, 32, "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for _ in range(12):
                picture = np.kron(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
                container.mux(track.encode(av.VideoFrame.from_image(Image.fromarray(picture))))
            container.mux(track.encode())
        return path.read_bytes()


@cache
def samples(name: str) -> np.ndarray:
    return read_audio(Media("audio", data=recording(name)))


@cache
def shown(name: str) -> bytes:
    return frames(video(name))


def frames(content: bytes) -> bytes:
    return b"".join(frame.tobytes() for frame in read_video(Media("video", data=content), 12).frames)


@pytest.mark.parametrize("name", [*PLAIN, *MUXED])
@settings(max_examples=20)
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.3)
@example(share=0.5)
@example(share=0.9999999)
def test_a_recording_that_is_cut_off_is_refused_or_equal(name: str, share: float) -> None:
    whole, content = samples(name), recording(name)
    try:
        result = read_audio(Media("audio", data=content[: max(1, int(share * len(content)))]))
    except DataError as error:
        assert " — " in str(error)
    else:
        np.testing.assert_array_equal(result, whole)


@pytest.mark.parametrize("name", OPEN)
@settings(max_examples=15)
@given(share=st.floats(0, 1, exclude_max=True))
def test_where_no_length_is_stated_nothing_is_made_up(name: str, share: float) -> None:
    whole, content = samples(name), recording(name)
    try:
        result = read_audio(Media("audio", data=content[: max(1, int(share * len(content)))]))
    except DataError:
        return
    assert len(result) <= len(whole)
    kept = result[: max(0, len(result) - 64)]  # resampling to 16 kHz looks a little ahead
    np.testing.assert_array_equal(kept, whole[: len(kept)])


@pytest.mark.parametrize("name", VIDEOS)
@settings(max_examples=6)
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.5)
@example(share=0.9999999)
def test_a_video_that_is_cut_off_is_refused_or_equal(name: str, share: float) -> None:
    whole, content = shown(name), video(name)
    try:
        result = frames(content[: max(1, int(share * len(content)))])
    except DataError as error:
        assert " — " in str(error)
    else:
        assert result == whole


def test_a_seek_that_lands_behind_the_last_key_frame_loses_no_frame() -> None:
    """FFmpeg finds nothing from the last key frame of this stream on; it is then decoded from its start."""
    result = read_video(Media("video", data=video("ts")), 12)
    assert len({frame.tobytes() for frame in result.frames}) == 12


@pytest.mark.parametrize("name", [*PLAIN, *MUXED, *OPEN])
def test_whole_recordings_pass_whatever_lies_behind_them(name: str) -> None:
    content = recording(name)
    check_complete(io.BytesIO(content), name)
    if name.endswith("mp3"):
        check_complete(io.BytesIO(content + b"TAG" + bytes(125)), name)
        check_complete(io.BytesIO(b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + content), name)
    if name.endswith("wav"):
        check_complete(io.BytesIO(content + b"LIST\x04\0\0\0INFO"), name)


@pytest.mark.parametrize(
    ("name", "offset", "content"),
    [
        ("wav", 40, b"\xff\xff\xff\xff"),
        ("wav", 40, b"\xf0\xff\xff\x7f"),
        ("au", 8, b"\xff\xff\xff\xff"),
        ("caf", None, b"\xff" * 8),
    ],
)
def test_lengths_left_open_by_a_pipe_are_accepted(name: str, offset: int | None, content: bytes) -> None:
    data = bytearray(recording(name))
    offset = data.index(b"data") + 4 if offset is None else offset
    data[offset : offset + len(content)] = content
    check_complete(io.BytesIO(data), name)


def test_a_head_that_promises_more_sound_than_follows_is_not_filled_up() -> None:
    """The frames of the Xing head are double what follows; its bytes are right."""
    content = bytearray(recording("mp3"))
    half = bytearray(content[: len(content) // 2])
    place = half.index(b"Xing") if b"Xing" in half else half.index(b"Info")
    half[place + 12 : place + 16] = len(half).to_bytes(4, "big")
    first, second = (read_audio(Media("audio", data=bytes(half))) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(first) < 0.7 * len(samples("mp3"))
    np.testing.assert_array_equal(first[:8000], samples("mp3")[:8000])


@pytest.mark.parametrize("name", ["mkv", "webm"])
def test_matroska_written_into_a_pipe_is_read(name: str) -> None:
    class Pipe(io.RawIOBase):
        content = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.content += bytes(data)
            return len(data)

    kind, codec, _ = VIDEOS[name]
    pipe = Pipe()
    with av.open(pipe, "w", format=kind) as container:
        track = container.add_stream(codec, rate=10)
        track.width, track.height, track.pix_fmt = 32, 32, "yuv420p"
        for shade in range(12):
            container.mux(track.encode(av.VideoFrame.from_image(Image.new("RGB", (32, 32), (shade * 20, 0, 0)))))
        container.mux(track.encode())
    assert len(frames(pipe.content)) == 12 * 32 * 32 * 3
    with pytest.raises(DataError, match="cut off"):
        check_complete(io.BytesIO(pipe.content[:-5]), name)


@pytest.mark.parametrize("name", ["mkv", "webm"])
def test_matroska_that_was_never_filled_up_is_refused(name: str) -> None:
    whole = video(name)
    left = len(whole) // 2
    with pytest.raises(DataError, match="cut off"):
        check_complete(io.BytesIO(whole[:left] + bytes(len(whole) - left)), name)


def test_transport_streams_are_read_from_their_first_frame() -> None:
    stream = io.BytesIO()
    with av.open(stream, "w", format="mpegts") as container:
        track = container.add_stream("libx264", rate=10)
        track.width, track.height, track.pix_fmt = 64, 64, "yuv420p"
        for shade in range(12):
            container.mux(track.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 64), (shade * 20, 0, 0)))))
        container.mux(track.encode())
    reds = [frame.getpixel((9, 9))[0] for frame in read_video(Media("video", data=stream.getvalue()), 12).frames]
    assert all(abs(red - shade * 20) < 12 for shade, red in enumerate(reds))
    with pytest.raises(DataError, match="cut off"):
        read_video(Media("video", data=stream.getvalue()[:-100]), 12)


@pytest.mark.slow
@settings(max_examples=200)
@given(
    name=st.sampled_from([*PLAIN, *MUXED, *OPEN]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    kept=st.floats(0, 1),
)
def test_damage_anywhere_ends_and_is_no_traceback(name: str, changes: list[tuple[float, int]], kept: float) -> None:
    content = bytearray(recording(name))
    for place, value in changes:
        content[min(len(content) - 1, int(place * place * len(content)))] = value  # heads more often
    try:
        check_complete(io.BytesIO(content[: int(kept * len(content))]), "a file")
    except DataError as error:
        assert str(error).startswith("a file: cut off")


@pytest.mark.parametrize("name", [*PLAIN, *MUXED, *OPEN, *VIDEOS])
@settings(max_examples=25)
@given(kept=st.integers(1, 400), damage=st.binary(max_size=64))
@example(kept=3, damage=b"")
@example(kept=16, damage=b"\xff" * 16)
def test_any_bytes_behind_any_head_are_judged(name: str, kept: int, damage: bytes) -> None:
    """A few bytes, or lengths that point before the start or beyond any end, are no reason to fail."""
    content = video(name) if name in VIDEOS else recording(name)
    with suppress(DataError):
        check_complete(io.BytesIO(content[:kept] + damage), name)
