"""Training batches from cached vision features: a frozen vision side runs once per image instead of once per epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.io import fingerprint, sha256
from mllm_tailor.core.lazy_sequence import LazySequence
from mllm_tailor.core.progress import track
from mllm_tailor.core.sample import Media
from mllm_tailor.models import Encoded, LoadedModel, encode
from mllm_tailor.models.vision_cache import (
    CacheEntry,
    VisionEncoder,
    VisionFeatureCache,
    as_outputs,
    takes_features,
    vision_prefixes,
)
from mllm_tailor.training.batches import Batch, BatchSource, LiveBatches, LossTokens, collate_right
from mllm_tailor.training.config import TrainingConfig
from mllm_tailor.training.distributed import barrier, rank, world_size

RAM_SHARE = 0.25  # of the available memory; what does not fit is read from disk whenever it is needed


def can_cache(model: LoadedModel, samples: Sequence[Conversation], *, augment: bool) -> bool:
    """Whether features stay the same during a training, and the model takes them in place of images."""
    prefixes = vision_prefixes(model)
    trained = any(weight.requires_grad and name.startswith(prefixes) for name, weight in model.model.named_parameters())
    visual = all(media.kind in ("image", "video") for sample in samples for media in sample.media)
    return takes_features(model) and visual and not trained and not augment


class CachedBatches:
    """Batches from features in memory or on disk.

    The first pass encodes every sample and keeps its ids and labels beside the key of its features, so that a resumed
    training decodes no image. Samples about the same images share their features.
    """

    def __init__(
        self, model: LoadedModel, samples: Sequence[Conversation], loss: LossTokens, folder: Path, *, bf16: bool
    ) -> None:
        self.model, self.samples, self.loss = model, samples, loss
        self.cache = VisionFeatureCache(int(RAM_SHARE * psutil.virtual_memory().available), folder)
        self.vision = VisionEncoder(model, self.cache, bf16=bf16)
        self.keys = _sample_keys(samples, _identity(model, loss) | {"weights": self.vision.weights})
        self._complete(range(rank(), len(samples), world_size()))
        if world_size() > 1:
            barrier()
            self._complete(range(len(samples)))  # where processes share no disk

    def batch(self, indices: Sequence[int], epoch: int) -> Batch:
        """Padded ids and labels; features as the output of the vision side."""
        entries = [self._entry(index) for index in indices]
        items = [Encoded(entry.tensors["ids"].long(), entry.tensors["labels"].long()) for entry in entries]
        batch = collate_right(items, self.model)
        features = [self._features(index, entry) for index, entry in zip(indices, entries, strict=True)]
        shown = [part.flatten(0, 1) for part in features if part is not None]
        if shown:
            batch["image_features"] = torch.cat(shown)[None]  # (1, tokens, width)
        return batch

    def _complete(self, indices: range) -> None:
        """Encode the samples that are not in the cache yet, or not whole."""
        for index in track(indices, "Computing vision features"):
            entry = self.cache.get(self.keys[index])
            if entry is None or (entry.metadata["features"] and self.cache.get(entry.metadata["features"]) is None):
                self._compute(index)

    def _compute(self, index: int) -> CacheEntry:
        encoded = encode(self.samples[index], self.model, loss=self.loss)
        pixels = encoded.media.get("pixel_values")
        key = ""
        if pixels is not None and len(pixels):
            self.vision.features(pixels)
            key = self.vision.key(pixels)
        entry = CacheEntry({"ids": encoded.ids.int(), "labels": encoded.labels.int()}, {"features": key})
        self.cache.put(self.keys[index], entry)
        return entry

    def _entry(self, index: int) -> CacheEntry:
        return self.cache.get(self.keys[index]) or self._compute(index)

    def _features(self, index: int, entry: CacheEntry) -> torch.Tensor | None:
        """(tiles, tokens, width) of the sample's images; None where it has none."""
        key = entry.metadata["features"]
        if not key:
            return None
        found = self.cache.get(key)
        if found is None:  # removed or damaged since
            self._compute(index)
            found = self.cache.get(key)
            assert found is not None
        return found.tensors["features"]


def make_batch_source(
    model: LoadedModel, samples: Sequence[Conversation], config: TrainingConfig, folder: Path
) -> BatchSource:
    """From cached features where they stay the same, otherwise from the images themselves, as of streamed samples."""
    train = config.train
    if not isinstance(samples, LazySequence) and can_cache(model, samples, augment=train.augment):
        return CachedBatches(model, samples, train.loss, folder, bf16=config.uses_bf16(model.device))
    return LiveBatches(model, samples, train.loss, config.seed if train.augment else None)


def as_inputs(batch: Batch) -> Batch:
    """The batch with cached features in the form the model's `forward` takes them."""
    features = batch.pop("image_features", None)
    if features is not None:
        batch["mm_encoder_outputs"] = as_outputs(features)
    return batch


def _identity(model: LoadedModel, loss: str) -> dict[str, Any]:
    """What the ids, labels and pixels of a sample follow from, beside the sample."""
    return {
        "model": model.identity,
        "tile_size": model.tile_size,
        "tiles": model.tiles.model_dump(),
        "frames": model.frames,
        "trim": model.trim,
        "reflow": model.reflow,
        "system": model.system,
        "loss": loss,
    }


def _sample_keys(samples: Sequence[Conversation], identity: dict[str, Any]) -> list[str]:
    """A key per sample; a file that several samples name is hashed once."""
    media = {media: _media_key(media) for media in {item for sample in samples for item in sample.media}}

    def key(sample: Conversation) -> str:
        messages = [
            [message.role, [part if isinstance(part, str) else media[part] for part in message.content]]
            for message in sample.messages
        ]
        return f"sample-{fingerprint(identity, messages, sample.answer, sample.system, *sample.further)}"

    return [key(sample) for sample in samples]


def _media_key(media: Media) -> list[Any]:
    if media.data is not None:
        content = fingerprint(media.data)
    else:
        assert media.path is not None
        content = sha256(media.path)
    return [content, media.page, media.span, [sha256(view) for view in media.views]]
