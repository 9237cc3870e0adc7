"""Granite Speech's features without torchaudio, whose published builds need CUDA libraries even to be imported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, GraniteSpeechFeatureExtractor, SequenceFeatureExtractor
from transformers.audio_utils import mel_filter_bank

MIN_POWER = 1e-10  # clamped before the logarithm
RANGE = 8.0  # dynamic range in decades below the maximum


class SpeechFeatures(GraniteSpeechFeatureExtractor):
    """The same features from torch's Fourier transform: `input_features` (recordings, frames / 2, 2 x 80)."""

    def __init__(
        self,
        sampling_rate: int = 16000,
        n_fft: int = 512,
        win_length: int = 400,
        hop_length: int = 160,
        n_mels: int = 80,
        projector_window_size: int = 15,
        projector_downsample_rate: int = 5,
        padding_value: float = 0.0,
        **options: Any,
    ) -> None:
        """The settings of the class it replaces, whose constructor needs torchaudio."""
        stated = options.pop("melspec_kwargs", {})
        features = options.pop("feature_size", None) or stated.get("n_mels", n_mels)
        SequenceFeatureExtractor.__init__(self, features, sampling_rate, padding_value, **options)
        self.melspec_kwargs = {
            "sample_rate": sampling_rate,
            "n_fft": n_fft,
            "win_length": win_length,
            "hop_length": hop_length,
            "n_mels": features,
        } | stated
        self.projector_window_size = projector_window_size
        self.projector_downsample_rate = projector_downsample_rate

    def __call__(self, audios: Any, device: str | None = None) -> BatchFeature:
        """Features of mono recordings (arrays), the mask of those that the projector keeps, and their numbers."""
        sounds, lengths = self._get_audios_and_audio_lengths(audios)
        sizes = torch.tensor(self._get_num_audio_features(lengths))
        mask = torch.arange(int(sizes.max()))[None] < sizes[:, None]
        features = {"input_features": self.log_mel(sounds), "audio_embed_sizes": sizes.tolist()}
        return BatchFeature(features | {"input_features_mask": mask})

    def log_mel(self, sounds: Tensor) -> Tensor:
        """(recordings, frames / 2, 2 x mels), about -1 to 2: power on the mel scale (HTK) in decades, by frame pairs.

        Whisper's scaling (arXiv 2212.04356), with pairs of 10 ms frames concatenated.
        """
        settings = self.melspec_kwargs
        window = torch.hann_window(settings["win_length"])
        spectrum = torch.stft(
            sounds.float(),
            settings["n_fft"],
            settings["hop_length"],
            settings["win_length"],
            window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        power = spectrum.abs().square().transpose(1, 2)  # (recordings, frames, frequencies)
        decades = (power @ self._filters()).clamp(min=MIN_POWER).log10()
        decades = torch.maximum(decades, decades.amax(dim=(1, 2), keepdim=True) - RANGE) / 4 + 1
        return decades[:, : decades.shape[1] // 2 * 2].reshape(len(decades), -1, 2 * decades.shape[2])

    def _filters(self) -> Tensor:
        """(frequencies, mels) triangles, evenly spaced on the mel scale."""
        settings = self.melspec_kwargs
        bank = mel_filter_bank(
            num_frequency_bins=settings["n_fft"] // 2 + 1,
            num_mel_filters=settings["n_mels"],
            min_frequency=0.0,
            max_frequency=settings["sample_rate"] / 2,
            sampling_rate=settings["sample_rate"],
            mel_scale="htk",
        )
        return torch.from_numpy(bank).float()

    def to_dict(self) -> dict[str, Any]:
        """With the name of the class it replaces, so that a saved folder loads with that class."""
        return super().to_dict() | {"feature_extractor_type": "GraniteSpeechFeatureExtractor"}
