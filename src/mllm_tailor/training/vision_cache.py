"""What frozen vision parts make of the training pictures, computed once instead of once an epoch.

Samples are taken in fixed groups, each a file of its own: features, ids and labels, sealed by a checksum. A group that
is missing, damaged or made from other pictures, weights or settings is computed again, in the same shape as before, so
that a resumed training computes with the same bits. Samples about the same pictures (questions about one X-ray) lie in
one group, which sees and keeps those pictures once.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.io import fsync_folder, sha256, write_atomic
from mllm_tailor.core.progress import track
from mllm_tailor.core.sample import Media
from mllm_tailor.models import Encoded, LoadedModel, encode
from mllm_tailor.recipe import Recipe
from mllm_tailor.training.batches import Batch, BatchSource, LiveBatches, collate_right
from mllm_tailor.training.distributed import join, rank, world_size
from mllm_tailor.training.precision import computing

GROUP = 8  # different pictures (or sets of them) a file
RAM_SHARE = 0.25  # of the available memory; larger caches are read from disk as needed


def can_cache(model: LoadedModel, samples: Sequence[Conversation], augmented: bool) -> bool:
    """Whether features stay the same over a training and the model takes them in place of pictures."""
    prefixes = tuple(f"{name}." for part in ("vision", "projector") for name in model.family.parts.get(part, ()))
    moves = any(weight.requires_grad and name.startswith(prefixes) for name, weight in model.model.named_parameters())
    takes = "mm_encoder_outputs" in inspect.signature(model.model.forward).parameters
    pictures = all(media.kind in ("image", "video") for sample in samples for media in sample.media)
    return model.family.tiled and takes and pictures and not moves and not augmented


@dataclass(frozen=True)
class Cached:
    """One sample, its pictures already seen."""

    ids: Tensor
    labels: Tensor
    features: Tensor | None  # (tokens, width)


class CachedBatches:
    """Batches from features on disk or in memory."""

    def __init__(
        self, model: LoadedModel, samples: Sequence[Conversation], loss: str, folder: Path, bf16: bool
    ) -> None:
        self.model, self.samples, self.loss = model, samples, loss
        self.bf16 = bf16
        self._identity = _identity(model, loss, bf16)
        self.folder = folder / hashlib.sha256(json.dumps(self._identity).encode()).hexdigest()[:12]
        self.groups = together(samples)
        self.place = {number: place for place, group in enumerate(self.groups) for number in group}
        self.memory: dict[int, Cached] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._complete(range(rank(), len(self.groups), world_size()))
        if world_size() > 1:
            join(model.device).wait_for_everyone()
            self._complete(range(len(self.groups)))  # where processes share no disk
        if (
            sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))
            < RAM_SHARE * psutil.virtual_memory().available
        ):
            self.memory = {number: item for place in range(len(self.groups)) for number, item in self._read(place)}

    def _complete(self, places: range) -> None:
        """Compute the groups of these places that are not on disk yet, or not whole."""
        for place in track(places, "Reading the training pictures once"):
            if not self._whole(place):
                self._compute(place)

    def batch(self, numbers: Sequence[int], epoch: int) -> Batch:
        """Padded ids and labels; features as the output of the vision side."""
        items = [self.memory.get(number) or dict(self._read(self.place[number], number))[number] for number in numbers]
        batch = collate_right([Encoded(item.ids, item.labels) for item in items], self.model)
        features = [item.features for item in items if item.features is not None]
        if features:
            batch["image_features"] = torch.cat(features)[None]  # (1, tokens, width)
        return batch

    def _file(self, place: int) -> Path:
        return self.folder / f"features-{place:06d}.safetensors"

    def _key(self, place: int) -> str:
        told = [self._identity, *(_sample_key(self.samples[number]) for number in self.groups[place])]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def _whole(self, place: int) -> bool:
        file = self._file(place)
        seal = file.with_suffix(".sha256")
        return file.exists() and seal.exists() and seal.read_text() == f"{self._key(place)} {sha256(file)}"

    def _compute(self, place: int) -> None:
        """The vision side's pass over a group's pictures; its file is written before its seal."""
        group = self.groups[place]
        encoded = {number: encode(self.samples[number], self.model, loss=self.loss) for number in group}
        tensors: dict[str, Tensor] = {}
        for number, item in encoded.items():
            tensors[f"{number}.ids"], tensors[f"{number}.labels"] = item.ids, item.labels
        tiles = {self._first(number): encoded[self._first(number)].media.get("pixel_values") for number in group}
        shown = {number: pixels for number, pixels in tiles.items() if pixels is not None and len(pixels)}
        if shown:
            for number, found in zip(shown, self._see(list(shown.values())), strict=True):
                tensors[f"{number}.features"] = found.flatten(0, 1).cpu().contiguous()
        file = self._file(place)
        save_file(tensors, file)
        write_atomic(file.with_suffix(".sha256"), f"{self._key(place)} {sha256(file)}")
        fsync_folder(self.folder)

    def _see(self, pixels: Sequence[Tensor]) -> Sequence[Tensor]:
        """Features of each sample's tiles: a GPU wants them all at once, a CPU is as fast without holding so many."""
        if self.model.device.type == "cpu":
            return [see(self.model, one, self.bf16) for one in pixels]
        return see(self.model, torch.cat(list(pixels)), self.bf16).split([len(one) for one in pixels])

    def _first(self, number: int) -> int:
        """The first sample of its group about the same pictures, under whose number their features lie."""
        media = self.samples[number].media
        return next(other for other in self.groups[self.place[number]] if self.samples[other].media == media)

    def _read(self, place: int, only: int | None = None) -> Iterator[tuple[int, Cached]]:
        """The samples of a group, or one of them; those about the same pictures share one tensor."""
        features: dict[int, Tensor | None] = {}
        with safe_open(self._file(place), "pt") as file:
            names = set(file.keys())
            for number in self.groups[place] if only is None else [only]:
                first = self._first(number)
                if first not in features:
                    name = f"{first}.features"
                    features[first] = file.get_tensor(name) if name in names else None
                ids, labels = (file.get_tensor(f"{number}.{kind}") for kind in ("ids", "labels"))
                yield number, Cached(ids, labels, features[first])


