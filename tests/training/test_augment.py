"""Changed clips and recordings: a pure function of seed, epoch and sample, in proportion, with nothing else lost."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageDraw

from mllm_tailor.core.conversation import as_conversation
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.media.audio import read_audio
from mllm_tailor.media.crop import moving_box
from mllm_tailor.media.video import encode_video, read_video
from mllm_tailor.models import InputSettings, encode, load_model
from mllm_tailor.models.inputs.speech_units import Codebook
from mllm_tailor.recipe.schema import Units
from mllm_tailor.training.augment import ENDS, SPEED, augment_sample
from mllm_tailor.training.batches import LiveBatches


def drawn(count: int = 12) -> list[Image.Image]:
    """A white dot that walks to the right on black, 120 x 80 pixels."""
    frames = []
    for place in range(count):
        frame = Image.new("RGB", (120, 80))
        ImageDraw.Draw(frame).ellipse((20 + 5 * place, 30, 30 + 5 * place, 40), fill="white")
        frames.append(frame)
    return frames


@pytest.fixture
def clip() -> Media:
    return Media("video", data=encode_video(drawn(), 2.0))


@pytest.fixture
def tone() -> Media:
    stream = io.BytesIO()
    soundfile.write(stream, 0.3 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000), 8000, format="WAV")
    return Media("audio", data=stream.getvalue())


def test_stored_frames_come_back_bit_for_bit_and_last_as_long(clip: Media) -> None:
    found = read_video(clip, 12)
    assert all(np.array_equal(one, other) for one, other in zip(found.frames, drawn(), strict=True))
    assert found.seconds == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("kind", ["clip", "tone"])
def test_changes_depend_on_seed_epoch_and_sample_alone(kind: str, request: pytest.FixtureRequest) -> None:
    media = request.getfixturevalue(kind)
    sample = as_conversation(Sample("a", (media,), answer="x"))
    made = [augment_sample(sample, seed, epoch).media[0].data for seed, epoch in ((1, 2), (1, 2), (1, 3), (2, 2))]
    assert made[0] == made[1] and len({*made, media.data}) == 4


def test_a_changed_clip_has_the_frames_that_are_shown_and_all_are_changed_alike(clip: Media) -> None:
    changed = augment_sample(as_conversation(Sample("a", (clip,))), 0, 0, frames=6).media[0]
    found = read_video(changed, 6).frames
    tops = [moving_box([frame])[1] for frame in found]  # the dot walks level; turned, its height changes evenly
    steps = np.diff([np.nonzero(np.asarray(frame.convert("L")) > 100)[0].mean() for frame in found])
    assert len({frame.size for frame in found}) == 1 and len(tops) == 6
    assert np.ptp(steps) < 1.5


def test_a_changed_recording_is_faster_or_slower(tone: Media) -> None:
    plain = len(read_audio(tone))
    lengths = [
        len(read_audio(augment_sample(as_conversation(Sample("a", (tone,))), 0, epoch).media[0])) for epoch in range(8)
    ]
    least, most = (1 - SPEED) * (1 - 2 * ENDS), (1 + SPEED) * (1 + 2 * ENDS)
    assert len(set(lengths)) > 4 and all(least - 0.01 < length / plain < most + 0.01 for length in lengths)


def test_a_changed_recording_keeps_its_measure(tmp_path: Path) -> None:
    """Loud, short and silent ones: within full scale, little longer or shorter, silence silent."""
    for number, samples in enumerate((np.ones(8000), np.full(160, 0.5), np.zeros(4000))):
        soundfile.write(tmp_path / f"{number}.wav", samples, 16_000, subtype="FLOAT")
        media = Media("audio", tmp_path / f"{number}.wav")
        for epoch in range(6):
            found = read_audio(augment_sample(as_conversation(Sample("a", (media,))), 0, epoch).media[0])
            assert np.abs(found).max() <= 1
            assert 0.64 * len(samples) - 2 <= len(found) <= 1.44 * len(samples) + 2
            assert samples.any() == found.any()


def test_changed_recordings_are_not_remembered(tone: Media) -> None:
    codebook = Codebook(
        np.zeros((2, 39), np.float32), np.zeros(39, np.float32), np.ones(39, np.float32), Units(count=2)
    )
    codebook.units_of(tone)
    assert not codebook.known


def test_the_box_round_a_clip_is_square_and_holds_every_place_of_what_moves() -> None:
    left, top, right, bottom = moving_box(drawn())
    assert left <= 20 and right >= 85 and top <= 30 and bottom >= 40
    assert right - left == pytest.approx(bottom - top, abs=2)
    assert moving_box([Image.new("RGB", (60, 40), "gray")] * 2) == (0, 0, 60, 40)
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    assert moving_box([Image.fromarray(noise)]) == (0, 0, 60, 40)


def test_trimmed_clips_fill_their_tiles(tiny_model_folder: Path, clip: Media) -> None:
    plain, trimmed = (
        load_model(tiny_model_folder, device="cpu", inputs=InputSettings(frames=4, trim=trim)) for trim in (False, True)
    )
    inked = [
        float((encode(Sample("a", (clip,)), model).media["pixel_values"] > 1).float().mean())
        for model in (plain, trimmed)
    ]
    assert inked[1] > 1.5 * inked[0]


def test_what_is_shown_of_a_trimmed_clip_moves_from_epoch_to_epoch(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Trimmed after it was changed, what moves would always touch the same edges."""
    path = tmp_path / "clip.mkv"
    path.write_bytes(encode_video(drawn(), 2.0))
    model = load_model(tiny_model_folder, device="cpu", inputs=InputSettings(frames=4, trim=True))
    feed = LiveBatches(model, [as_conversation(Sample("a", (Media("video", path),), answer="x"))], "answer", 0)
    middles = []
    for epoch in range(6):
        pixels = feed.encode(0, epoch).media["pixel_values"]
        shown = (pixels > 1).any(dim=1).any(dim=0)  # in any frame
        middles.append(float(shown.any(dim=0).nonzero().float().mean()) / pixels.shape[-1])
    assert np.ptp(middles) > 0.05
    held = next(iter(feed.videos.videos.values())).frames[0]
    assert held.width < 120  # it was trimmed before it was kept
