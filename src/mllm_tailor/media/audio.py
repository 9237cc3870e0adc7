"""Read recordings as one channel of samples at the rate a model wants.

libsndfile (soundfile) reads plain recordings, FFmpeg (PyAV) all others and the sound of videos. Channels are averaged.
Rates are changed by FFmpeg's libswresample, a polyphase filter with a windowed sinc. Loudness stays as recorded unless
a level is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.optional import need
from mllm_tailor.core.sample import Media
from mllm_tailor.media.container import clock, first_stream, open_container, open_whole

SPEECH_RATE = 16_000  # samples a second of HuBERT, wav2vec 2.0, Whisper and similar models
PLAIN = frozenset({"WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF"})  # libsndfile's names
BLOCK = 1 << 16  # samples of every channel decoded at once
FILTER = 64  # samples at the lower rate; libswresample drops input that is shorter than its filter
Blocks = tuple[int, Iterator[np.ndarray]]  # samples a second, then float32 blocks (samples,)


@dataclass(frozen=True)
class AudioLimits:
    """What a recording may cost."""

    bytes: int = 2 * 2**30
    seconds: float = 1800.0  # of the span that is read
    rate: int = 384_000
    channels: int = 16


DEFAULT_LIMITS = AudioLimits()


def read_audio(
    media: Media,
    rate: int = SPEECH_RATE,
    *,
    span: tuple[float, float] | None = None,
    level: float | None = None,
    limits: AudioLimits = DEFAULT_LIMITS,
) -> np.ndarray:
    """Float32 (samples,) at `rate` a second, one channel, full scale 1.

    `span` is in seconds; default: the span of `media`, else the whole recording. `level` brings the root mean square
    to `level` decibels below full scale (as far as peaks allow), for speakers of different loudness.

    Raises:
        DataError: naming the file, for anything missing, empty, damaged, cut off or too long.
    """
    name, span = media.describe(), span or media.span
    sound = _read_plain(media, span, name, limits)
    stored_rate, samples = sound if sound is not None else _read_any(media, span, name, limits)
    if not len(samples):
        raise DataError(f"{name}: a recording of 0 s{_in_span(span)} — replace it or leave the row out")
    if not np.isfinite(samples).all():
        raise DataError(f"{name}: holds samples that are not finite numbers — save it again from its source")
    if stored_rate != rate:
        samples = resample(samples, stored_rate, rate)
    return samples if level is None else _normalise(samples, level)


def audio_rate(media: Media, *, limits: AudioLimits = DEFAULT_LIMITS) -> int:
    """The rate in samples a second that a recording is stored at: it holds no sound above half of that.

    Raises:
        DataError: naming the file, for anything that is no recording.
    """
    with _plain_file(media, limits) as file:
        if file is not None:
            return int(file.samplerate)
    with open_container(media, limits.bytes) as container:
        return int(first_stream(container, "audio", media.describe()).codec_context.sample_rate)


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """(samples,) at `new_rate` instead of `rate`, by FFmpeg's libswresample; as long in seconds as before."""
    av = need("av", "media", "resampling")
    resampler = av.AudioResampler(format="flt", layout="mono", rate=new_rate)
    padded = np.pad(samples, (0, max(0, FILTER * max(1, -(-rate // new_rate)) - len(samples))))
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(padded[None], np.float32), format="flt", layout="mono")
    frame.sample_rate = rate
    parts = [part.to_ndarray()[0] for given in (frame, None) for part in resampler.resample(given)]
    length = max(1, round(len(samples) * new_rate / rate))
    joined = np.concatenate(parts)[:length] if parts else np.zeros(0, np.float32)
    return np.pad(joined, (0, length - len(joined)))


def _read_plain(
    media: Media, span: tuple[float, float] | None, name: str, limits: AudioLimits
) -> tuple[int, np.ndarray] | None:
    """(rate, samples) by libsndfile; None where it does not know the format or the library is missing."""
    with _plain_file(media, limits) as file:
        if file is None:
            return None
        from soundfile import SoundFileError

        _check(name, file.samplerate, file.channels, limits)
        begin, end = _span(span, file.frames / file.samplerate, name, limits)
        try:
            file.seek(round(begin * file.samplerate))
            wanted = max(0, min(round(end * file.samplerate), file.frames) - file.tell())
            mixed = list(_blocks(file, wanted))
        except SoundFileError:
            raise DataError(f"{name}: damaged or cut off — copy it again from its source") from None
        return file.samplerate, np.concatenate(mixed) if mixed else np.zeros(0, np.float32)


def _blocks(file: Any, wanted: int) -> Iterator[np.ndarray]:
    """Float32 blocks (samples,) of the averaged channels: what was decoded, never the rest of a buffer."""
    while wanted > 0 and len(block := file.read(min(BLOCK, wanted), dtype="float32", always_2d=True)):
        yield block.mean(axis=1, dtype=np.float32)
        wanted -= len(block)


@contextmanager
def _plain_file(media: Media, limits: AudioLimits) -> Iterator[Any]:
    """The recording opened by libsndfile; None where it does not know the format or the library is missing."""
    try:
        import soundfile
    except ImportError:
        yield None  # FFmpeg reads all of these too
        return
    with open_whole(media, limits.bytes) as stream:
        try:
            file = soundfile.SoundFile(stream)
        except (soundfile.SoundFileError, TypeError, ValueError):
            yield None
            return
        with closing(file):
            yield file if file.format in PLAIN else None


def _read_any(media: Media, span: tuple[float, float] | None, name: str, limits: AudioLimits) -> tuple[int, np.ndarray]:
    """(rate, samples) by FFmpeg: decoded from the start, since compressed sound has no exact entry points."""
    with open_container(media, limits.bytes) as container:
        stream = first_stream(container, "audio", name)
        rate = stream.codec_context.sample_rate
        _check(name, rate, stream.codec_context.channels, limits)
        stated = float(stream.duration * stream.time_base) if stream.duration else None
        begin, end = _span(span, stated, name, limits)
        first, last = round(begin * rate), round((end if span else limits.seconds) * rate)
        parts, decoded = [], 0  # samples
        for block in _mixed(container, stream):
            parts.append(block[max(0, first - decoded) : max(0, last - decoded)])
            decoded += len(block)
            if decoded > last:
                break
        if span is None and decoded > last:
            raise _too_long(name, decoded / rate, limits)
        if decoded < min(last, 0.5 * (stated or 0.0) * rate):
            raise DataError(f"{name}: cut off after {clock(decoded / rate)} — copy it again from its source")
        return rate, np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _mixed(container: Any, stream: Any) -> Iterator[np.ndarray]:
    """Float32 blocks (samples,) of the averaged channels."""
    to_float = need("av", "media", "a recording").AudioResampler(format="fltp")  # layout and rate stay
    for frame in container.decode(stream):
        for part in to_float.resample(frame):
            yield part.to_ndarray().mean(axis=0, dtype=np.float32)


def _check(name: str, rate: int, channels: int, limits: AudioLimits) -> None:
    if not (1000 <= rate <= limits.rate and 1 <= channels <= limits.channels):
        raise DataError(f"{name}: {channels} channels of {rate:,} samples a second is no recording — save it again")


def _span(
    span: tuple[float, float] | None, length: float | None, name: str, limits: AudioLimits
) -> tuple[float, float]:
    """Where reading begins and ends, in seconds; `length` is None where the file does not state it."""
    begin, end = span or (0.0, length if length is not None else limits.seconds)
    if end - begin > limits.seconds:
        raise _too_long(name, end - begin, limits)
    if span is not None and not (0 <= begin < end and (length is None or begin < length)):
        shown = f" of {clock(length)}" if length is not None else ""
        raise DataError(f"{name}: the span {begin:g} to {end:g} s lies outside the recording{shown} — correct the span")
    return begin, end


def _too_long(name: str, seconds: float, limits: AudioLimits) -> DataError:
    return DataError(
        f"{name}: {clock(seconds)} of sound, over the limit of {clock(limits.seconds)} — name a span, or cut it"
    )


def _in_span(span: tuple[float, float] | None) -> str:
    return "" if span is None else f" in its span {span[0]:g} to {span[1]:g} s"


def _normalise(samples: np.ndarray, level: float) -> np.ndarray:
    """Scale by one factor; the peak stays within full scale, and silence stays silence."""
    power, peak = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))), float(np.abs(samples).max())
    if power == 0:
        return samples
    return (samples * min(10 ** (-abs(level) / 20) / power, 1 / peak)).astype(np.float32)
