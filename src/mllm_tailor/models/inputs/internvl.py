"""InternVL images and videos: square tiles with a fixed number of tokens each."""

from __future__ import annotations

import re
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import ModelError
from mllm_tailor.core.sample import Media
from mllm_tailor.models.chat_template import MARK, tokenize
from mllm_tailor.models.inputs.tiling import count_tiles, tile_image, tiles_to_tensor
from mllm_tailor.models.model import LoadedModel
from mllm_tailor.recipe.schema import Tiles

ONE_TILE = Tiles(min=1, max=1, thumbnail=False)  # for a video frame


def shared_tiles(tiles: Tiles, media: Sequence[Media]) -> Tiles:
    """The images among a sample's media share its maximum number of tiles, as in InternVL's training."""
    images = sum(item.kind == "image" for item in media)
    most = max(1, tiles.max // max(1, images))
    return Tiles(min=min(tiles.min, most), max=most, thumbnail=tiles.thumbnail)


def tiles_of(media: Sequence[Media], model: LoadedModel) -> list[tuple[Media, Tiles]]:
    """Every image and video of a conversation with its tiles; a video has a tile per frame.

    A thumbnail of lines that are set one after the other would show nothing.
    """
    shared = shared_tiles(model.tiles, media)
    without = shared.model_copy(update={"thumbnail": False})

    def own(item: Media) -> Tiles:
        if item.kind != "image":
            return ONE_TILE
        return without if shared.thumbnail and model.reflowed_tiles(item, shared) else shared

    return [(item, own(item)) for item in media]


def prompt_ids(prompt: str, conversation: Conversation, model: LoadedModel) -> list[int]:
    """Ids of the prompt, every placeholder expanded to a token per feature of its image.

    Only image sizes are read; no pixel is decoded unless margins are cropped or lines are reflowed.
    """
    processor = model.processor
    numbers = range(1, model.frames + 1)
    frames = "\n".join(processor.frame_text.replace("{}", str(number)) + processor.image_token for number in numbers)
    ids = tokenize(processor.tokenizer, re.sub(f"(?<!{MARK}){re.escape(processor.video_token)}", frames, prompt))
    counts = tile_counts(conversation, model)
    start, context, end = (
        processor.tokenizer.convert_tokens_to_ids(token)
        for token in (processor.start_image_token, processor.image_token, processor.end_image_token)
    )
    if ids.count(context) != len(counts):
        raise ModelError(
            f"the chat template wrote {ids.count(context)} image placeholders for {len(counts)} images — "
            "fix chat_template.jinja of this checkpoint"
        )
    written: list[int] = []
    remaining = iter(counts)
    for token in ids:
        if token == context:
            written += [start, *[context] * (next(remaining) * processor.image_seq_length), end]
        else:
            written.append(token)
    return written


def tile_counts(conversation: Conversation, model: LoadedModel) -> list[int]:
    """Number of tiles of every image and of every frame, in order."""
    counts: list[int] = []
    for media, tiles in tiles_of(conversation.media, model):
        if media.kind == "image":
            width, height = model.image_size(media, tiles)
            counts.append(count_tiles(width, height, tiles.min, tiles.max, model.tile_size, thumbnail=tiles.thumbnail))
        else:
            counts += [1] * model.frames
    return counts


def pixels(conversation: Conversation, model: LoadedModel) -> dict[str, Tensor]:
    """`pixel_values` (tiles, 3, size, size) of all images and videos."""
    cut: list[Image.Image] = []
    for media, tiles in tiles_of(conversation.media, model):
        frames = model.open_video(media).frames if media.kind == "video" else [model.open_image(media, tiles)]
        for image in frames:
            cut += tile_image(image, tiles.min, tiles.max, model.tile_size, thumbnail=tiles.thumbnail)
    if not cut:
        return {}
    statistics = model.processor.image_processor
    return {"pixel_values": tiles_to_tensor(cut, statistics.image_mean, statistics.image_std)}
