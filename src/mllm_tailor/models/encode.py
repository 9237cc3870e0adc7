"""Encode a conversation as ids, labels and media tensors, and collate batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mllm_tailor.core.conversation import Conversation, as_conversation
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.regions import Cropped, has_boxes, move_boxes
from mllm_tailor.core.sample import Sample
from mllm_tailor.media.reflow import Reflowed
from mllm_tailor.models.chat_template import RenderedConversation, render, tokenize
from mllm_tailor.models.encoded import NO_LOSS, Encoded
from mllm_tailor.models.inputs.dual_encoder import collate_pairs, read_pair
from mllm_tailor.models.inputs.hf_processor import read_stock, with_reply
from mllm_tailor.models.inputs.internvl import pixels, prompt_ids, shared_tiles, tile_counts
from mllm_tailor.models.inputs.tiling import tile_grid
from mllm_tailor.models.model import LoadedModel

NAMES = {"image": "images", "video": "videos", "audio": "recordings"}


def encode(item: Conversation | Sample, model: LoadedModel, loss: Literal["answer", "all"] = "answer") -> Encoded:
    """Ids, labels and pixels of a conversation; without an answer only the prompt, to generate from.

    The prompt of a sample is used as it is (`as_conversation`); for that of a task, call `Task.phrase` first.

    The loss covers each answer and the token that closes its turn, not the questions, the media or a newline that the
    template appends. `loss="all"` covers every token, to reproduce published recipes. For dual encoders a sample is an
    image and a text: the answer, or the prompt where there is none.

    Raises:
        DataError: naming the row, for an empty answer, an unreadable image, or more tokens than the context holds.
    """
    conversation = _readable(as_conversation(item), model)
    if model.family.compares:
        pair, media = read_pair(conversation, model)
        _check_length(conversation, pair, (), model)
        return Encoded(torch.tensor(pair), torch.full((len(pair),), NO_LOSS), media, answer_start=len(pair))
    rendered = render(conversation, model.processor, model.system)
    if model.family.tiled:
        prompt, media = prompt_ids(rendered.prompt, conversation, model), pixels(conversation, model)
    else:
        prompt, media = read_stock(rendered.prompt, conversation, model)
    reply, learned = _replies(rendered, model)
    _check_length(conversation, prompt, reply, model)
    ids = torch.tensor(prompt + reply)
    labels = ids.clone() if loss == "all" else torch.tensor([NO_LOSS] * len(prompt) + learned)
    return Encoded(ids, labels, with_reply(media, len(reply), model.family), answer_start=len(prompt))


@dataclass(frozen=True)
class Length:
    """The size of a sample for the model."""

    tokens: int  # of the whole sequence, including media
    supervised: int  # tokens with loss
    tiles: int
    pixels: int  # of the images as stored
    tiled_pixels: int  # of the images as the model reads them, without thumbnails
    media_tokens: int = 0  # tokens of images, videos and recordings
    reply_tokens: int = 0  # tokens of the answer, of the end of its turn and of all that follows


def measure_length(item: Conversation | Sample, model: LoadedModel) -> Length:
    """The exact length that `encode` gives. For tiled families no pixel is decoded: the sizes of images suffice."""
    conversation = _readable(as_conversation(item), model)
    shared = shared_tiles(model.tiles, conversation.media)
    sizes = [model.image_size(media, shared) for media in conversation.media if media.kind == "image"]
    if model.family.compares:
        ids, media = read_pair(conversation, model)
        return Length(len(ids), 0, len(sizes), sum(map(math.prod, sizes)), media["pixel_values"].numel() // 3)
    rendered = render(conversation, model.processor, model.system)
    reply, learned = _replies(rendered, model)
    if model.family.tiled:
        prompt, tiles = prompt_ids(rendered.prompt, conversation, model), tile_counts(conversation, model)
        side = model.tile_size
        seen = sum(math.prod(tile_grid(*size, shared.min, shared.max, side)) for size in sizes) * side**2
    else:
        prompt, media = read_stock(rendered.prompt, conversation, model)
        tiles, seen = [len(sizes)], sum(tensor.numel() for name, tensor in media.items() if "pixel" in name) // 3
    return Length(
        tokens=len(prompt) + len(reply),
        supervised=sum(label != NO_LOSS for label in learned),
        tiles=sum(tiles),
        pixels=sum(width * height for width, height in sizes),
        tiled_pixels=seen,
        media_tokens=_media_tokens(prompt, model),
        reply_tokens=len(reply),
    )


def media_token_ids(model: LoadedModel) -> frozenset[int]:
    """Tokens that stand for media in a prompt; a reply must not contain them."""
    names = (f"{kind}_token_{end}" for kind in ("image", "video", "audio") for end in ("id", "index"))
    return frozenset(token for name in names if isinstance(token := getattr(model.model.config, name, None), int))


def _media_tokens(prompt: Sequence[int], model: LoadedModel) -> int:
    ids = media_token_ids(model)
    return sum(token in ids for token in prompt)


def context_error(name: str, length: Length, model: LoadedModel) -> DataError | None:
    """Why a conversation of this length does not fit into the model's context; None where it does."""
    if length.tokens <= model.context:
        return None
    words = length.tokens - length.media_tokens - length.reply_tokens
    parts = f"{length.media_tokens:,} of media, {words:,} of the prompt, {length.reply_tokens:,} of the answer"
    fewer = "" if model.family.compares else "use fewer tiles (model.tiles.max), or "  # their images add no tokens
    return DataError(
        f"{name}: {length.tokens:,} tokens ({parts}), but the model's context holds {model.context:,} — {fewer}shorten "
        "or leave out this row"
    )


def count_tokens(item: Conversation | Sample, model: LoadedModel) -> int:
    """The exact number of tokens that `encode` gives; see `measure_length`."""
    return measure_length(item, model).tokens


