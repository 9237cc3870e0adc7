"""What the vision side makes of a sample's pictures, kept where the same pictures are read again.

One run reads its held-out pictures four times (base and tuned, constrained and free) and its dev pictures every epoch;
as long as training leaves the vision side alone, one pass of the tower serves them all. Where several runs see the same
pictures, a folder holds the features for all of them.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mllm_tailor.models import Encoded, LoadedModel

Features = dict[str, BaseModelOutputWithPooling]
MEMORY_SHARE = 0.15  # of the available memory


class VisionFeatureCache:
    """Features by the pixels and weights they come from. When full it keeps what it has, for the next pass to find."""

    def __init__(self, limit: int | None = None, folder: Path | None = None) -> None:
        """`limit` in bytes; default: MEMORY_SHARE of what is available now. `folder` holds what other runs found."""
        self.folder = folder
        self.limit = int(psutil.virtual_memory().available * MEMORY_SHARE) if limit is None else limit
        self.bytes = 0
        self.found = 0  # how often features did not have to be computed
        self._kept: dict[str, Tensor] = {}

    def get(self, key: str) -> Tensor | None:
        """Features (tiles, tokens, width) on the CPU, if they are there."""
        kept = self._kept.get(key)
        if kept is None and self.folder is not None and self._file(key).is_file():
            kept = load_file(self._file(key))["features"]
        self.found += kept is not None
        return kept

    def put(self, key: str, features: Tensor) -> None:
        """Keep features if there is room."""
        size = features.numel() * features.element_size()
        if self.bytes + size <= self.limit:
            self._kept[key] = features.cpu()
            self.bytes += size
        if self.folder is not None:
            part = self._file(key).with_suffix(".part")
            save_file({"features": features.cpu().contiguous()}, part)
            part.rename(self._file(key))

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"seen-{key}.safetensors"


class Vision:
    """A model's vision side, run over one sample at a time: its output never depends on the batch or the memory."""

    def __init__(self, model: LoadedModel, memory: VisionFeatureCache | None) -> None:
        self.model, self.memory = model, memory
        takes = "mm_encoder_outputs" in inspect.signature(model.model.forward).parameters
        self._apart = takes and model.family.tiled  # other families' features come in shapes of their own
        self._weights = weights_key(model) if memory is not None and self._apart else ""

    def outputs(self, items: Sequence[Encoded]) -> Features | None:
        """Stands in for `pixel_values` as `mm_encoder_outputs`; None where the model wants the pixels themselves."""
        if not self._apart or any(set(item.media) != {"pixel_values"} for item in items):
            return None
        seen = torch.cat([self._see(item.media["pixel_values"]) for item in items])
        return {"image": BaseModelOutputWithPooling(pooler_output=seen)}

    def _see(self, pixels: Tensor) -> Tensor:
        """(tiles, tokens, width) from (tiles, 3, height, width)."""
        if self.memory is None:
            return self._look(pixels)
        told = hashlib.sha256(f"{self._weights} {tuple(pixels.shape)} {pixels.dtype}".encode())
        told.update(_bytes(pixels))
        kept = self.memory.get(told.hexdigest())
        if kept is None:
            kept = self._look(pixels)
            self.memory.put(told.hexdigest(), kept)
        return kept.to(self.model.device)

    def _look(self, pixels: Tensor) -> Tensor:
        device = self.model.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.model.mixed_precision):
            features: Tensor = self.model.model.get_image_features(pixel_values=pixels.to(device)).pooler_output
        return features.to(self.model.dtype)


def weights_key(model: LoadedModel) -> str:
    """A hash of every weight on the vision side, an adapter's included, and of the number format."""
    prefixes = tuple(f"{name}." for part in ("vision", "projector") for name in model.family.parts.get(part, ()))
    # A PEFT wrapper puts words of its own before and between; the weights under a part still follow its name.
    told = hashlib.sha256(f"{model.dtype} {model.mixed_precision}".encode())
    for name, weight in model.model.named_parameters():
        if any(prefix in name for prefix in prefixes):
            told.update(_bytes(weight))
    return told.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
