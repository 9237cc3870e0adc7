"""Recordings: any rate, width and number of channels becomes one channel at the rate wanted; the rest is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.real_data import real_data
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media
from mllm_tailor.media.audio import AudioLimits, read_audio, resample

soundfile = pytest.importorskip("soundfile")
av = pytest.importorskip("av")


FORMATS = {"aac": "fltp", "pcm_s16le": "s16", "pcm_f32le": "flt"}  # how encoders take samples


def tone(rate: int, seconds: float = 0.5, pitch: float = 440.0, height: float = 0.5) -> np.ndarray:
    return (height * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def wav(samples: np.ndarray, rate: int, subtype: str = "PCM_16", kind: str = "WAV") -> Media:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, subtype=subtype, format=kind)
    return Media("audio", data=stream.getvalue())


def coded(samples: np.ndarray, rate: int, kind: str, codec: str) -> Media:
    """A container libsndfile does not read."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=kind) as container:
        audio = container.add_stream(codec, rate=rate, layout="mono")
        audio.format = FORMATS[codec]
        resampler = av.AudioResampler(format=FORMATS[codec], layout="mono", rate=rate, frame_size=1024)
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = rate
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(audio.encode(part))
    return Media("audio", data=stream.getvalue())


def apart(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference away from the ends, where filters have no neighbours."""
    assert found.dtype == np.float32 and abs(len(found) - len(wanted)) <= 1
    length = min(len(found), len(wanted)) - 200
    return float(np.abs(found[200:length] - wanted[200:length]).max())


@pytest.mark.parametrize(
    ("rate", "subtype", "kind", "tolerance"),
    [
        (16_000, "PCM_16", "WAV", 1e-4),
        (16_000, "PCM_U8", "WAV", 1e-2),  # 8 bits: steps of 1/128
        (16_000, "FLOAT", "WAV", 1e-6),
        (16_000, "ULAW", "WAV", 3e-2),
        (8_000, "PCM_16", "WAV", 1e-3),
        (44_100, "PCM_24", "FLAC", 1e-3),
        (96_000, "PCM_24", "WAV", 1e-3),
    ],
)
def test_every_width_and_rate_is_the_same_tone(rate: int, subtype: str, kind: str, tolerance: float) -> None:
    assert apart(read_audio(wav(tone(rate), rate, subtype, kind)), tone(16_000)) < tolerance


@given(
    found=st.sampled_from([8_000, 11_025, 22_050, 44_100, 48_000, 96_000]),
    wanted=st.sampled_from([8_000, 16_000, 24_000]),
)
@settings(max_examples=18)
def test_resampling_keeps_length_and_shape(found: int, wanted: int) -> None:
    assert apart(resample(tone(found), found, wanted), tone(wanted)) < 1e-3


def test_resampling_takes_away_what_the_new_rate_cannot_hold() -> None:
    assert np.abs(resample(tone(48_000, pitch=15_000), 48_000, 16_000)[200:-200]).max() < 1e-3


@pytest.mark.parametrize("found", [1000, 8000, 22_050, 48_000, 192_000])
@pytest.mark.parametrize("count", [1, 3, 20, 40, 100, 1000])
def test_the_shortest_sound_is_not_lost(found: int, count: int) -> None:
    changed = resample(np.ones(count, np.float32), found, 16_000)
    assert len(changed) == max(1, round(count * 16_000 / found))
    assert np.abs(changed).max() > min(0.5, 0.2 * count * 16_000 / found)


def test_channels_are_averaged() -> None:
    stereo = np.stack([tone(16_000), -tone(16_000) + 0.25], axis=1)
    assert apart(read_audio(wav(stereo, 16_000, "FLOAT")), np.full(8000, 0.125, np.float32)) < 1e-6


@pytest.mark.parametrize(("kind", "codec"), [("ipod", "aac"), ("matroska", "pcm_s16le"), ("adts", "aac")])
def test_other_containers_are_read_by_ffmpeg(kind: str, codec: str) -> None:
    found = read_audio(coded(tone(16_000), 16_000, kind, codec))
    assert abs(len(found) - 8000) <= 2048  # AAC works in frames of 1024
    assert np.abs(found[2000:6000]).max() == pytest.approx(0.5, abs=0.05)


def test_spans_are_cut_exactly() -> None:
    ramp = np.linspace(-1, 1, 16_000, dtype=np.float32)
    for media in (wav(ramp, 16_000, "FLOAT"), coded(ramp, 16_000, "matroska", "pcm_f32le")):
        assert np.allclose(read_audio(media, span=(0.25, 0.5)), ramp[4000:8000])
        assert np.allclose(read_audio(Media("audio", data=media.data, span=(0.75, 9.0))), ramp[12_000:])
        with pytest.raises(DataError, match=r"lies outside the recording|of 0 s in its span"):
            read_audio(media, span=(3.0, 4.0))


def test_loudness_is_left_alone_unless_asked_for() -> None:
    quiet = wav(tone(16_000, height=0.01), 16_000, "FLOAT")
    assert np.abs(read_audio(quiet)).max() == pytest.approx(0.01, abs=1e-5)
    louder = read_audio(quiet, level=20)
    assert 20 * np.log10(np.sqrt(np.mean(louder**2))) == pytest.approx(-20, abs=0.01)
    assert np.abs(read_audio(quiet, level=0)).max() == pytest.approx(1.0, abs=1e-5), "peaks stay within full scale"
    assert not read_audio(wav(np.zeros(100, np.float32), 16_000), level=20).any(), "silence stays silence"


def not_numbers() -> bytes:
    samples = tone(16_000)
    samples[100] = np.nan
    return wav(samples, 16_000, "FLOAT").data or b""


REFUSED = {
    "empty": (lambda: b"", "is empty"),
    "no samples": (lambda: wav(np.zeros(0, np.float32), 16_000).data, "of 0 s"),
    "text": (lambda: b"words, not sounds\n" * 40, "no recording in a known format"),
    "head alone": (lambda: (wav(tone(16_000), 16_000).data or b"")[:30], " — "),
    "not numbers": (not_numbers, "not finite numbers"),
    "a rate of 10": (lambda: wav(np.zeros(50, np.float32), 10).data, "is no recording"),
    "40 channels": (lambda: wav(np.zeros((50, 40), np.float32), 8000).data, "is no recording"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    make, words = REFUSED[name]
    (tmp_path / "bad.wav").write_bytes(make())
    with pytest.raises(DataError, match=rf"bad\.wav.*{words}"):
        read_audio(Media("audio", tmp_path / "bad.wav"))


def test_three_hours_are_refused_and_a_span_of_them_is_not() -> None:
    long = wav(np.zeros(3 * 3600 * 1000, np.float32), 1000, "PCM_U8")
    with pytest.raises(DataError, match=r"3:00:00 h of sound, over the limit of 0:30:00 h — name a span"):
        read_audio(long)
    assert len(read_audio(long, span=(7200.0, 7201.0))) == 16_000
    with pytest.raises(DataError, match=r"over the limit of 0\.25 s"):
        read_audio(coded(tone(16_000), 16_000, "matroska", "pcm_s16le"), limits=AudioLimits(seconds=0.25))


def test_a_clip_without_sound_says_so() -> None:
    folder = real_data("video_samples")
    with pytest.raises(DataError, match="no sound in it"):
        read_audio(Media("audio", folder / "mmaction2_demo.mp4"))
    assert len(read_audio(Media("audio", folder / "decord_flipping_a_pancake.mkv"))) > 16_000


@given(st.data())
@settings(max_examples=40)
def test_damage_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(wav(tone(8000, 0.05), 8000).data or b"")
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert len(read_audio(Media("audio", data=bytes(whole))))
    except DataError as error:
        assert str(error).startswith("inline audio")


def test_real_digits_keep_their_length() -> None:
    folder = real_data("fsdd")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()[::300]]
    for row in rows:
        samples = read_audio(Media("audio", folder / row["audio"]))
        assert len(samples) == pytest.approx(16_000 * row["duration"], abs=2)
