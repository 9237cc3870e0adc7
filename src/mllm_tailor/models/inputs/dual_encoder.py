"""Dual encoders (CLIP, arXiv 2103.00020; SigLIP, 2303.15343): a vector per image and per text.

>>> batch = collate([encode(sample, model) for sample in samples], model)  # an image and a text each
>>> similarity = embed_images(model, batch) @ embed_texts(model, batch).T  # cosines, (images, texts)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError
from mllm_tailor.models.encoded import Encoded
from mllm_tailor.models.model import LoadedModel


def read_pair(conversation: Conversation, model: LoadedModel) -> tuple[list[int], dict[str, Tensor]]:
    """Ids of the conversation's text (its answer, or its prompt where there is none) and `pixel_values` of its image.

    Raises:
        DataError: naming the row, unless there is exactly one image, or when the answer is empty.
    """
    text = conversation.answer if conversation.answer is not None else conversation.prompt
    if len(conversation.media) != 1 or (conversation.answer is not None and not text.strip()):
        raise DataError(
            f"{conversation.name}: {len(conversation.media)} images and {len(text.split())} words, but one "
            "image and its text are needed — fix this row or leave it out"
        )
    pixels = model.processor.image_processor(images=[model.open_image(conversation.media[0])], return_tensors="pt")
    return list(model.tokenizer(text, truncation=False)["input_ids"]), {"pixel_values": pixels["pixel_values"]}


def collate_pairs(items: Sequence[Encoded], model: LoadedModel) -> dict[str, Tensor]:
    """`input_ids` (pairs, tokens) padded on the right, `pixel_values` (pairs, 3, height, width), and the mask if used.

    SigLIP was trained on texts padded to the context length, without a mask, and reads the last position.
    """
    longest = model.context if model.family.pads_to_context else max(item.length for item in items)
    ids = torch.full((len(items), longest), model.pad_id)
    mask = torch.zeros_like(ids)
    for line, seen, item in zip(ids, mask, items, strict=True):
        line[: item.length] = item.ids
        seen[: item.length] = 1
    batch = {"input_ids": ids, "pixel_values": torch.cat([item.media["pixel_values"] for item in items])}
    return batch if model.family.pads_to_context else batch | {"attention_mask": mask}


def embed_images(model: LoadedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """(pairs, width) unit vectors of a batch's images, with gradients."""
    output = model.model.get_image_features(pixel_values=batch["pixel_values"].to(model.device))
    return normalize(output.pooler_output, dim=-1)


def embed_texts(model: LoadedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """(pairs, width) unit vectors of a batch's texts, with gradients."""
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask") if name in batch}
    return normalize(model.model.get_text_features(**inputs).pooler_output, dim=-1)
