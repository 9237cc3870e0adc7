"""transformers' native classes for a checkpoint: configuration, model class, and the model without weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mllm_tailor.models.checkpoint import Checkpoint, reading
from mllm_tailor.models.families import Family


def native_config(stated: Mapping[str, Any], folder: Path) -> PreTrainedConfig:
    """The configuration object, without settings that name code to download and run (auto_map, attention kernels).

    Raises:
        ModelError: naming config.json, for values that the native class cannot use.
    """

    def clean(values: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in values.items() if key != "auto_map" and "_implementation" not in key}
        return {key: clean(value) if isinstance(value, Mapping) else value for key, value in kept.items()}

    with reading(folder / "config.json", "cannot be used", "copy or download it again"):
        return CONFIG_MAPPING[stated["model_type"]](**clean(stated))  # `from_dict` would also format it for a log line


def own_config(checkpoint: Checkpoint, family: Family) -> PreTrainedConfig:
    """The configuration of the model that is loaded: that of the checkpoint, or of its inner model."""
    return native_config(own_settings(checkpoint, family), checkpoint.folder)


def own_settings(checkpoint: Checkpoint, family: Family) -> Mapping[str, Any]:
    """The same as config.json states it."""
    stated: Mapping[str, Any] = checkpoint.config
    with reading(checkpoint.folder / "config.json", "cannot be used", "copy or download it again"):
        stated = stated[f"{family.inner}_config"] if family.inner else stated
    return stated


def open_tokenizer(stated: Mapping[str, Any], folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder whose config.json states this; transformers need not read and build that again."""
    named: dict[str, Any] = {}
    if stated.get("model_type") in CONFIG_MAPPING:
        named["config"] = native_config(stated, folder)
        named["config"].name_or_path = str(folder)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True, **named
    )
    return tokenizer


@lru_cache(maxsize=64)  # a run opens its model several times
def described_weights(stated: str, folder: Path, *, dual_encoder: bool) -> int:
    """How many weights a configuration, as JSON, describes.

    Raises:
        ModelError: naming config.json, for invalid sizes.
    """
    model = build_empty(native_config(json.loads(stated), folder), folder, dual_encoder=dual_encoder)
    return sum(weight.numel() for weight in model.parameters())


def auto_class(*, dual_encoder: bool = False) -> Any:
    """transformers' auto class for models that generate text or, for dual encoders, for any model."""
    return AutoModel if dual_encoder else AutoModelForMultimodalLM


def build_empty(config: PreTrainedConfig, folder: Path, *, dual_encoder: bool = False) -> PreTrainedModel:
    """The model on the meta device: modules and shapes, no weights, no memory.

    Raises:
        ModelError: naming config.json, for invalid sizes.
    """
    with reading(folder / "config.json", "describes no model", "copy or download it again"), torch.device("meta"):
        model: PreTrainedModel = auto_class(dual_encoder=dual_encoder).from_config(config)
    return model
