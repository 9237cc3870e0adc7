"""Augmentation of training media, a pure function of (seed, epoch, sample): a resumed run gets the same media.

Images are rotated, scaled and changed in brightness and contrast. Videos are also shifted, alike in all frames, and
trimmed at both ends. Recordings are resampled to another speed, which changes a voice as another vocal tract length
would (Ko et al. 2015, "Audio Augmentation for Speech Recognition"; Jaitly and Hinton 2013), trimmed or padded at both
ends, filtered like another microphone, and get noise.
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
from mllm_tailor.core.regions import FULL, Box, Move, has_boxes, move_boxes
from mllm_tailor.core.sample import Media
from mllm_tailor.media.audio import SPEECH_RATE, read_audio, resample
from mllm_tailor.media.open import image_size, open_image
from mllm_tailor.media.video import VideoFrames, encode_video, read_video

ROTATION = 2.0  # degrees, either way
SCALE = 0.05  # share of the size
LIGHT = 0.2  # share of brightness and contrast
VIDEO_ROTATION = 15.0  # degrees; unlike print, a scene need not stay level
VIDEO_SCALE = 0.2  # of width and height, independently
VIDEO_SHIFT = 0.1  # of width and height, either way
VIDEO_TRIM = 0.15  # of a video's length, at most, at either end
OVERSAMPLING = 3  # frames decoded per frame shown, to choose from
SPEED = 0.2  # of a recording, either way
ENDS = 0.1  # of a recording's length by which either end is trimmed or padded
FILTER_SPREAD = 0.25  # standard deviation of the outer taps of the microphone filter
FILTER_TAPS = 5
NOISE = (10.0, 40.0)  # decibels below the recording


def augment_sample(
    sample: Conversation, seed: int, epoch: int, frames: int = 8, cache: VideoCache | None = None
) -> Conversation:
    """The conversation with augmented images, videos (of `frames` frames) and recordings.

    `cache` keeps decoded videos for later epochs.
    """
    cache = cache or VideoCache()
    media = tuple(
        _augment_media(item, _generator(seed, epoch, f"{sample.id}:{index}"), frames, cache)
        for index, item in enumerate(sample.media)
    )
    if not has_boxes(sample):
        return sample.with_media(media)
    moves = [
        _turned(_generator(seed, epoch, f"{sample.id}:{index}"), image_size(item)) if item.kind == "image" else None
        for index, item in enumerate(sample.media)
    ]
    return move_boxes(sample, moves).with_media(media)


def _turned(generator: np.random.Generator, size: tuple[int, int]) -> Move:
    """How boxes move with an image of `size` that `augment_image` changes; its scale and light move none."""
    turn = math.radians(ROTATION * generator.uniform(-1, 1, size=4)[0])
    width, height = size
    cosine, sine = math.cos(turn), math.sin(turn)
    wider, higher = width * cosine + height * abs(sine), width * abs(sine) + height * cosine

    def move(region: Box) -> Box:
        corners = [(x / FULL - 0.5, y / FULL - 0.5) for x in region[::2] for y in region[1::2]]
        corners = [(x * width, y * height) for x, y in corners]
        across = [(x * cosine + y * sine) / wider * FULL + FULL / 2 for x, y in corners]
        down = [(y * cosine - x * sine) / higher * FULL + FULL / 2 for x, y in corners]
        return min(across), min(down), max(across), max(down)

    return move


def augment_image(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """An image (RGB); corners that the rotation uncovers take the colour of the image's corner."""
    angle, scale, brightness, contrast = generator.uniform(-1, 1, size=4)
    image = image.rotate(ROTATION * angle, Image.Resampling.BICUBIC, expand=True, fillcolor=image.getpixel((0, 0)))
    size = tuple(max(2, round(side * (1 + SCALE * scale))) for side in image.size)
    image = image.resize(size, Image.Resampling.BICUBIC)
    image = ImageEnhance.Brightness(image).enhance(1 + LIGHT * brightness)
    return ImageEnhance.Contrast(image).enhance(1 + LIGHT * contrast)


