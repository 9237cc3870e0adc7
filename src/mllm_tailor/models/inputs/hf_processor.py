"""Families with a processor of transformers for images, videos and recordings.

These processors require a video processor, which needs torchvision; a `FrameReader` replaces it. Pillow does all
resizing, so that every machine gets the same pixels.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    ProcessorMixin,
    WhisperFeatureExtractor,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.io import read_json
from mllm_tailor.core.registry import load
from mllm_tailor.core.sample import Media
from mllm_tailor.media.audio import read_audio
from mllm_tailor.models.chat_template import CUT, MARK, stated_template
from mllm_tailor.models.checkpoint import reading
from mllm_tailor.models.families import Family
from mllm_tailor.models.inputs.video_processor import FrameReader, describe, stated_video_settings
from mllm_tailor.models.inputs.voxtral import VoxtralProcessor
from mllm_tailor.models.model import LoadedModel
from mllm_tailor.models.native import open_tokenizer

SLACK = 0.05  # s: rounding of a rate
LOCAL = {"trust_remote_code": False, "local_files_only": True}


@cache
def with_frames(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The processor class, accepting a `FrameReader` as its video processor."""

    def check(_self: ProcessorMixin, _name: str, part: Any) -> type:
        return type(part)

    def to_dict(self: ProcessorMixin) -> dict[str, Any]:
        values = {key: value for key, value in kind.to_dict(self).items() if not isinstance(value, FrameReader)}
        video = getattr(self, "video_processor", None)
        read = {"video_processor": video.to_dict()} if video is not None and video.kind else {}
        return values | read | {"processor_class": kind.__name__}

    def init(self: ProcessorMixin, *parts: Any, **options: Any) -> None:
        kind.__init__(self, *parts, **options)

    init.__signature__ = inspect.signature(kind.__init__)  # type: ignore[attr-defined]  # names the parts
    return type(
        kind.__name__, (kind,), {"check_argument_for_proper_class": check, "to_dict": to_dict, "__init__": init}
    )


def open_stock_processor(folder: Path, family: Family) -> ProcessorMixin:
    """The processor of a folder by its native class.

    Raises:
        ModelError: when there is none, or a file or a package is missing.
    """
    name = family.processor or PROCESSOR_MAPPING_NAMES.get(family.name)
    if name is None:
        raise ModelError(
            f"{folder}: transformers has no processor for {family.name} — this kind of model is not supported"
        )
    with reading(folder, "tokenizer or processor cannot be read", "its files are missing or damaged; copy them again"):
        kind = load(name) if ":" in name else getattr(transformers, name)
        readers: dict[str, Callable[[], Any]] = {
            "image_processor": lambda: AutoImageProcessor.from_pretrained(folder, backend="pil", **LOCAL),
            "feature_extractor": lambda: AutoFeatureExtractor.from_pretrained(folder, **LOCAL),
            "audio_processor": lambda: AutoFeatureExtractor.from_pretrained(folder, **LOCAL),
            "tokenizer": lambda: open_tokenizer(read_json(folder / "config.json"), folder),
        } | {part: partial(_read_own, where, folder) for part, where in family.processor_parts.items()}
        parts = {part: readers[part]() for part in kind.get_attributes() if part in readers}
        if "video_processor" in kind.get_attributes():
            settings = stated_video_settings(folder) if family.video_processor else {}
            parts["video_processor"] = FrameReader(family.video_processor, parts.get("image_processor"), settings)
        processor = with_frames(kind)(**parts, **_options(folder, kind, parts))
        stated = None if family.template_first else stated_template(folder, parts["tokenizer"].chat_template)
        processor.chat_template = stated or family.template
        return processor


def _read_own(where: str, folder: Path) -> Any:
    """A part of the processor loaded by our code: a class with `from_pretrained`, or a function of the folder."""
    own: Any = load(where)
    from_pretrained = getattr(own, "from_pretrained", None)
    return from_pretrained(folder, local_files_only=True) if from_pretrained else own(folder)


