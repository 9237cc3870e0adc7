"""Small changes of training media, a pure function of (seed, epoch, sample): a resumed run sees the same ones.

Pictures are turned, scaled and lit a little differently; clips moved besides, the same in all their frames, and begun
and ended at other times; recordings played slower or faster, which moves a voice as another speaker's length of throat
would (Ko et al. 2015, "Audio Augmentation for Speech Recognition"; Jaitly and Hinton 2013), begun and ended elsewhere,
through another microphone and with noise.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageEnhance

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.optional import need
from mllm_tailor.core.sample import Media
from mllm_tailor.media.audio import SPEECH_RATE, read_audio, resample
from mllm_tailor.media.open import open_image
from mllm_tailor.media.video import VideoFrames, encode_video, read_video

TURN = 2.0  # degrees, either way
SCALE = 0.05  # share of the size
LIGHT = 0.2  # share of brightness and contrast
CLIP_TURN = 15.0  # degrees; nothing in a clip need lie as straight as print
CLIP_SCALE = 0.2  # of width and height, each for itself
CLIP_MOVE = 0.1  # of width and height, either way
CLIP_SPAN = 0.15  # of a clip's length that either end may be cut off by
FINER = 3  # frames decoded for each one shown, to choose from
SPEED = 0.2  # of a recording, either way
ENDS = 0.1  # of a recording's length that either end is cut or padded by
COLOUR = 0.25  # spread of the taps beside the one in the middle of a filter of TAPS: another microphone
TAPS = 5
NOISE = (10.0, 40.0)  # decibels below the recording


def augment_sample(
    sample: Conversation, seed: int, epoch: int, frames: int = 8, memory: ClipMemory | None = None
) -> Conversation:
    """The conversation with each picture, clip (of `frames` frames) and recording changed a little.

    `memory` spares clips their decoding in later epochs.
    """
    memory = memory or ClipMemory()
    media = tuple(
        _changed(item, _generator(seed, epoch, f"{sample.id}:{place}"), frames, memory)
        for place, item in enumerate(sample.media)
    )
    return sample.with_media(media)


def augment_image(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """One picture (RGB); corners laid bare by the turn take the colour of the picture's own corner."""
    angle, scale, brightness, contrast = generator.uniform(-1, 1, size=4)
    image = image.rotate(TURN * angle, Image.Resampling.BICUBIC, expand=True, fillcolor=image.getpixel((0, 0)))
    size = tuple(max(2, round(side * (1 + SCALE * scale))) for side in image.size)
    image = image.resize(size, Image.Resampling.BICUBIC)
    image = ImageEnhance.Brightness(image).enhance(1 + LIGHT * brightness)
    return ImageEnhance.Contrast(image).enhance(1 + LIGHT * contrast)


def augment_frames(frames: Sequence[Image.Image], generator: np.random.Generator) -> list[Image.Image]:
    """All frames of a clip (RGB, one size), changed alike; width and height apart, so that shapes vary too.

    The size stays; what is laid bare takes the colour of a frame's corner.
    """
    angle, wide, high, right, down, brightness = generator.uniform(-1, 1, size=6)
    width, height = frames[0].size
    turn = math.radians(CLIP_TURN * angle)
    x_scale, y_scale = 1 + CLIP_SCALE * wide, 1 + CLIP_SCALE * high
    # Pillow asks where a place of the new picture comes from: (x, y) -> (a x + b y + c, d x + e y + f).
    a, b = math.cos(turn) * x_scale, -math.sin(turn) * y_scale
    d, e = math.sin(turn) * x_scale, math.cos(turn) * y_scale
    c = width / 2 * (1 - a) - height / 2 * b + CLIP_MOVE * right * width
    f = height / 2 * (1 - e) - width / 2 * d + CLIP_MOVE * down * height
    changed = []
    for frame in frames:
        corner = frame.getpixel((0, 0))
        moved = frame.transform(
            frame.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR, fillcolor=corner
        )
        changed.append(ImageEnhance.Brightness(moved).enhance(1 + LIGHT * brightness))
    return changed


