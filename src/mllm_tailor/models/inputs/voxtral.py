"""Voxtral's recordings and prompts (arXiv 2507.13264) without mistral-common.

The processor of transformers leaves prompts to that package, which encodes no answers for training. The vocabulary file
(`tekken.json`) is read by transformers, and the prompt is a chat template (`family_templates.VOXTRAL`).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin, WhisperFeatureExtractor
from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer

AUDIO = "[AUDIO]"
CHUNK = 480_000  # samples: recordings are padded with silence to multiples of 30 s
FRAMES = 3000  # of 10 ms, per chunk
TOKENS = 375  # per chunk, 12.5 per second
VOCABULARY = "tekken.json"


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder with `tekken.json` or with the files that transformers writes."""
    tokenizer: PreTrainedTokenizerFast
    if (folder / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    else:
        tokenizer = convert_tekken_tokenizer(str(folder / VOCABULARY))
    tokenizer.vocabulary_file = folder / VOCABULARY
    return tokenizer


class VoxtralProcessor(ProcessorMixin):
    """Feature extractor (Whisper's) and tokenizer, with the name and files of the class it replaces."""

    def __init__(
        self, feature_extractor: WhisperFeatureExtractor, tokenizer: PreTrainedTokenizerFast, **options: Any
    ) -> None:
        super().__init__(feature_extractor, tokenizer, **options)  # type: ignore[no-untyped-call]
        self.audio_token = AUDIO
        self.audio_token_id = tokenizer.convert_tokens_to_ids(AUDIO)

    def __call__(
        self, text: Sequence[str], audio: Sequence[np.ndarray] = (), *, add_special_tokens: bool = True, **_: Any
    ) -> BatchFeature:
        """Ids, mask, and `input_features` (chunks of all recordings, mels, 3000) of mono recordings at 16 kHz."""
        chunks = [self._chunks(sound) for sound in audio]
        parts = "".join(text).split(AUDIO)
        if len(text) != 1 or len(parts) != len(chunks) + 1:
            raise ValueError(f"{len(parts) - 1} placeholders for {len(chunks)} recordings in {len(text)} texts")
        written = parts[0] + "".join(
            AUDIO * (TOKENS * len(chunk)) + part for chunk, part in zip(chunks, parts[1:], strict=True)
        )
        inputs = self.tokenizer([written], add_special_tokens=add_special_tokens, return_tensors="pt")
        return BatchFeature(dict(inputs) | ({"input_features": torch.cat(chunks)} if chunks else {}))

    def _chunks(self, sound: np.ndarray) -> torch.Tensor:
        """(chunks, mels, 3000) log-mel features of a recording."""
        extractor = self.feature_extractor
        features = extractor(
            sound,
            sampling_rate=extractor.sampling_rate,
            truncation=False,
            padding=True,
            pad_to_multiple_of=CHUNK,
            return_tensors="pt",
        )
        chunks: torch.Tensor = (
            features["input_features"].reshape(extractor.feature_size, -1, FRAMES).transpose(0, 1).contiguous()
        )
        return chunks

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> Any:  # type: ignore[override]
        """Write the vocabulary file too, which other programs (vLLM) read."""
        written = super().save_pretrained(save_directory, **options)
        source, target = getattr(self.tokenizer, "vocabulary_file", None), Path(save_directory) / VOCABULARY
        if source is not None and source.exists() and not target.exists():
            shutil.copyfile(source, target)
        return written
