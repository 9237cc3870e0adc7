"""Recordings as discrete speech units: clustered frames of sound, with a token per cluster.

Features every 20 ms, each mapped to the nearest of K centroids, repeated units written once (Lakhotia et
al. 2021, "On Generative Spoken Language Modeling from Raw Audio", arXiv 2102.01192, which takes HuBERT's layer 6 and K
of 50 to 200). Features are HuBERT's or wav2vec 2.0's hidden states from a folder or, with no download, the cepstrum: 13
coefficients of 40 log-mel bands with their first and second slopes, the features of HuBERT's first clustering
(Hsu et al. 2021, arXiv 2106.07447, section IV.B). The cepstrum distinguishes sounds, not meaning.
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
USED = 0.975  # of the Nyquist frequency; the band above it is often filtered out
NOISE_POWER = 3e-5  # added to every band: about 40 dB below speech at -26 dB, so that silence is uniform
VERSION = "2"  # of the cepstrum; a codebook of another version does not fit
MOST_FRAMES = 60_000  # clustered at most; more change the centroids little
ROUNDS = 40

Frames = NDArray[np.float32]  # (frames, width)


def token(number: int) -> str:
    """The token of a unit."""
    return f"<au_{number}>"


@dataclass
class Codebook:
    """Centroids (units, width) of frames standardised by `mean` and `scale`, and the settings of the frames."""

    centroids: Frames
    mean: Frames
    scale: Frames
    spec: Units
    known: dict[Media, list[int]] = field(default_factory=dict, repr=False)  # cached units of recordings

    def units_of(self, media: Media) -> list[int]:
        """The units of a recording, without repetitions.

        Raises:
            DataError: naming the file.
        """
        if media in self.known:
            return self.known[media]
        frames = (self._frames(media) - self.mean) / self.scale
        units = [unit for unit, _ in groupby(nearest(frames, self.centroids).tolist())]
        if media.data is None:  # a cache of in-memory recordings would hold all their bytes
            self.known[media] = units
        return units

    def spoken(self, conversation: Conversation) -> Conversation:
        """The conversation with every recording replaced by its units and a newline."""
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
                    raise ValueError("it belongs to an earlier version of the cepstrum")
                centroids, mean, scale = (stored.get_tensor(name) for name in ("centroids", "mean", "scale"))
                return cls(centroids, mean, scale, spec)
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
        DataError: when there are fewer frames than units.
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
    """Centroids (count, width) by Lloyd's algorithm with k-means++ initialisation (Arthur and Vassilvitskii 2007)."""
    centroids = points[[int(random.integers(len(points)))]]
    distances = _distances(points, centroids)[:, 0]
    while len(centroids) < count:
        total = float(distances.sum(dtype=np.float64))
        probabilities = distances / total if total > 0 else None
        chosen = points[[int(random.choice(len(points), p=None if probabilities is None else _exact(probabilities)))]]
        centroids = np.concatenate([centroids, chosen])
        distances = np.minimum(distances, _distances(points, chosen)[:, 0])
    for _ in range(ROUNDS):
        assignment = nearest(points, centroids)
        sizes = np.bincount(assignment, minlength=count)
        sums = np.zeros_like(centroids, dtype=np.float64)
        np.add.at(sums, assignment, points)
        moved = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centroids).astype(np.float32)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def _exact(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities in float64, whose sum is as near to 1 as numpy requires."""
    wide = probabilities.astype(np.float64)
    return np.asarray(wide / wide.sum(), np.float64)


def nearest(points: Frames, centroids: Frames) -> NDArray[np.int64]:
    """(points,) index of the nearest centroid."""
    return np.asarray(_distances(points, centroids).argmin(axis=1), np.int64)


def _distances(points: Frames, centroids: Frames) -> Frames:
    """(points, centroids) squared distances, never below zero."""
    squares = (points**2).sum(1)[:, None] + (centroids**2).sum(1)[None] - 2 * points @ centroids.T
    return np.asarray(np.maximum(squares, 0))


def extractor(spec: Units) -> Callable[[Media], Frames]:
    """A function from a recording, normalised in loudness, to frames."""
    if spec.features == "cepstrum":
        frames: Callable[[NDArray[np.float32]], Frames] = partial(cepstrum, highest=spec.highest or HIGHEST)
    else:
        frames = _hidden_states(Path(spec.features), spec.layer)
    return lambda media: frames(read_audio(media, SPEECH_RATE, level=spec.level))


def cepstrum(samples: NDArray[np.float32], highest: float = HIGHEST) -> Frames:
    """(frames, 39) of 16 kHz sound: coefficients and two slopes, each of mean 0 and variance 1 in the recording.

    Normalising mean and variance removes much of the effect of microphone and voice (Viikki and Laurila 1998). Bands
    end at `highest` Hz: empty bands above it would make the cosine transform reflect little more than loudness.
    """
    count = max(1, math.ceil((len(samples) - WINDOW) / HOP) + 1)
    padded = np.pad(samples, (0, max(0, WINDOW + (count - 1) * HOP - len(samples))))
    emphasised = np.append(padded[:1], padded[1:] - 0.97 * padded[:-1])
    cut = np.lib.stride_tricks.sliding_window_view(emphasised, WINDOW)[::HOP] * np.hamming(WINDOW)
    power = np.abs(np.fft.rfft(cut, 512)) ** 2
    bands = np.log(power @ mel_filters(512, highest).T + NOISE_POWER)
    bands_index = np.arange(BANDS)
    cosines = np.cos(np.pi / BANDS * (bands_index[None] + 0.5) * np.arange(COEFFICIENTS)[:, None])  # DCT-II
    plain = bands @ cosines.T
    slope = slopes(plain)
    frames = np.concatenate([plain, slope, slopes(slope)], axis=1)
    return np.asarray((frames - frames.mean(0)) / (frames.std(0) + 1e-3), np.float32)


def slopes(frames: NDArray[Any]) -> NDArray[Any]:
    """(frames, width) of the least-squares line through five frames, with the ends repeated (Furui 1986)."""
    padded = np.pad(frames, ((2, 2), (0, 0)), mode="edge")
    return np.asarray((2 * (padded[4:] - padded[:-4]) + (padded[3:-1] - padded[1:-3])) / 10)


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
    """Hidden states of a speech model (HuBERT, wav2vec 2.0, WavLM) after `layer` layers.

    Raises:
        ModelError: naming the folder.
    """
    try:
        prepare = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{folder}: no speech model can be loaded ({reason}) — see model.units.features") from None
    if layer > model.config.num_hidden_layers:
        raise ModelError(f"{folder}: has {model.config.num_hidden_layers} layers — lower model.units.layer ({layer})")
    model.eval()

    @torch.inference_mode()
    def frames(samples: NDArray[np.float32]) -> Frames:
        padded = np.pad(samples, (0, max(0, WINDOW - len(samples))))  # shorter sound has no frame
        inputs = prepare(padded, sampling_rate=SPEECH_RATE, return_tensors="pt")
        states = model(inputs["input_values"], output_hidden_states=True).hidden_states[layer][0]
        return np.asarray(states.numpy())

    return frames


def add_tokens(model: Any, tokenizer: Any, count: int) -> None:
    """Add `count` unit tokens to the tokenizer and rows to the embeddings, identical at every loading.

    A new row is the mean of the old rows plus seeded noise of their standard deviation.
    """
    tokens = [token(number) for number in range(count)]
    if not tokenizer.add_tokens(tokens):
        return  # a saved model that already has them
    old = model.get_input_embeddings().weight.shape[0]
    wanted = max(old, max(tokenizer.convert_tokens_to_ids(tokens)) + 1)
    model.resize_token_embeddings(wanted, mean_resizing=False)
    first = tokenizer.convert_tokens_to_ids(tokens[0])
    noise = torch.Generator().manual_seed(0)
    heads = (model.get_input_embeddings(), model.get_output_embeddings())
    with torch.no_grad():
        for weight in dict.fromkeys(head.weight for head in heads if head is not None):
            rows = weight[:first].float()
            drawn = torch.randn(len(weight) - first, weight.shape[1], generator=noise).to(rows.device)
            weight[first:] = (rows.mean(0) + rows.std(0) * drawn).to(weight.dtype)


def find_codebook(spec: Units, folder: Path) -> Codebook:
    """The codebook of the recipe, else that in the folder of the model.

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