def _options(folder: Path, kind: type[ProcessorMixin], parts: Mapping[str, Any]) -> dict[str, Any]:
    """Further settings of the processor from its files."""
    file = folder / "processor_config.json"
    stated = read_json(file) if file.exists() else {}
    taken = inspect.signature(kind.__init__).parameters
    return {name: value for name, value in stated.items() if name in taken and name not in parts}


def read_stock(prompt: str, conversation: Conversation, model: LoadedModel) -> tuple[list[int], dict[str, Tensor]]:
    """Ids of the prompt and the other inputs of the model, from the processor.

    Raises:
        DataError: for media that the processor cannot read.
    """
    processor = model.processor
    # Control tokens in the data are split by a space: not every processor can encode them as letters.
    prompt = re.sub(f"{MARK}(.)(.*?){CUT}", r"\1 \2", prompt)
    options: dict[str, Any] = {"add_special_tokens": not prompt.startswith(processor.tokenizer.bos_token or "\0")}
    if images := [model.open_image(media) for media in conversation.media if media.kind == "image"]:
        options["images"] = [images]
    if sounds := [media for media in conversation.media if media.kind == "audio"]:
        extractor = getattr(processor, "feature_extractor", None) or processor.audio_processor
        rate = int(extractor.sampling_rate)
        options["audio"] = [read_audio(media, rate) for media in sounds]
        _check_heard(conversation.name, sounds, [len(samples) / rate for samples in options["audio"]], model)
    if videos := [model.open_video(media) for media in conversation.media if media.kind == "video"]:
        options["videos"] = [video.frames for video in videos]
        options["video_metadata"] = [describe(video) for video in videos]
    try:
        inputs = dict(processor(text=[prompt], return_tensors="pt", **options))
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise DataError(f"{conversation.name}: {type(processor).__name__} cannot read it ({error})") from error
    if "video_second_per_grid" in inputs:  # the processor assumes two frames per second
        seconds = [
            processor.video_processor.temporal_patch_size * video.seconds / len(video.frames) for video in videos
        ]
        inputs["video_second_per_grid"] = torch.tensor(seconds)
    ids = inputs.pop("input_ids")[0].tolist()
    unused = (
        "attention_mask",
        "labels",
        "num_audio_tokens",
        *(() if model.family.encodes_per_sample else ("audio_embed_sizes",)),
    )
    return ids, {name: value for name, value in inputs.items() if name not in unused and isinstance(value, Tensor)}


def hears(model: LoadedModel) -> float | None:
    """Seconds of a recording that the family's feature extractor keeps; None if it keeps all."""
    extractor = getattr(model.processor, "feature_extractor", None)
    if isinstance(extractor, WhisperFeatureExtractor) and not isinstance(model.processor, VoxtralProcessor):
        return float(extractor.n_samples / extractor.sampling_rate)
    return None


def _check_heard(name: str, sounds: Sequence[Media], seconds: Sequence[float], model: LoadedModel) -> None:
    """Refuse recordings that the feature extractor would truncate silently.

    Raises:
        DataError: naming the row and the recording.
    """
    limit = hears(model)
    for media, length in zip(sounds, seconds, strict=True):
        if limit is not None and length > limit + SLACK:
            raise DataError(
                f"{name}: {media.describe()} lasts {length:.1f} s, but this model hears {limit:g} s of a recording — "
                "cut it into pieces, or name a span (`start`, `end`)"
            )


def with_reply(media: Mapping[str, Tensor], length: int, family: Family) -> dict[str, Tensor]:
    """Token-wise inputs (1, tokens, ...) extended for a reply: token types of the family, masks of the last token."""
    longer = dict(media)
    for name in family.token_wise:
        if name in longer and length:
            end = longer[name][:, -1:]
            last = end if end.dim() > 2 else torch.full_like(end, family.reply_kind)
            longer[name] = torch.cat([longer[name], *[last] * length], dim=1)
    return longer
