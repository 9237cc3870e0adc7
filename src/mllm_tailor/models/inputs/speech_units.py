"""Recordings as words of a language model: frames of sound, clustered, each cluster a token of its own.

Features every 20 ms, the number of the nearest of K centroids for each, runs of one number written once (Lakhotia et
al. 2021, "On Generative Spoken Language Modeling from Raw Audio", arXiv 2102.01192, which takes HuBERT's layer 6 and K
of 50 to 200). Features are HuBERT's or wav2vec 2.0's hidden states from a folder or, with no download, the cepstrum: 13
coefficients of 40 log-mel bands with their first and second slopes, on which HuBERT's own first targets were
clustered (Hsu et al. 2021, arXiv 2106.07447, section IV.B). The cepstrum tells vowels and noises apart, not meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import AutoFeatureExtractor, AutoModel
from transformers.audio_utils import mel_filter_bank

from mllm_tailor.core.conversation import Conversation, Message
from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.progress import track
from mllm_tailor.core.sample import Media
from mllm_tailor.media.audio import SPEECH_RATE, audio_rate, read_audio
from mllm_tailor.recipe.schema import Units

FILE = "units.safetensors"  # in a run and beside the weights of a saved model
WINDOW, HOP = 400, 320  # samples: 25 ms, 20 ms, as HuBERT's convolutions see and step
BANDS, COEFFICIENTS = 40, 13
LOWEST, HIGHEST = 20.0, 7600.0  # Hz
USED = 0.975  # of the frequencies a recording can hold; where it was filtered, the last of them are empty
HUSH = 3e-5  # power of a band, added to all: about 40 dB under speech at -26 dB, so that silence has no shape
VERSION = "2"  # of the cepstrum: a codebook fits no other
MOST_FRAMES = 60_000  # clustered; more change the centroids little
ROUNDS = 40

Frames = NDArray[np.float32]  # (frames, width)


def token(number: int) -> str:
    """The word that stands for a unit."""
    return f"<au_{number}>"


@dataclass
class Codebook:
    """Centroids (units, width) of frames standardised by `mean` and `scale`, and what made the frames."""

    centroids: Frames
    mean: Frames
    scale: Frames
    spec: Units
    known: dict[Media, list[int]] = field(default_factory=dict, repr=False)  # units of recordings read before

    def units_of(self, media: Media) -> list[int]:
        """The recording's units, no two neighbours alike.

        Raises:
            DataError: naming the file.
        """
        if media in self.known:
            return self.known[media]
        frames = (self._frames(media) - self.mean) / self.scale
        found = [unit for unit, _ in groupby(nearest(frames, self.centroids).tolist())]
        if media.data is None:  # a memory of changed recordings would hold all their bytes
            self.known[media] = found
        return found

    def spoken(self, conversation: Conversation) -> Conversation:
        """The conversation with every recording written as its units and a newline, in its place."""
        return replace(conversation, messages=tuple(map(self._spoken, conversation.messages)))

    def _spoken(self, message: Message) -> Message:
        parts = [
            part if isinstance(part, str) or part.kind != "audio" else "".join(map(token, self.units_of(part))) + "\n"
            for part in message.content
        ]
        return replace(message, content=tuple(parts))

    def save(self, file: Path) -> None:
        """Write centroids, statistics and settings."""
        stated = self.spec.model_dump_json(exclude={"codebook"})
        tensors = {"centroids": self.centroids, "mean": self.mean, "scale": self.scale}
        save_file(tensors, file, metadata={"units": stated, "version": VERSION})

    @classmethod
    def load(cls, file: Path) -> Codebook:
        """The inverse of `save`.

        Raises:
            ModelError: naming the file.
        """
        try:
            with safe_open(file, "numpy") as stored:
                spec = Units.model_validate_json(stored.metadata()["units"])
                if spec.features == "cepstrum" and stored.metadata().get("version") != VERSION:
                    raise ValueError("it is of an earlier version's cepstrum")
                return cls(*(stored.get_tensor(name) for name in ("centroids", "mean", "scale")), spec)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{file}: no readable codebook of audio units ({error}) — run the recipe again") from None

    @property
    def _frames(self) -> Callable[[Media], Frames]:
        if not hasattr(self, "_extract"):
            self._extract = extractor(self.spec)
        return self._extract


def fit_codebook(recordings: Sequence[Media], spec: Units, seed: int) -> Codebook:
    """Cluster the frames of training recordings, once.

    Raises:
        DataError: when they hold fewer frames than units are asked for.
    """
    if spec.features == "cepstrum" and spec.highest is None and recordings:
        rate = min(map(audio_rate, recordings))
        spec = spec.model_copy(update={"highest": min(HIGHEST, USED * rate / 2)})
    extract = extractor(spec)
    frames = np.concatenate(
        [extract(media) for media in track(recordings, "Reading recordings")] or [np.zeros((0, 1), np.float32)]
    )
    if len(frames) < spec.count:
        raise DataError(f"{len(frames)} frames of sound for {spec.count} units — lower model.units.count")
    random = np.random.default_rng(seed)
    if len(frames) > MOST_FRAMES:
        frames = frames[np.sort(random.choice(len(frames), MOST_FRAMES, replace=False))]
    mean, scale = frames.mean(axis=0), np.maximum(frames.std(axis=0), 1e-6)
    return Codebook(kmeans((frames - mean) / scale, spec.count, random), mean, scale, spec)


def kmeans(points: Frames, count: int, random: np.random.Generator) -> Frames:
    """Centroids (count, width) by Lloyd's iterations from a k-means++ start (Arthur and Vassilvitskii 2007)."""
    centroids = points[[int(random.integers(len(points)))]]
    apart = _distances(points, centroids)[:, 0]
    while len(centroids) < count:
        total = float(apart.sum(dtype=np.float64))
        chances = apart / total if total > 0 else None
        chosen = points[[int(random.choice(len(points), p=None if chances is None else _exact(chances)))]]
        centroids = np.concatenate([centroids, chosen])
        apart = np.minimum(apart, _distances(points, chosen)[:, 0])
    for _ in range(ROUNDS):
        owner = nearest(points, centroids)
        sizes = np.bincount(owner, minlength=count)
        sums = np.zeros_like(centroids, dtype=np.float64)
        np.add.at(sums, owner, points)
        moved = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centroids).astype(np.float32)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def _exact(chances: NDArray[Any]) -> NDArray[np.float64]:
    """Chances whose sum is 1 to the last bit numpy asks for."""
    wide = chances.astype(np.float64)
    return wide / wide.sum()


