"""Features of a frozen vision side, cached in memory and in a folder that training and generation share.

An entry is a safetensors file named by its key and written under another name first. It carries the checksum of its
tensors, so a damaged file is noticed when it is read and computed again. Features are keyed by the pixels and by every
weight they follow from: what training computed for an image serves generation, and vice versa.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mllm_tailor.core.device import upload
from mllm_tailor.core.io import atomic_file, fingerprint
from mllm_tailor.models.encoded import Encoded
from mllm_tailor.models.model import LoadedModel

MEMORY_SHARE = 0.15  # of the available memory
CHECKSUM = "sha256"

Features = dict[str, BaseModelOutputWithPooling]


@dataclass(frozen=True)
class CacheEntry:
    """Tensors on the CPU, and plain text about them."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


class VisionFeatureCache:
    """Entries by key. When memory is full, it keeps its entries for the next epoch or run instead of evicting them."""

    def __init__(self, limit: int | None = None, folder: Path | None = None) -> None:
        """`limit` in bytes; default: MEMORY_SHARE of the available memory. `folder` keeps entries on disk as well."""
        self.folder = folder
        self.limit = int(psutil.virtual_memory().available * MEMORY_SHARE) if limit is None else limit
        self.bytes = 0
        self.hits = 0  # lookups that found an entry
        self._entries: dict[str, CacheEntry] = {}

    def get(self, key: str) -> CacheEntry | None:
        """The entry, from memory or disk."""
        entry = self._entries.get(key)
        if entry is None and (entry := self._load(key)) is not None:
            self._remember(key, entry)
        self.hits += entry is not None
        return entry

    def put(self, key: str, entry: CacheEntry) -> None:
        """Keep an entry on disk, if there is a folder, and in memory, if there is room."""
        self._remember(key, entry)
        if self.folder is not None:
            with atomic_file(self._file(key)) as partial:
                save_file(dict(entry.tensors), partial, {**entry.metadata, CHECKSUM: _checksum(entry.tensors)})

    def _remember(self, key: str, entry: CacheEntry) -> None:
        if key not in self._entries and self.bytes + entry.size <= self.limit:
            self._entries[key] = entry
            self.bytes += entry.size

    def _load(self, key: str) -> CacheEntry | None:
        if self.folder is None or not self._file(key).is_file():
            return None
        try:
            with safe_open(self._file(key), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                metadata = dict(file.metadata() or {})
        except SafetensorError:  # truncated
            return None
        if metadata.pop(CHECKSUM, None) != _checksum(tensors):
            return None
        return CacheEntry(tensors, metadata)

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"


class VisionEncoder:
    """A model's vision side, run on one sample at a time: its output depends on neither batch nor cache."""

    def __init__(
        self, model: LoadedModel, cache: VisionFeatureCache | None = None, *, bf16: bool | None = None
    ) -> None:
        """`bf16`: whether products are computed in bf16; default: as the model was loaded."""
        self.model, self.cache = model, cache
        self.bf16 = model.mixed_precision if bf16 is None else bf16
        self.supported = takes_features(model)
        self.weights = weights_key(model, bf16=self.bf16) if cache is not None and self.supported else ""

    def outputs(self, items: Sequence[Encoded]) -> Features | None:
        """`mm_encoder_outputs` instead of `pixel_values`; None where the model needs the pixels themselves."""
        if not self.supported or any(set(item.media) != {"pixel_values"} for item in items):
            return None
        features = torch.cat([self.features(item.media["pixel_values"]) for item in items])
        return as_outputs(features.to(self.model.device, self.model.dtype))

    def features(self, pixels: Tensor) -> Tensor:
        """(tiles, tokens, width) from (tiles, 3, height, width), in the dtype they were computed in."""
        if self.cache is None:
            return image_features(self.model, pixels, bf16=self.bf16)
        key = self.key(pixels)
        entry = self.cache.get(key)
        if entry is None:
            features = image_features(self.model, pixels, bf16=self.bf16)
            self.cache.put(key, CacheEntry({"features": features.cpu().contiguous()}))
            return features
        return entry.tensors["features"]

    def key(self, pixels: Tensor) -> str:
        """The cache key of the features of these pixels."""
        shape = [list(pixels.shape), str(pixels.dtype)]
        return f"features-{fingerprint(self.weights, shape, tensor_bytes(pixels))}"


def takes_features(model: LoadedModel) -> bool:
    """Whether the model's `forward` takes features instead of pixels; those of other families have other shapes."""
    return model.family.tiled and "mm_encoder_outputs" in inspect.signature(model.model.forward).parameters


def as_outputs(features: Tensor) -> Features:
    """Features as the model's `forward` takes them."""
    return {"image": BaseModelOutputWithPooling(pooler_output=features)}


@torch.no_grad()
def image_features(model: LoadedModel, pixels: Tensor, *, bf16: bool) -> Tensor:
    """(tiles, tokens, width): the output of vision tower and projector for tiles (tiles, 3, height, width)."""
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        features: Tensor = model.model.get_image_features(pixel_values=upload(pixels, model.device)).pooler_output
    return features


def vision_prefixes(model: LoadedModel) -> tuple[str, ...]:
    """Prefixes of the names of all weights on the vision side."""
    return tuple(f"{name}." for part in ("vision", "projector") for name in model.family.parts.get(part, ()))


def weights_key(model: LoadedModel, *, bf16: bool) -> str:
    """A hash of every weight on the vision side, including adapters, and of the dtypes."""
    prefixes = vision_prefixes(model)
    # A PEFT wrapper adds a prefix and infixes; the names still contain that of their part.
    digest = hashlib.sha256(f"{model.dtype} {bf16} {torch.__version__}".encode())
    for name, weight in model.model.named_parameters():
        if any(prefix in name for prefix in prefixes):
            digest.update(tensor_bytes(weight))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, for hashing.

    Not through `Tensor.numpy`, which fixes the size of the storage: FSDP could no longer free a gathered weight.
    """
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return memoryview(np.from_dlpack(flat))  # type: ignore[arg-type]


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensor_bytes(tensors[name]))
    return digest.hexdigest()
