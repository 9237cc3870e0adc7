"""What vLLM is asked and how its replies are read: our own ids and pixels go in, one of our rows comes out.

vLLM's processor would cut pictures another way (it appends a thumbnail, torchvision resizes), so nothing is left to it:
it gets the ids and tiles that `encode` makes. Nothing here needs vLLM installed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from mllm_tailor.core.errors import ModelError
from mllm_tailor.generation.constrain import JSON_STYLE, Vocabulary
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.models import Encoded, Family, LoadedModel


@dataclass(frozen=True)
class Picture:
    """One picture or frame: where its placeholders stand in the prompt, and its tiles."""

    start: int  # place of its first token
    tokens: int
    pixels: Tensor  # (tiles, 3, side, side) float32

    def key(self) -> str:
        """A hash of the pixels, by which vLLM knows a picture it has met."""
        content = self.pixels.contiguous().flatten().view(torch.uint8).numpy()
        return hashlib.sha256(f"{tuple(self.pixels.shape)}".encode() + memoryview(content)).hexdigest()


def pictures_of(encoded: Encoded, model: LoadedModel) -> list[Picture]:
    """The pictures of a prompt in order.

    Raises:
        ModelError: when the placeholders in the ids do not stand for just the tiles there are.
    """
    image, each = model.processor.image_token_id, model.processor.image_seq_length
    pixels = encoded.pixel_values
    there = 0 if pixels is None else len(pixels)
    found: list[Picture] = []
    place = taken = 0
    for token, run in groupby(encoded.ids.tolist()):
        length = len(list(run))
        if token == image:
            tiles, rest = divmod(length, each)
            if pixels is None or rest or taken + tiles > there:
                raise ModelError(
                    f"{length} picture tokens at {place} are not whole tiles of {each} — use another model"
                )
            found.append(Picture(place, length, pixels[taken : taken + tiles]))
            taken += tiles
        place += length
    if taken != there:
        raise ModelError(f"the prompt has places for {taken} tiles, but there are {there} — use another model")
    return found


def as_ours(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with our way of writing JSON in it, which llguidance puts before vLLM's defaults."""
    return {**schema, "x-guidance": JSON_STYLE}


def check_family(family: Family) -> None:
    """Refuse families whose pixels vLLM would make itself.

    Raises:
        ModelError: for all but InternVL.
    """
    if not family.tiled:
        served = ", or `tailor merge` and vLLM's own server" if family.vllm else ""
        raise ModelError(
            f"`--engine vllm` reads with the InternVL family, not with {family.title} — use `--engine builtin`{served}"
        )


def check_served(model: LoadedModel) -> None:
    """Refuse what vLLM would compute differently from what was trained.

    Raises:
        ModelError: for another family than InternVL, tiles of another size, or a first layout's own arithmetic.
    """
    check_family(model.family)
    config = model.model.config
    if hasattr(config, "ps_version"):
        raise ModelError(
            f"{model.path}: converted from InternVL's first layout, whose arithmetic vLLM's class of the native one "
            "does not follow — use `--engine builtin`"
        )
    side = config.vision_config.image_size
    side = side[0] if isinstance(side, (list, tuple)) else side
    if model.tile_size != side:
        raise ModelError(
            f"{model.path}: tiles of {model.tile_size} pixels (model.tile_size), but vLLM takes only the checkpoint's "
            f"{side} — use `--engine builtin`"
        )


def to_sequence(row: ReplySequence, tokens: Sequence[int], logprobs: Sequence[float], vocabulary: Vocabulary) -> None:
    """Let a row take vLLM's reply token by token, as if it were written here: a cut one is closed the same way.

    Raises:
        ModelError: when the reply leaves the schema, which two versions of llguidance could cause.
    """
    for place, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
        if row.done and token not in vocabulary.stops:
            raise ModelError(f"vLLM's reply leaves the task's schema at token {place} — use `--engine builtin`")
        if not row.done:
            row.take(token, logprob, vocabulary, forward=False)
    if not row.done:
        raise ModelError(f"vLLM's reply ended after {len(tokens)} tokens, in the middle — use `--engine builtin`")
