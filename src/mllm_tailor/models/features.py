"""A vector per sample from its encoded media, for nearest-neighbour baselines."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.progress import track
from mllm_tailor.core.sample import Sample
from mllm_tailor.models.encode import encode, prompt_inputs
from mllm_tailor.models.model import LoadedModel
from mllm_tailor.models.vision_cache import VisionEncoder, VisionFeatureCache

PLACEHOLDER = re.compile(r"(image|video|audio)_token_(id|index)")  # settings with the token of a kind of media


class _Reached(Exception):
    """Raised at the first decoder layer: nothing after it is needed."""


def has_features(samples: Iterable[Conversation | Sample], model: LoadedModel) -> bool:
    """Whether `media_features` has something to encode in every sample; recordings read as words show nothing."""
    visible = set(model.family.media)
    return all(sample.media and {media.kind for media in sample.media} <= visible for sample in samples)


@torch.no_grad()
def media_features(
    samples: Sequence[Conversation | Sample], model: LoadedModel, cache: VisionFeatureCache | None = None
) -> NDArray[np.float32]:
    """(samples, width) float32: the projected features of a sample's media, averaged over tiles and positions.

    Features of images are taken from the cache and kept in it, where the model's can be.

    Raises:
        DataError: naming a sample without media.
    """
    rows = []
    vision = VisionEncoder(model, cache)
    for sample in track(samples, "Encoding"):
        prompt = sample.unlabelled()
        if any(media.kind == "image" for media in prompt.media):
            features = _image_features(prompt, vision)
        else:
            features = _embedded_media(prompt, model)
        if not len(features):
            raise DataError(f"{sample.id}: no image, video or recording to compare — leave this row out")
        rows.append(features.float().mean(dim=0).cpu().numpy())
    return np.stack(rows)


def _image_features(prompt: Conversation | Sample, vision: VisionEncoder) -> Tensor:
    """(positions of all images, width)."""
    model = vision.model
    media = encode(prompt, model).media
    if vision.supported and media.keys() == {"pixel_values"}:
        return vision.features(media["pixel_values"]).flatten(0, -2)
    # Most classes have a method for it; where there is none, the vision tower is called.
    reader = getattr(model.model, "get_image_features", None)
    reader = reader or model.model.get_submodule(model.family.parts["vision"][0])
    accepted = inspect.signature(getattr(reader, "forward", reader)).parameters
    names = {name: name if name in accepted else name.removesuffix("_images") for name in media}
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.mixed_precision):
        output = reader(**{key: media[name].to(model.device) for name, key in names.items() if key in accepted})
    features = output["pooler_output" if "pooler_output" in output else "last_hidden_state"]
    # (tiles, tokens, width), or a list with an entry per image
    images = features if isinstance(features, (list, tuple)) else [features]
    return torch.cat([image.flatten(0, -2) for image in images])


def _embedded_media(prompt: Conversation | Sample, model: LoadedModel) -> Tensor:
    """(positions, width): the inputs of the decoder at the placeholders of media."""
    network = model.model
    embedded: list[Tensor] = []

    def stop(_: nn.Module, positional: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        embedded.append(positional[0] if positional else named["hidden_states"])
        raise _Reached

    inputs = prompt_inputs([prompt], model)
    hook = network.get_decoder().layers[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.mixed_precision):
            network(**inputs, use_cache=False)
    except _Reached:
        hidden = embedded[0]
    finally:
        hook.remove()
    tokens = torch.tensor(sorted(_placeholder_ids(network.config.to_dict())), device=inputs["input_ids"].device)
    return hidden[0, torch.isin(inputs["input_ids"][0], tokens)]


def _placeholder_ids(config: Mapping[str, Any]) -> set[int]:
    """Tokens that stand for media, of a configuration and those in it."""
    ids: set[int] = set()
    for name, value in config.items():
        if isinstance(value, Mapping):
            ids |= _placeholder_ids(value)
        elif PLACEHOLDER.fullmatch(str(name)) and isinstance(value, int):
            ids.add(value)
    return ids