def _generator(seed: int, epoch: int, name: str) -> np.random.Generator:
    entropy = int.from_bytes(hashlib.sha256(f"{seed}:{epoch}:{name}".encode()).digest()[:16])
    return np.random.Generator(np.random.PCG64(entropy))


def _changed(media: Media, generator: np.random.Generator, frames: int, memory: ClipMemory) -> Media:
    if media.kind == "video":
        return _changed_clip(media, generator, frames, memory)
    if media.kind == "audio":
        return _changed_recording(media, generator)
    stream = io.BytesIO()
    augment_image(open_image(media), generator).save(stream, "PNG", compress_level=1)
    return Media(media.kind, data=stream.getvalue())


def _changed_clip(media: Media, generator: np.random.Generator, frames: int, memory: ClipMemory) -> Media:
    """A clip of exactly the frames to be shown, stored without loss so that nothing else about them changes."""
    known = memory.clip(media, FINER * frames)
    early, late = generator.uniform(0, CLIP_SPAN, size=2)
    places = early + (1 - early - late) * (np.arange(frames) + generator.uniform()) / frames
    shown = [known.frames[int(place * len(known.frames))] for place in places]
    seconds = (1 - early - late) * known.seconds
    return Media("video", data=encode_video(augment_frames(shown, generator), seconds))


@dataclass
class ClipMemory:
    """Clips as read once, in more frames than are shown and no larger than `side` pixels, as far as memory goes.

    Decoding a film anew for every epoch would cost more than a small model's step.
    """

    read: Callable[[Media, int], VideoFrames] = read_video  # in so many frames; trimmed, where the model trims
    side: int = 4096
    most: int = 1 << 30  # bytes; later clips are decoded whenever their turn comes
    known: dict[Media, VideoFrames] = field(default_factory=dict, repr=False)
    held: int = 0  # bytes

    def clip(self, media: Media, count: int) -> VideoFrames:
        """The clip in `count` frames."""
        if media in self.known:
            return self.known[media]
        found = self.read(media, count)
        width, height = found.frames[0].size
        share = min(1.0, self.side / max(width, height))
        size = (max(2, 2 * round(width * share / 2)), max(2, 2 * round(height * share / 2)))
        found = found._replace(frames=[frame.resize(size, Image.Resampling.BICUBIC) for frame in found.frames])
        cost = 3 * size[0] * size[1] * count
        if media.data is None and self.held + cost <= self.most:
            self.known[media], self.held = found, self.held + cost
        return found


def _changed_recording(media: Media, generator: np.random.Generator) -> Media:
    """The recording in 16-bit samples, changed as the module says."""
    samples = read_audio(media, SPEECH_RATE)
    samples = resample(samples, round(SPEECH_RATE * (1 + SPEED * generator.uniform(-1, 1))), SPEECH_RATE)
    power = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    hiss = power * 10 ** (-generator.uniform(*NOISE) / 20)
    samples = samples + generator.normal(0, hiss, len(samples))
    samples = _moved_ends(samples, *generator.uniform(-ENDS, ENDS, 2))
    filter_ = generator.normal(0, COLOUR, TAPS)
    filter_[TAPS // 2] = 1
    samples = np.convolve(samples, filter_)[TAPS // 2 :][: len(samples)]
    samples /= max(1.0, float(np.abs(samples).max()))
    stream = io.BytesIO()
    soundfile = need("soundfile", "media", "changed recordings")
    soundfile.write(stream, samples, SPEECH_RATE, format="WAV", subtype="PCM_16")
    return Media("audio", data=stream.getvalue())


def _moved_ends(samples: np.ndarray, begin: float, end: float) -> np.ndarray:
    """(samples,) padded by these shares of its length, or cut where they are below zero."""
    first, last = (round(share * len(samples)) for share in (begin, end))
    cut = samples[max(0, -first) : len(samples) - max(0, -last)]
    return np.pad(cut, (max(0, first), max(0, last)))
