"""The one place that turns a sample into ids, labels and pixels, and that says which tokens carry loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from PIL import Image
from torch import Tensor

from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.media import image_size, open_image
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.models.template import Conversation, render, tokenize
from mllm_tailor.models.tiles import count_tiles, tile_grid, tile_image, tiles_to_tensor
from mllm_tailor.recipe.schema import Tiles

if TYPE_CHECKING:
    from mllm_tailor.models.opened import OpenModel

NO_LOSS = -100  # the label torch's cross entropy ignores


@dataclass(frozen=True)
class Encoded:
    """One sample as the model reads it; `labels` is NO_LOSS wherever a token carries no loss."""

    ids: Tensor  # (length,) int64
    labels: Tensor  # (length,) int64
    media: Mapping[str, Tensor] = field(default_factory=dict)  # pixel_values (tiles, 3, height, width) and the like
    answer_start: int = 0  # where the answer begins; the length when there is none

    @property
    def length(self) -> int:
        """Tokens, pictures included."""
        return len(self.ids)


def encode(sample: Sample, model: OpenModel, loss: Literal["answer", "all"] = "answer") -> Encoded:
    """Ids, labels and pixels of a sample; without an answer only the prompt, ready to generate from.

    Loss lies on the answer and the token that closes the turn: not on the prompt, not on pictures, not on a newline the
    template puts behind. `loss="all"` lays it on every token, for recipes that copy a published one.

    Raises:
        DataError: naming the row, for an empty answer, an unreadable picture, or more tokens than the context holds.
    """
    images = [open_image(media) for media in _pictures(sample)]
    conversation = render(sample, model.processor, model.system)
    prompt = _prompt_ids(conversation, [image.size for image in images], model)
    reply = _reply_ids(conversation, model)
    _check_length(sample, len(prompt) + len(reply), model)
    ids = torch.tensor(prompt + reply)
    labels = ids.clone() if loss == "all" else torch.tensor([NO_LOSS] * len(prompt) + _closed(reply, model))
    return Encoded(ids, labels, _pixels(images, model), answer_start=len(prompt))


@dataclass(frozen=True)
class Length:
    """How large a sample is to the model."""

    tokens: int  # of the whole sequence, pictures included
    supervised: int  # of them, those that carry loss
    tiles: int
    pixels: int  # of the pictures as they are stored
    tiled_pixels: int  # of the same pictures as the model sees them, the thumbnail left out


def measure_length(sample: Sample, model: OpenModel) -> Length:
    """The exact length `encode` gives, from the pictures' sizes alone: no pixel is decoded."""
    conversation = render(sample, model.processor, model.system)
    sizes = [image_size(media) for media in _pictures(sample)]
    reply = _reply_ids(conversation, model)
    tiles, side = shared_tiles(model.tiles, len(sizes)), model.image_size
    grids = [tile_grid(*size, tiles.min, tiles.max, side) for size in sizes]
    return Length(
        tokens=len(_prompt_ids(conversation, sizes, model)) + len(reply),
        supervised=sum(label != NO_LOSS for label in _closed(reply, model)),
        tiles=sum(count_tiles(*size, tiles.min, tiles.max, side, tiles.thumbnail) for size in sizes),
        pixels=sum(width * height for width, height in sizes),
        tiled_pixels=sum(columns * rows for columns, rows in grids) * side**2,
    )


def count_tokens(sample: Sample, model: OpenModel) -> int:
    """The exact number of tokens `encode` gives; see `measure_length`."""
    return measure_length(sample, model).tokens


def collate(items: Sequence[Encoded], pad_id: int, side: Literal["right", "left"] = "right") -> dict[str, Tensor]:
    """A batch on the CPU: input_ids, attention_mask and labels (batch, longest), padded on `side`, and all media."""
    longest = max(item.length for item in items)

    def padded(rows: Sequence[Tensor], value: int) -> Tensor:
        batch = torch.full((len(rows), longest), value)
        for line, row in zip(batch, rows, strict=True):
            start = 0 if side == "right" else longest - len(row)
            line[start : start + len(row)] = row
        return batch

    batch = {
        "input_ids": padded([item.ids for item in items], pad_id),
        "attention_mask": padded([torch.ones_like(item.ids) for item in items], 0),
        "labels": padded([item.labels for item in items], NO_LOSS),
    }
    names = dict.fromkeys(name for item in items for name in item.media)
    return batch | {name: torch.cat([item.media[name] for item in items if name in item.media]) for name in names}


def _pictures(sample: Sample) -> list[Media]:
    for media in sample.media:
        if media.kind != "image":
            raise DataError(f"{media.describe()}: this model reads pictures, not {media.kind} — choose another model")
    return list(sample.media)


def shared_tiles(tiles: Tiles, pictures: int) -> Tiles:
    """Several pictures share the most tiles a sample may have, as InternVL was trained."""
    most = max(1, tiles.max // max(1, pictures))
    return Tiles(min=min(tiles.min, most), max=most, thumbnail=tiles.thumbnail)


def _prompt_ids(conversation: Conversation, sizes: Sequence[tuple[int, int]], model: OpenModel) -> list[int]:
    """Ids of the prompt, every placeholder written out to one token for each feature of its picture."""
    processor, tiles = model.processor, shared_tiles(model.tiles, len(sizes))
    ids = tokenize(processor.tokenizer, conversation.prompt)
    start, context, end = (
        processor.tokenizer.convert_tokens_to_ids(token)
        for token in (processor.start_image_token, processor.image_token, processor.end_image_token)
    )
    if ids.count(context) != len(sizes):
        raise ModelError(
            f"the chat template wrote {ids.count(context)} picture placeholders for {len(sizes)} pictures — "
            "mend chat_template.jinja of this checkpoint"
        )
    written: list[int] = []
    remaining = iter(sizes)
    for token in ids:
        if token == context:
            count = count_tiles(*next(remaining), tiles.min, tiles.max, model.image_size, tiles.thumbnail)
            written += [start, *[context] * (count * processor.image_seq_length), end]
        else:
            written.append(token)
    return written


def _reply_ids(conversation: Conversation, model: OpenModel) -> list[int]:
    if conversation.reply is None:
        return []
    ids = tokenize(model.tokenizer, conversation.reply, continues=True)
    return ids if any(token in model.stop_ids for token in ids) else [*ids, model.tokenizer.eos_token_id]


def _closed(reply: Sequence[int], model: OpenModel) -> list[int]:
    """Labels of the reply: everything up to the token that closes the turn; what stands behind it carries no loss."""
    last = max((place for place, token in enumerate(reply) if token in model.stop_ids), default=-1)
    return [*reply[: last + 1], *[NO_LOSS] * (len(reply) - last - 1)]


def _check_length(sample: Sample, length: int, model: OpenModel) -> None:
    if length > model.context:
        raise DataError(
            f"{sample.source or sample.id}: {length:,} tokens, but the model's context holds {model.context:,} — "
            "use fewer tiles (model.tiles.max), or shorten or leave out this row"
        )


def _pixels(images: Sequence[Image.Image], model: OpenModel) -> dict[str, Tensor]:
    if not images:
        return {}
    tiles = shared_tiles(model.tiles, len(images))
    cut = [
        tile for image in images for tile in tile_image(image, tiles.min, tiles.max, model.image_size, tiles.thumbnail)
    ]
    statistics = model.processor.image_processor
    return {"pixel_values": tiles_to_tensor(cut, statistics.image_mean, statistics.image_std)}
