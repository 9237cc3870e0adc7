"""Frames of clips: the right ones at variable rates, upright, by jumps or not, and hostile files refused by name."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.real_data import real_data
from fixtures.videos import HEIGHT, STEADY, WIDTH, av, clip
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_tailor.core.conversation import as_conversation
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.generation import predict
from mllm_tailor.media.video import VideoLimits, film_strip, frame_size, read_frames
from mllm_tailor.models import InputSettings, count_tokens, encode, load_model
from mllm_tailor.models.vision_cache import image_features
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import open_task
from mllm_tailor.training.vision_cache import CachedBatches, can_cache


def media(data: bytes, span: tuple[float, float] | None = None) -> Media:
    return Media("video", data=data, span=span)


def numbers(frames: Sequence[object]) -> list[int]:
    """Which frame of `clip` each is, by its grey."""
    return [round(np.asarray(frame)[HEIGHT // 2 :, WIDTH // 2 :].mean() / 8) for frame in frames]  # type: ignore[call-overload]


KINDS = [("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4"), ("avi", "mjpeg")]


@pytest.mark.parametrize(("kind", "codec"), KINDS)
def test_uniform_frames_are_the_middles_of_equal_segments(kind: str, codec: str) -> None:
    times = [number / 1000 for number in range(20)] if kind == "avi" else STEADY  # AVI knows no gaps
    assert numbers(read_frames(media(clip(times, kind, codec)), 4)) == [2, 7, 12, 17]


def test_variable_rate_goes_by_what_is_on_screen() -> None:
    data = clip([0.0, 0.1, 0.2, 0.3, 4.0, 4.1, 4.2, 4.3])
    assert numbers(read_frames(media(data), 4)) == [3, 3, 3, 3]
    assert numbers(read_frames(media(data), rate=2)) == [2, *[3] * 7, 5]
    assert numbers(read_frames(media(data, span=(4.0, 4.4)), 2)) == [5, 7]


@pytest.mark.slow
@pytest.mark.parametrize("reordered", [False, True])
@given(wanted=st.integers(1, 40), keys_every=st.sampled_from([1, 3, 7, 250]), seed=st.integers(0, 3))
@settings(max_examples=12)
def test_jumping_gives_the_same_frames_as_decoding_everything(
    reordered: bool, wanted: int, keys_every: int, seed: int
) -> None:
    steps = np.random.default_rng(seed).integers(10, 400, 24)
    times = [0.0, *(float(time) / 1000 for time in steps.cumsum())]
    data = media(clip(times, keys_every=keys_every, reordered=reordered))
    with av.open(io.BytesIO(data.data or b"")) as container:
        end = float(container.streams.video[0].duration * container.streams.video[0].time_base)
    middles = [end * (place + 0.5) / wanted for place in range(wanted)]
    expected = [max(place for place, time in enumerate(times) if time <= middle + 1e-6) for middle in middles]
    assert numbers(read_frames(data, wanted)) == expected


def test_a_short_clip_shows_frames_twice_and_a_single_frame_is_a_clip() -> None:
    assert numbers(read_frames(media(clip(STEADY[:2])), 4)) == [0, 0, 1, 1]
    assert numbers(read_frames(media(clip([0.0])), 3)) == [0, 0, 0]


def test_jumps_spare_decoding() -> None:
    data = media(clip([number / 10 for number in range(30)], keys_every=5))
    few = VideoLimits(decoded=16)
    assert numbers(read_frames(data, 2, limits=few)) == [7, 22]
    with pytest.raises(DataError, match="over 16 frames to decode"):
        read_frames(media(clip([number / 10 for number in range(30)])), 2, limits=few)


@pytest.mark.parametrize(("rotation", "corner"), [(90, (-4, 4)), (-90, (4, -4)), (180, (-4, -4)), (0, (4, 4))])
def test_a_turned_phone_is_turned_back(rotation: int, corner: tuple[int, int]) -> None:
    frame = np.asarray(read_frames(media(clip([0.0, 0.1], rotation=rotation)), 1)[0])
    assert frame.shape[:2] == ((WIDTH, HEIGHT) if rotation in (90, -90) else (HEIGHT, WIDTH))
    assert frame[corner].min() > 200, "the white corner is elsewhere"


def test_limits_name_the_file_and_the_mend(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    path.write_bytes(clip([0.0, 4000.0]))
    with pytest.raises(DataError, match=r"long\.mp4: 2:13:20 h of video, over the limit of 1:00:00 h — name a span"):
        read_frames(Media("video", path), 2)
    assert numbers(read_frames(Media("video", path, span=(10.0, 20.0)), 2)) == [0, 0]
    with pytest.raises(DataError, match="pixels, over the limit"):
        read_frames(Media("video", path), limits=VideoLimits(pixels=100))
    with pytest.raises(DataError, match="bytes, over the limit of 100 — cut it"):
        read_frames(Media("video", path), limits=VideoLimits(bytes=100))
    with pytest.raises(DataError, match="frames wanted"):
        read_frames(Media("video", path), rate=30, span=(0.0, 3000.0))
    with pytest.raises(DataError, match="outside its"):
        read_frames(Media("video", path), 2, span=(8500.0, 9000.0))


def sound() -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format="wav") as container:
        audio = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(audio.encode(frame))
    return stream.getvalue()


def playlist() -> bytes:
    return b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"


REFUSED = {
    "empty": lambda: b"",
    "text": lambda: b"not a clip at all\n" * 50,
    "zeros": lambda: bytes(5000),
    "cut header": lambda: clip(STEADY)[:600],
    "half an mp4": lambda: clip(STEADY)[: len(clip(STEADY)) // 2],
    "sound only": sound,
    "playlist": playlist,
    "list of files": lambda: b"ffconcat version 1.0\nfile /etc/hostname\n",
    "no frames": lambda: clip([]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(REFUSED[name]())
    with pytest.raises(DataError, match=r"bad\.mp4: .+ — ") as caught:
        read_frames(Media("video", path), 2)
    assert "0x" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.mp4: no such file"):
        read_frames(Media("video", tmp_path / "gone.mp4"))


@pytest.mark.slow
@given(st.data())
@settings(max_examples=40)
def test_damage_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(clip(STEADY[:6]))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert len(read_frames(media(bytes(whole)), 3, limits=VideoLimits(pixels=10_000, decoded=200))) == 3
    except DataError as error:
        assert str(error).startswith("inline video")


def test_real_clips_in_several_containers() -> None:
    folder = real_data("video_samples")
    for path in (folder / "videollava_sample_demo_3.mp4", folder / "decord_flipping_a_pancake.mkv"):
        frames = read_frames(Media("video", path, span=(1.0, 3.0)), 3)
        assert [frame.size for frame in frames] == [frame_size(Media("video", path))] * 3
        assert not np.array_equal(np.asarray(frames[0]), np.asarray(frames[2]))


def test_a_gesture_is_seen_classified_and_counted(tiny_model_folder: Path) -> None:
    folder = real_data("gesture17")
    model, task = (
        load_model(tiny_model_folder, inputs=InputSettings(frames=4)),
        open_task("classify", ["wave", "tap", "swipe up"]),
    )
    clips = [Media("video", path) for path in sorted((folder / "videos").glob("*/*.mp4"))[:200:199]]
    samples = [Sample(str(index), (clip,), answer="wave") for index, clip in enumerate(clips)]
    for sample in map(task.phrase, samples):
        encoded = encode(sample, model)
        assert count_tokens(sample, model) == encoded.length
        assert encoded.media["pixel_values"].shape == (4, 3, 56, 56)
        shown = model.tokenizer.decode(encoded.ids).replace(model.processor.image_token, "")
        assert "user\nFrame1: <img></img>\nFrame2: <img></img>\n" in shown and "Frame5" not in shown
    settings = Predict(max_new_tokens=40)
    predictions = predict(model, task, samples, settings, constrained=True)
    assert all(prediction.fields["class"] in ("wave", "tap", "swipe up") for prediction in predictions)


def test_cached_features_of_clips_equal_live_ones(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model_folder, inputs=InputSettings(frames=3))
    samples = [Sample(str(keys), (media(clip(STEADY, keys_every=keys)),), "?", "wave") for keys in (5, 9)]
    model.model.requires_grad_(False)
    assert can_cache(model, samples, augment=False)
    conversations = [as_conversation(sample) for sample in samples]
    cached = CachedBatches(model, conversations, "answer", tmp_path, bf16=False).batch([0, 1], 0)
    pixels = torch.cat([encode(sample, model).media["pixel_values"] for sample in samples])
    assert torch.equal(cached["image_features"][0], image_features(model, pixels, bf16=False).flatten(0, 1))


def test_a_film_strip_shows_frames_side_by_side() -> None:
    strip = film_strip(read_frames(media(clip(STEADY)), 4))
    assert strip.size == (4 * WIDTH, HEIGHT)
    assert numbers([strip.crop((WIDTH, 0, 2 * WIDTH, HEIGHT))]) == [7]


def test_a_damaged_clip_is_an_error_row_and_stops_no_other(tiny_model_folder: Path) -> None:
    model, task = load_model(tiny_model_folder, inputs=InputSettings(frames=2)), open_task("classify", ["wave", "tap"])
    whole, broken = media(clip(STEADY)), media(b"no clip")
    samples = [Sample("good", (whole,)), Sample("bad", (broken,))]
    good, bad = predict(model, task, samples, Predict(max_new_tokens=40))
    assert good.fields and not bad.fields and "no video in a known format" in str(bad.problem)