def nearest(points: Frames, centroids: Frames) -> NDArray[np.int64]:
    """(points,) the place of the nearest centroid."""
    return _distances(points, centroids).argmin(axis=1)


def _distances(points: Frames, centroids: Frames) -> Frames:
    """(points, centroids) squared distances, never below zero."""
    squares = (points**2).sum(1)[:, None] + (centroids**2).sum(1)[None] - 2 * points @ centroids.T
    return np.maximum(squares, 0)


def extractor(spec: Units) -> Callable[[Media], Frames]:
    """What turns a recording, brought to one loudness, into frames."""
    if spec.features == "cepstrum":
        frames: Callable[[NDArray[np.float32]], Frames] = partial(cepstrum, highest=spec.highest or HIGHEST)
    else:
        frames = _hidden_states(Path(spec.features), spec.layer)
    return lambda media: frames(read_audio(media, SPEECH_RATE, level=spec.level))


def cepstrum(samples: NDArray[np.float32], highest: float = HIGHEST) -> Frames:
    """(frames, 39) of 16 kHz sound: coefficients and two slopes, each of mean 0 and variance 1 in the recording.

    Taking mean and variance out removes much of the microphone and of the voice (Viikki and Laurila 1998). Bands end at
    `highest` Hz: above what a recording holds they would all be alike, and the cosines over them tell little more than
    loudness.
    """
    count = max(1, math.ceil((len(samples) - WINDOW) / HOP) + 1)
    padded = np.pad(samples, (0, max(0, WINDOW + (count - 1) * HOP - len(samples))))
    emphasised = np.append(padded[:1], padded[1:] - 0.97 * padded[:-1])
    cut = np.lib.stride_tricks.sliding_window_view(emphasised, WINDOW)[::HOP] * np.hamming(WINDOW)
    power = np.abs(np.fft.rfft(cut, 512)) ** 2
    bands = np.log(power @ mel_filters(512, highest).T + HUSH)
    places = np.arange(BANDS)
    cosines = np.cos(np.pi / BANDS * (places[None] + 0.5) * np.arange(COEFFICIENTS)[:, None])  # DCT-II
    plain = bands @ cosines.T
    slope = slopes(plain)
    frames = np.concatenate([plain, slope, slopes(slope)], axis=1)
    return ((frames - frames.mean(0)) / (frames.std(0) + 1e-3)).astype(np.float32)


