"""A loaded checkpoint: model, processor, family and the settings it is used with."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from PIL import Image

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import ModelError
from mllm_tailor.core.io import sha256
from mllm_tailor.core.model import AppliedMethod
from mllm_tailor.core.regions import Cropped
from mllm_tailor.core.sample import Media
from mllm_tailor.media.crop import box_of, moving_box, print_box
from mllm_tailor.media.framing import framed, framed_size
from mllm_tailor.media.open import image_size, open_image
from mllm_tailor.media.reflow import Reflowed, TileSpec, count_reflowed_tiles, reflow_media
from mllm_tailor.media.video import VideoFrames, read_video
from mllm_tailor.models.checkpoint import processor_files, weight_files
from mllm_tailor.models.families import Family
from mllm_tailor.recipe.schema import Tiles


class Codebook(Protocol):
    """Turns recordings into speech-unit tokens; see `inputs.speech_units`."""

    def spoken(self, conversation: Conversation) -> Conversation:
        """The conversation with its recordings written as tokens."""
        ...

    def save(self, file: Path) -> None:
        """Write the codebook."""
        ...


@dataclass
class LoadedModel:
    """A model with everything needed to use it. `model` may be wrapped (by PEFT) after loading."""

    model: Any  # transformers.PreTrainedModel or peft.PeftModel
    processor: Any
    family: Family
    tiles: Tiles
    system: str | None  # system text of samples that have none
    device: torch.device
    dtype: torch.dtype
    folder: Path  # of its files
    path: str  # the name it was requested by
    revision: str | None
    quantize: str | None = None
    frames: int = 8  # per video
    codebook: Codebook | None = None  # of models that read recordings as tokens
    trim: bool = False  # crop blank margins of images and videos before tiling
    reflow: bool = False  # set the printed lines of images one after the other
    applied: AppliedMethod | None = None  # the tuning method applied to the model
    mixed_precision: bool = False  # the vision tower runs under bf16 autocast, as it does in training

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def tile_size(self) -> int:
        """Pixels along the side of a tile."""
        return int(self.processor.image_processor.size["height"])

    def open_image(self, media: Media, tiles: Tiles | None = None) -> Image.Image:
        """An image as the model reads it, before it is cut into `tiles` (default: the model's).

        Raises:
            DataError: naming the file, as `media.open.open_image` does.
        """
        if page := self._reflowed(media, tiles):
            return page.image()
        image = open_image(media)
        return framed(image.crop(print_box(image)) if self.trim else image, media.framing)

    def image_size(self, media: Media, tiles: Tiles | None = None) -> tuple[int, int]:
        """(width, height) of `open_image`; nothing is decoded unless margins are cropped or lines are reflowed."""
        if count := self.reflowed_tiles(media, tiles):
            return self.tile_size, count * self.tile_size
        if not self.trim:
            return framed_size(image_size(media), media.framing)
        left, top, right, bottom = box_of(media)
        return framed_size((right - left, bottom - top), media.framing)

    def reflowed_tiles(self, media: Media, tiles: Tiles | None = None) -> int:
        """How many tiles the printed lines of an image fill, set one after the other; 0 where it stays as it is."""
        if not self.reflow or media.kind != "image":
            return 0
        return count_reflowed_tiles(media, self._tile_spec(tiles))

    def _reflowed(self, media: Media, tiles: Tiles | None) -> Reflowed | None:
        if not self.reflowed_tiles(media, tiles):  # known of a file without reading it again
            return None
        return reflow_media(media, self._tile_spec(tiles))

    def _tile_spec(self, tiles: Tiles | None) -> TileSpec:
        tiles = tiles or self.tiles
        return TileSpec(math.isqrt(self.processor.image_seq_length), self.tile_size, tiles.min, tiles.max)

    def view(self, media: Media, tiles: Tiles | None = None) -> Cropped | Reflowed | None:
        """What the model reads of an image, where that is not the whole of it as it is stored."""
        if media.kind != "image":
            return None
        if page := self._reflowed(media, tiles):
            return page
        return Cropped(box_of(media), image_size(media)) if self.trim else None

    def open_video(self, media: Media, count: int | None = None) -> VideoFrames:
        """The frames of a video as the model reads them, or `count` of them.

        Raises:
            DataError: naming the file, as `media.video.read_video` does.
        """
        video = read_video(media, count or self.frames)
        if not self.trim:
            return video
        box = moving_box(video.frames)
        return video._replace(frames=[frame.crop(box) for frame in video.frames])

    @property
    def context(self) -> int:
        """The maximum number of tokens of a prompt with its answer."""
        config = self.model.config.get_text_config()
        rotary = getattr(config, "rope_parameters", None) or {}
        # Dynamic scaling adapts the angles beyond the trained length (arXiv 2309.00071).
        stretch = rotary.get("factor", 1.0) if rotary.get("rope_type") == "dynamic" else 1.0
        return int(config.max_position_embeddings * stretch)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a reply.

        Raises:
            ModelError: for a dual encoder, which compares images with texts and generates none.
        """
        if self.family.compares:
            raise ModelError(f"{self.path}: {self.family.title} generates no replies — name a generative model")
        stated = self.model.generation_config.eos_token_id
        stops = [*(stated if isinstance(stated, list) else [stated]), self.tokenizer.eos_token_id]
        if any(not isinstance(token, int | None) for token in stops):
            raise ModelError(
                f"{self.folder / 'generation_config.json'}: `eos_token_id` should be a number or a list of numbers — "
                "copy or download it again"
            )
        return frozenset(token for token in stops if token is not None)

    @property
    def pad_id(self) -> int:
        """The token that pads batches."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else min(self.stop_ids))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Fingerprint of the checkpoint (hashes of its files), checked when an adapter is loaded."""
        return {
            "path": self.path,
            "revision": self.revision,
            "weights_sha256": _joint_sum(weight_files(self.folder)),
            "config_sha256": sha256(self.folder / "config.json"),
            "processor_sha256": _joint_sum(processor_files(self.folder)),
            "transformers": transformers.__version__,
        }

    def input_settings(self) -> dict[str, Any]:
        """Settings that determine how a sample is encoded: tiles, frames, margins, lines, system text, template."""
        template = self.processor.chat_template or self.tokenizer.chat_template or ""
        return {
            "tiles": self.tiles.model_dump(),
            "frames": self.frames,
            "trim": self.trim,
            "reflow": self.reflow,
            "system": self.system,
            "template_sha256": hashlib.sha256(str(template).encode()).hexdigest(),
        }

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a reply up to the first token that ends it."""
        end = next((index for index, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return str(self.tokenizer.decode(ids[:end]))


def _joint_sum(files: Iterable[Path]) -> str:
    joint = hashlib.sha256()
    for file in sorted(files):
        joint.update(sha256(file).encode())
    return joint.hexdigest()
