"""Requests to vLLM and its replies: our own ids and pixels go in, a `ReplySequence` comes out.

vLLM's processor would tile images differently (it appends a thumbnail, torchvision resizes), so it is not used: vLLM
gets the ids and tiles that `encode` makes. Nothing here needs vLLM installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor

from mllm_tailor.core.errors import ModelError
from mllm_tailor.core.io import fingerprint
from mllm_tailor.generation.constrain import JSON_STYLE, Vocabulary
from mllm_tailor.generation.sequence import ReplySequence
from mllm_tailor.models import Encoded, Family, LoadedModel
from mllm_tailor.models.vision_cache import tensor_bytes


@dataclass(frozen=True)
class ImageInput:
    """An image or video frame: the position of its placeholders in the prompt, and its tiles."""

    start: int  # index of its first token
    tokens: int
    pixels: Tensor  # (tiles, 3, side, side) float32

    def key(self) -> str:
        """A hash of the pixels, by which vLLM recognises an image it has computed."""
        return fingerprint(list(self.pixels.shape), tensor_bytes(self.pixels))


def image_inputs(encoded: Encoded, model: LoadedModel) -> list[ImageInput]:
    """The images of a prompt in order.

    Raises:
        ModelError: when the placeholders in the ids do not match the tiles.
    """
    image_token, per_tile = model.processor.image_token_id, model.processor.image_seq_length
    pixels = encoded.pixel_values
    available = 0 if pixels is None else len(pixels)
    images: list[ImageInput] = []
    start = used = 0
    for token, run in groupby(encoded.ids.tolist()):
        length = len(list(run))
        if token == image_token:
            tiles, rest = divmod(length, per_tile)
            if pixels is None or rest or used + tiles > available:
                raise ModelError(
                    f"{length} image tokens at {start} are not whole tiles of {per_tile} — use another model"
                )
            images.append(ImageInput(start, length, pixels[used : used + tiles]))
            used += tiles
        start += length
    if used != available:
        raise ModelError(f"the prompt has placeholders for {used} tiles of {available} — use another model")
    return images


def with_json_style(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with our JSON style, which llguidance prefers to vLLM's defaults."""
    return {**schema, "x-guidance": JSON_STYLE}


def check_family(family: Family) -> None:
    """Refuse families whose pixels vLLM would compute itself.

    Raises:
        ModelError: for all but InternVL.
    """
    if not family.tiled:
        served = ", or `tailor merge` and vLLM's own server" if family.vllm else ""
        raise ModelError(
            f"`--engine vllm` supports the InternVL family, not {family.title} — use `--engine builtin`{served}"
        )


def check_served(model: LoadedModel) -> None:
    """Refuse models that vLLM would compute differently from training.

    Raises:
        ModelError: for another family than InternVL, other tile sizes, or the arithmetic of InternVL's first layout.
    """
    check_family(model.family)
    config = model.model.config
    if hasattr(config, "ps_version"):
        raise ModelError(
            f"{model.path}: converted from InternVL's first layout, whose arithmetic vLLM's native class does "
            "not follow — use `--engine builtin`"
        )
    side = config.vision_config.image_size
    side = side[0] if isinstance(side, (list, tuple)) else side
    if model.tile_size != side:
        raise ModelError(
            f"{model.path}: tiles of {model.tile_size} pixels (model.tile_size), but vLLM takes only the checkpoint's "
            f"{side} — use `--engine builtin`"
        )


def to_sequence(
    sequence: ReplySequence, tokens: Sequence[int], logprobs: Sequence[float], vocabulary: Vocabulary
) -> None:
    """Append vLLM's reply to a sequence token by token, as if it were decoded here; a cut one is closed the same way.

    Raises:
        ModelError: when the reply leaves the schema, which two versions of llguidance could cause.
    """
    for index, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
        if sequence.done and token not in vocabulary.stops:
            raise ModelError(f"vLLM's reply leaves the task's schema at token {index} — use `--engine builtin`")
        if not sequence.done:
            sequence.append(token, logprob, vocabulary, feed_forced=False)
    if not sequence.done:
        raise ModelError(f"vLLM's reply ended after {len(tokens)} tokens, in the middle — use `--engine builtin`")