def slopes(frames: NDArray[Any]) -> NDArray[Any]:
    """(frames, width) of the line of least squares through five frames, those at the ends repeated (Furui 1986)."""
    padded = np.pad(frames, ((2, 2), (0, 0)), mode="edge")
    return (2 * (padded[4:] - padded[:-4]) + (padded[3:-1] - padded[1:-3])) / 10


@cache
def mel_filters(size: int, highest: float) -> NDArray[np.float64]:
    """(bands, size / 2 + 1) triangles, evenly spaced in mel (HTK's scale) from LOWEST to `highest` Hz."""
    bank = mel_filter_bank(
        num_frequency_bins=size // 2 + 1,
        num_mel_filters=BANDS,
        min_frequency=LOWEST,
        max_frequency=highest,
        sampling_rate=SPEECH_RATE,
        mel_scale="htk",
    )
    return np.asarray(bank.T, np.float64)


def _hidden_states(folder: Path, layer: int) -> Callable[[NDArray[np.float32]], Frames]:
    """Hidden states of a speech model (HuBERT, wav2vec 2.0, WavLM) behind `layer` of its layers.

    Raises:
        ModelError: naming the folder.
    """
    try:
        prepare = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{folder}: no speech model opens here ({reason}) — see model.units.features") from None
    if layer > model.config.num_hidden_layers:
        raise ModelError(f"{folder}: has {model.config.num_hidden_layers} layers — lower model.units.layer ({layer})")
    model.eval()

    @torch.inference_mode()
    def frames(samples: NDArray[np.float32]) -> Frames:
        padded = np.pad(samples, (0, max(0, WINDOW - len(samples))))  # shorter sound has no frame at all
        inputs = prepare(padded, sampling_rate=SPEECH_RATE, return_tensors="pt")
        return model(inputs["input_values"], output_hidden_states=True).hidden_states[layer][0].numpy()

    return frames


def add_tokens(model: Any, tokenizer: Any, count: int) -> None:
    """Make room for `count` units: words of the tokenizer and rows of the embedding, the same at every opening.

    A new row is the mean of the old ones with noise of their size, seeded: units begin neither alike nor foreign.
    """
    words = [token(number) for number in range(count)]
    if not tokenizer.add_tokens(words):
        return  # a saved model that has them
    old = model.get_input_embeddings().weight.shape[0]
    wanted = max(old, max(tokenizer.convert_tokens_to_ids(words)) + 1)
    model.resize_token_embeddings(wanted, mean_resizing=False)
    first = tokenizer.convert_tokens_to_ids(words[0])
    noise = torch.Generator().manual_seed(0)
    heads = (model.get_input_embeddings(), model.get_output_embeddings())
    with torch.no_grad():
        for weight in dict.fromkeys(head.weight for head in heads if head is not None):
            rows = weight[:first].float()
            drawn = torch.randn(len(weight) - first, weight.shape[1], generator=noise).to(rows.device)
            weight[first:] = (rows.mean(0) + rows.std(0) * drawn).to(weight.dtype)


def find_codebook(spec: Units, folder: Path) -> Codebook:
    """The codebook a recipe names, else the one in the model's folder.

    Raises:
        ModelError: when there is none, since units are fitted on training data by `tailor run`.
    """
    file = Path(spec.codebook) if spec.codebook else folder / FILE
    if not file.is_file():
        raise ModelError(f"{file}: no codebook of audio units — `tailor run` fits one on the training recordings")
    return Codebook.load(file)


def recordings_of(conversations: Sequence[Conversation]) -> list[Media]:
    """Every recording once, in order."""
    return list(dict.fromkeys(media for item in conversations for media in item.media if media.kind == "audio"))