def augment_frames(frames: Sequence[Image.Image], generator: np.random.Generator) -> list[Image.Image]:
    """All frames of a video (RGB, one size), changed alike; width and height are scaled independently.

    The size stays; uncovered areas take the colour of the frame's corner.
    """
    angle, wide, high, right, down, brightness = generator.uniform(-1, 1, size=6)
    width, height = frames[0].size
    turn = math.radians(VIDEO_ROTATION * angle)
    x_scale, y_scale = 1 + VIDEO_SCALE * wide, 1 + VIDEO_SCALE * high
    # Pillow's transform maps positions of the new image to the old one: (x, y) -> (a x + b y + c, d x + e y + f).
    a, b = math.cos(turn) * x_scale, -math.sin(turn) * y_scale
    d, e = math.sin(turn) * x_scale, math.cos(turn) * y_scale
    c = width / 2 * (1 - a) - height / 2 * b + VIDEO_SHIFT * right * width
    f = height / 2 * (1 - e) - width / 2 * d + VIDEO_SHIFT * down * height
    augmented = []
    for frame in frames:
        corner = frame.getpixel((0, 0))
        moved = frame.transform(
            frame.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR, fillcolor=corner
        )
        augmented.append(ImageEnhance.Brightness(moved).enhance(1 + LIGHT * brightness))
    return augmented


def _generator(seed: int, epoch: int, name: str) -> np.random.Generator:
    entropy = int.from_bytes(hashlib.sha256(f"{seed}:{epoch}:{name}".encode()).digest()[:16])
    return np.random.Generator(np.random.PCG64(entropy))


def _augment_media(media: Media, generator: np.random.Generator, frames: int, cache: VideoCache) -> Media:
    if media.kind == "video":
        return _augment_video(media, generator, frames, cache)
    if media.kind == "audio":
        return _augment_audio(media, generator)
    stream = io.BytesIO()
    augment_image(open_image(media), generator).save(stream, "PNG", compress_level=1)
    return Media(media.kind, data=stream.getvalue())


def _augment_video(media: Media, generator: np.random.Generator, frames: int, cache: VideoCache) -> Media:
    """A video of exactly the frames to be shown, encoded losslessly."""
    video = cache.read(media, OVERSAMPLING * frames)
    early, late = generator.uniform(0, VIDEO_TRIM, size=2)
    positions = early + (1 - early - late) * (np.arange(frames) + generator.uniform()) / frames
    shown = [video.frames[int(position * len(video.frames))] for position in positions]
    seconds = (1 - early - late) * video.seconds
    return Media("video", data=encode_video(augment_frames(shown, generator), seconds))


@dataclass
class VideoCache:
    """Decoded videos, with more frames than are shown and no larger than `side` pixels, as far as memory allows.

    Decoding a video in every epoch would cost more than a small model's step.
    """

    decode: Callable[[Media, int], VideoFrames] = read_video  # into a number of frames; trimmed, where the model trims
    side: int = 4096
    limit: int = 1 << 30  # bytes; further videos are decoded whenever they are needed
    videos: dict[Media, VideoFrames] = field(default_factory=dict, repr=False)
    bytes: int = 0

    def read(self, media: Media, count: int) -> VideoFrames:
        """The video in `count` frames."""
        if media in self.videos:
            return self.videos[media]
        video = self.decode(media, count)
        width, height = video.frames[0].size
        share = min(1.0, self.side / max(width, height))
        size = (max(2, 2 * round(width * share / 2)), max(2, 2 * round(height * share / 2)))
        video = video._replace(frames=[frame.resize(size, Image.Resampling.BICUBIC) for frame in video.frames])
        cost = 3 * size[0] * size[1] * count
        if media.data is None and self.bytes + cost <= self.limit:
            self.videos[media], self.bytes = video, self.bytes + cost
        return video


def _augment_audio(media: Media, generator: np.random.Generator) -> Media:
    """The recording as 16-bit samples, augmented as the module describes."""
    samples = read_audio(media, SPEECH_RATE)
    samples = resample(samples, round(SPEECH_RATE * (1 + SPEED * generator.uniform(-1, 1))), SPEECH_RATE)
    power = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    noise = power * 10 ** (-generator.uniform(*NOISE) / 20)
    samples = samples + generator.normal(0, noise, len(samples))
    samples = _shift_ends(samples, *generator.uniform(-ENDS, ENDS, 2))
    filter_ = generator.normal(0, FILTER_SPREAD, FILTER_TAPS)
    filter_[FILTER_TAPS // 2] = 1
    samples = np.convolve(samples, filter_)[FILTER_TAPS // 2 :][: len(samples)]
    samples /= max(1.0, float(np.abs(samples).max()))
    stream = io.BytesIO()
    soundfile = need("soundfile", "media", "augmented recordings")
    soundfile.write(stream, samples, SPEECH_RATE, format="WAV", subtype="PCM_16")
    return Media("audio", data=stream.getvalue())


def _shift_ends(samples: np.ndarray, begin: float, end: float) -> np.ndarray:
    """(samples,) padded by these shares of its length, or trimmed where they are negative."""
    first, last = (round(share * len(samples)) for share in (begin, end))
    cut = samples[max(0, -first) : len(samples) - max(0, -last)]
    return np.pad(cut, (max(0, first), max(0, last)))