def together(samples: Sequence[Conversation]) -> list[tuple[int, ...]]:
    """Numbers of the samples in groups of GROUP different media (the last may have fewer)."""
    about: dict[tuple[Media, ...] | int, list[int]] = {}
    for number, sample in enumerate(samples):
        about.setdefault(sample.media or number, []).append(number)
    groups: list[tuple[int, ...]] = []
    for numbers in about.values():
        if groups and len({samples[number].media or number for number in groups[-1]}) < GROUP:
            groups[-1] += tuple(numbers)
        else:
            groups.append(tuple(numbers))
    return groups


@torch.no_grad()
def see(model: LoadedModel, pixels: Tensor, bf16: bool) -> Tensor:
    """(tiles, tokens, width): what vision tower and projector make of tiles (tiles, 3, height, width)."""
    with computing(model.device, bf16):
        features: Tensor = model.model.get_image_features(pixel_values=pixels.to(model.device)).pooler_output
    return features


def make_batch_source(
    model: LoadedModel, samples: Sequence[Conversation], recipe: Recipe, cache: Path, bf16: bool
) -> BatchSource:
    """From cached features where they stay the same, otherwise from the pictures themselves."""
    loss, augment = recipe.train.loss, recipe.train.augment
    if can_cache(model, samples, augment):
        return CachedBatches(model, samples, loss, cache, bf16)
    return LiveBatches(model, samples, loss, recipe.seed if augment else None)


def as_inputs(batch: Batch) -> Batch:
    """Cached features in the form the model's `forward` takes them."""
    features = batch.pop("image_features", None)
    if features is not None:
        batch["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=features)}
    return batch


def _identity(model: LoadedModel, loss: str, bf16: bool) -> dict[str, Any]:
    return {
        "model": model.identity,
        "quantize": model.quantize,
        "dtype": str(model.dtype),
        "bf16": bf16,
        "tiles": model.tiles.model_dump(),
        "frames": model.frames,
        "trim": model.trim,
        "system": model.system,
        "loss": loss,
        "torch": torch.__version__,
    }


def _sample_key(sample: Conversation) -> list[Any]:
    messages = [
        [message.role, [part if isinstance(part, str) else _media_key(part) for part in message.content]]
        for message in sample.messages
    ]
    return [messages, sample.answer, sample.system]


def _media_key(media: Media) -> list[Any]:
    data = hashlib.sha256(media.data).hexdigest() if media.data is not None else sha256(media.path)  # type: ignore[arg-type]
    return [data, media.page, media.span]