def collate(
    items: Sequence[Encoded], model: LoadedModel, side: Literal["right", "left"] = "right"
) -> dict[str, Tensor]:
    """A batch on the CPU: input_ids, attention_mask and labels (batch, longest), padded on `side`, and all media.

    Media of the family's `token_wise` inputs are padded with the tokens; for a family with `images_per_sample`, samples
    without media get empty ones. Dual encoders: see `inputs.dual_encoder.collate_pairs`.
    """
    if model.family.compares:
        return collate_pairs(items, model)
    longest = max(item.length for item in items)

    def padded(rows: Sequence[Tensor], value: int) -> Tensor:
        trailing = [max(row.shape[index] for row in rows) for index in range(1, rows[0].dim())]
        batch = torch.full((len(rows), longest, *trailing), value, dtype=rows[0].dtype)
        for line, row in zip(batch, rows, strict=True):
            start = 0 if side == "right" else longest - len(row)
            line[start : start + len(row)][tuple(slice(size) for size in row.shape)] = row
        return batch

    batch = {
        "input_ids": padded([item.ids for item in items], model.pad_id),
        "attention_mask": padded([torch.ones_like(item.ids) for item in items], 0),
        "labels": padded([item.labels for item in items], NO_LOSS),
    }
    for name in dict.fromkeys(name for item in items for name in item.media):
        example = next(item.media[name] for item in items if name in item.media)
        if name in model.family.token_wise:
            empty = [example.new_zeros(item.length, *example.shape[2:]) for item in items]
            batch[name] = padded(
                [
                    item.media[name][0] if name in item.media else blank
                    for item, blank in zip(items, empty, strict=True)
                ],
                0,
            )
        else:
            blank = [example.new_zeros(1, *[0] * (example.dim() - 1))] if model.family.images_per_sample else []
            batch[name] = _stacked(
                [part for item in items for part in ([item.media[name]] if name in item.media else blank)]
            )
    return batch


def prompt_inputs(items: Sequence[Conversation | Sample], model: LoadedModel) -> dict[str, Tensor]:
    """Prompts of a batch without their answers, padded on the left, on the model's device."""
    batch = collate([encode(item.unlabelled(), model) for item in items], model, side="left")
    batch.pop("labels", None)  # dual encoders have none
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate parts; where their trailing sizes differ, the smaller are padded with zeros."""
    sizes = [max(part.shape[index] for part in parts) for index in range(1, parts[0].dim())]
    filled = []
    for part in parts:
        gaps = [
            gap
            for size, have in zip(reversed(sizes), reversed(part.shape[1:]), strict=True)
            for gap in (0, size - have)
        ]
        filled.append(torch.nn.functional.pad(part, gaps) if any(gaps) else part)
    return torch.cat(filled)


def _readable(conversation: Conversation, model: LoadedModel) -> Conversation:
    """The conversation as this model can read it, recordings as unit tokens if it has a codebook."""
    if model.codebook is not None:
        conversation = model.codebook.spoken(conversation)
    for media in conversation.media:
        if media.kind not in model.family.media:
            reads = " and ".join(NAMES[kind] for kind in model.family.media)
            raise DataError(f"{media.describe()}: this model reads {reads}, not {NAMES[media.kind]} — choose another")
    changed = model.trim or model.reflow
    return (
        _with_moved_boxes(conversation, model)
        if changed and has_boxes(conversation, foreign=model.reflow)
        else conversation
    )


def _with_moved_boxes(conversation: Conversation, model: LoadedModel) -> Conversation:
    """The conversation with its boxes where the model sees what they are of."""
    shared = shared_tiles(model.tiles, conversation.media)
    views = [model.view(media, shared) for media in conversation.media]
    if any(isinstance(view, Reflowed) for view in views):
        raise DataError(
            f"{conversation.name}: a box of a page cannot move with its printed lines, which are set one after the "
            "other — set model.reflow: false, or leave the row out"
        )
    return move_boxes(conversation, [view.from_page if isinstance(view, Cropped) else None for view in views])


def _replies(conversation: RenderedConversation, model: LoadedModel) -> tuple[list[int], list[int]]:
    """Ids and labels of everything after the prompt: the reply, and further questions with their replies."""
    if conversation.reply is None:
        return [], []
    ids = _reply_ids(conversation.reply, model)
    labels = _closed(ids, model)
    for between, reply in conversation.further:
        asked, said = tokenize(model.tokenizer, between, continues=True), _reply_ids(reply, model)
        ids = [*ids, *asked, *said]
        labels = [*labels, *[NO_LOSS] * len(asked), *_closed(said, model)]
    return ids, labels


def _reply_ids(reply: str, model: LoadedModel) -> list[int]:
    ids = tokenize(model.tokenizer, reply, continues=True)
    if any(token in model.stop_ids for token in ids):
        return ids
    # The template ends no turn (LLaVA 1.5, PaliGemma), but the model must learn to stop.
    return [*tokenize(model.tokenizer, reply.rstrip(), continues=True), model.tokenizer.eos_token_id]


def _closed(reply: Sequence[int], model: LoadedModel) -> list[int]:
    """Labels of the reply: everything up to the token that closes the turn; what follows it carries no loss."""
    last = max((index for index, token in enumerate(reply) if token in model.stop_ids), default=-1)
    return [*reply[: last + 1], *[NO_LOSS] * (len(reply) - last - 1)]


def _check_length(conversation: Conversation, prompt: Sequence[int], reply: Sequence[int], model: LoadedModel) -> None:
    length = Length(len(prompt) + len(reply), 0, 0, 0, 0, _media_tokens(prompt, model), len(reply))
    if error := context_error(conversation.name, length, model):
        raise error
