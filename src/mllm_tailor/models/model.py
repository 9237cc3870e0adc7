"""A checkpoint, opened: what every other room holds in its hands."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import ModelError
from mllm_tailor.core.io import sha256
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.media.crop import box_of, clip_box, print_box
from mllm_tailor.media.open import image_size, open_image
from mllm_tailor.media.video import Clip, read_clip
from mllm_tailor.models.encode import Encoded, collate, count_tokens, encode
from mllm_tailor.models.families import Family
from mllm_tailor.models.inputs.dual_encoder import collate_pairs
from mllm_tailor.models.inputs.internvl_processor import state_tiles
from mllm_tailor.models.inputs.speech_units import FILE, Codebook
from mllm_tailor.recipe.schema import Tiles


@dataclass
class LoadedModel:
    """A model with everything needed to use it. `model` may be wrapped (by PEFT) after opening."""

    model: Any  # transformers.PreTrainedModel or peft.PeftModel
    processor: Any
    family: Family
    tiles: Tiles
    system: str | None  # system text of samples that bring none
    device: torch.device
    dtype: torch.dtype
    folder: Path  # where its files lie
    path: str  # how it was asked for
    revision: str | None
    quantize: str | None = None
    frames: int = 8  # a clip is shown as
    codebook: Codebook | None = None  # where recordings are read as words
    trim: bool = False  # blank margins of pictures and clips are cut off before tiling
    mixed: bool = False  # the vision side computes in bf16, as it does in training

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def image_size(self) -> int:
        """Pixels along the side of a tile."""
        return int(self.processor.image_processor.size["height"])

    def picture(self, media: Media) -> Image.Image:
        """A picture as the model is shown it, before it is cut into tiles.

        Raises:
            DataError: naming the file, as `open_image` does.
        """
        image = open_image(media)
        return image.crop(print_box(image)) if self.trim else image

    def picture_size(self, media: Media) -> tuple[int, int]:
        """(width, height) of `picture`; nothing is decoded unless margins are to be found."""
        if not self.trim:
            return image_size(media)
        left, top, right, bottom = box_of(media)
        return right - left, bottom - top

    def clip(self, media: Media, count: int | None = None) -> Clip:
        """A clip's frames as the model is shown them, or `count` of them.

        Raises:
            DataError: naming the file, as `read_clip` does.
        """
        found = read_clip(media, count or self.frames)
        if not self.trim:
            return found
        box = clip_box(found.frames)
        return found._replace(frames=[frame.crop(box) for frame in found.frames])

    @property
    def context(self) -> int:
        """Most tokens a prompt and its answer may have together."""
        config = self.model.config.get_text_config()
        rotary = getattr(config, "rope_parameters", None) or {}
        # Dynamic scaling stretches the angles once the trained length is passed (arXiv 2309.00071).
        stretch = rotary.get("factor", 1.0) if rotary.get("rope_type") == "dynamic" else 1.0
        return int(config.max_position_embeddings * stretch)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a reply.

        Raises:
            ModelError: for a family that compares pictures with texts and writes none.
        """
        if self.family.compares:
            raise ModelError(f"{self.path}: {self.family.title} writes no replies — name a model that does")
        stated = self.model.generation_config.eos_token_id
        ids = {*(stated if isinstance(stated, list) else [stated]), self.tokenizer.eos_token_id}
        return frozenset(token for token in ids if token is not None)

    @property
    def pad_id(self) -> int:
        """The token batches are padded with."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else min(self.stop_ids))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What this checkpoint is, so that an adapter made on it is never used on another: hashes of its files."""
        weights = hashlib.sha256()
        for file in sorted(self.folder.glob("*.safetensors")):
            weights.update(sha256(file).encode())
        return {
            "path": self.path,
            "revision": self.revision,
            "weights_sha256": weights.hexdigest(),
            "config_sha256": sha256(self.folder / "config.json"),
            "transformers": transformers.__version__,
        }

    def save(self, folder: Path) -> None:
        """Write an ordinary checkpoint: weights, tokenizer, processor, template, and the tiles and system text in use.

        Raises:
            ModelError: while an adapter or quantised weights are still in the model, which plain folders cannot hold.
        """
        adapted = getattr(self.model, "peft_config", None)  # PEFT notes its adapters there and takes the note away
        if not isinstance(self.model, PreTrainedModel) or adapted or self.quantize:
            raise ModelError("this model still has an adapter or packed weights — merge it first (`tailor merge`)")
        if self.family.tiled:
            self.processor.keep(self.tiles, self.system)
            state_tiles(self.model.config, self.tiles)
        # An InternVL keeps today's names of its weights: llama.cpp finds no vision tower under the older ones.
        self.model.save_pretrained(folder, save_original_format=not self.family.tiled)
        self.processor.save_pretrained(folder)
        if self.codebook is not None:
            self.codebook.save(folder / FILE)

    def encode(self, item: Conversation | Sample, loss: Literal["answer", "all"] = "answer") -> Encoded:
        """See `encode.encode`."""
        return encode(item, self, loss)

    def count_tokens(self, item: Conversation | Sample) -> int:
        """See `encode.count_tokens`."""
        return count_tokens(item, self)

    def collate(self, items: Sequence[Encoded], side: Literal["right", "left"] = "right") -> dict[str, Tensor]:
        """See `encode.collate`; for a family that compares, see `pairs.collate_pairs`."""
        if self.family.compares:
            return collate_pairs(items, self)
        return collate(items, self.pad_id, side, self.family.token_wise, self.family.per_sample)

    def inputs(self, items: Sequence[Conversation | Sample]) -> dict[str, Tensor]:
        """Prompts of a batch, padded on the left and on the device, ready to generate from. Answers are left out."""
        batch = self.collate([self.encode(item.unlabelled()) for item in items], side="left")
        batch.pop("labels", None)  # families that compare have none
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a reply: up to the first token that ends it."""
        end = next((place for place, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return str(self.tokenizer.decode(ids[:end]))

    @torch.no_grad()
    def generate(
        self, samples: Sequence[Conversation | Sample] | Sample, max_new_tokens: int = 128, batch: int = 8
    ) -> list[str]:
        """Greedy replies, `batch` samples at a time, in the order given; a single sample gives a list of one."""
        samples = [samples] if isinstance(samples, Sample) else samples
        ends, was_training = sorted(self.stop_ids), self.model.training
        self.model.eval()
        replies: list[str] = []
        for start in range(0, len(samples), batch):
            inputs = self.inputs(samples[start : start + batch])
            ids = self.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=self.pad_id,
            )
            replies += [self.decode(row) for row in ids[:, inputs["input_ids"].shape[1] :].tolist()]
        self.model.train(was_training)
        return replies

    @torch.no_grad()
    def image_features(self, samples: Sequence[Conversation | Sample]) -> np.ndarray:
        """(samples, width) float32: the projected features of a sample's pictures, averaged over tiles and places."""
        # Most classes have a method for it; where one has none, its vision tower is asked.
        read = getattr(self.model, "get_image_features", None)
        read = read or self.model.get_submodule(self.family.parts["vision"][0])
        taken = inspect.signature(getattr(read, "forward", read)).parameters
        rows = []
        for sample in samples:
            media = self.encode(sample.unlabelled()).media
            names = {name: name if name in taken else name.removesuffix("_images") for name in media}
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                found = read(**{key: media[name].to(self.device) for name, key in names.items() if key in taken})
            features = found["pooler_output" if "pooler_output" in found else "last_hidden_state"]
            parts = (
                features if isinstance(features, (list, tuple)) else [features]
            )  # (tiles, tokens, width), or one each
            rows.append(torch.cat([part.flatten(0, -2) for part in parts]).float().mean(dim=0).cpu().numpy())
        return np.stack(rows)
