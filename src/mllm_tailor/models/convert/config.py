"""Translate the configuration of an original InternVL checkpoint to the native configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, InternVLConfig, InternVLVisionConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mllm_tailor.core.errors import ModelError, nearest
from mllm_tailor.models.bundled.build import tokens_per_tile

Settings = Mapping[str, Any]

# Defaults of the original vision class (InternViT-6B).
VISION_DEFAULTS: Settings = {
    "hidden_size": 3200,
    "num_hidden_layers": 48,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "qkv_bias": False,
    "qk_normalization": True,
    "norm_type": "rms_norm",
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
    "initializer_factor": 0.1,
}

# The native class of each original language model. InternLM2 is a Llama with fused attention weights.
LANGUAGE_MODELS = {
    "InternLM2ForCausalLM": "llama",
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Phi3ForCausalLM": "phi3",
}
KINDS = {  # by `model_type`, for files without a class name
    "internlm2": "InternLM2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
# Defaults of the original classes that differ from the native classes.
LANGUAGE_DEFAULTS: Mapping[str, Settings] = {"InternLM2ForCausalLM": {"vocab_size": 103168, "bias": True}}
LANGUAGE_SETTINGS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "hidden_act", "rms_norm_eps", "attention_bias", "mlp_bias", "attention_dropout"),
    *("max_position_embeddings", "original_max_position_embeddings", "sliding_window", "use_sliding_window"),
    *("max_window_layers", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id"),
)


def language_class(stated: Settings, folder: Path) -> str:
    """The original language model's class name.

    Raises:
        ModelError: when there is no native class for it.
    """
    language = stated.get("llm_config") or {}
    name = (language.get("architectures") or [KINDS.get(str(language.get("model_type")), "nothing")])[0]
    if name not in LANGUAGE_MODELS:
        raise ModelError(f"{folder / 'config.json'}: language model {name} — {nearest(name, LANGUAGE_MODELS)}")
    return str(name)


def native_config_of(stated: Settings, folder: Path, image_token_id: int) -> InternVLConfig:
    """The native configuration; with `ps_version`, since v1 needs another pixel shuffle."""
    if stated.get("pad2square"):
        raise ModelError(f"{folder / 'config.json'}: pad2square, which no published checkpoint uses — not supported")
    vision = {**VISION_DEFAULTS, **(stated.get("vision_config") or {})}
    size = stated.get("force_image_size") or vision["image_size"]
    ratio = stated.get("downsample_ratio", 0.5)
    try:
        tokens = tokens_per_tile(size, vision["patch_size"], ratio)
    except ValueError as error:
        raise ModelError(f"{folder / 'config.json'}: {error} — fix force_image_size") from None
    config = InternVLConfig(
        vision_config=_vision(vision),
        text_config=_language(stated["llm_config"], language_class(stated, folder), folder),
        image_token_id=image_token_id,
        image_seq_length=tokens,
        downsample_ratio=ratio,
        vision_feature_layer=stated.get("select_layer", -1),
        tie_word_embeddings=False,  # the original code ignores the setting of its file
        architectures=["InternVLForConditionalGeneration"],
        dtype=stated.get("torch_dtype") or stated.get("dtype"),
    )
    config.ps_version = pixel_shuffle_version(stated, folder)
    if config.ps_version == "v2":  # names that other programs (llama.cpp) expect; they support only this version
        vision_config: Any = config.vision_config
        vision_config.architectures = ["InternVisionModel"]
        text_config: Any = config.text_config
        text_config.architectures = [type_name(text_config)]
    return config


def type_name(language: Any) -> str:
    """The native class of a language model, by its configuration."""
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[language.model_type])


def pixel_shuffle_version(stated: Settings, folder: Path) -> str:
    """`v2`, or `v1` by default, as in checkpoints older than the setting."""
    version = stated.get("ps_version", "v1")
    if version not in ("v1", "v2"):
        raise ModelError(f"{folder / 'config.json'}: ps_version {version!r} — known: v1, v2")
    return str(version)


def _vision(stated: Settings) -> InternVLVisionConfig:
    return InternVLVisionConfig(
        hidden_size=stated["hidden_size"],
        num_hidden_layers=stated["num_hidden_layers"],
        num_attention_heads=stated["num_attention_heads"],
        intermediate_size=stated["intermediate_size"],
        attention_bias=stated["qkv_bias"],
        use_qk_norm=stated["qk_normalization"],
        norm_type=stated["norm_type"],
        layer_norm_eps=stated["layer_norm_eps"],
        hidden_act=stated["hidden_act"],
        layer_scale_init_value=stated["initializer_factor"],
        image_size=[stated["image_size"]] * 2,  # of the position embeddings, which the model interpolates to the tiles
        patch_size=[stated["patch_size"]] * 2,
        num_channels=stated["num_channels"],
        use_mean_pooling=True,  # no norm after the last layer
    )


def _language(stated: Settings, name: str, folder: Path) -> Any:
    stated = {**LANGUAGE_DEFAULTS.get(name, {}), **stated}
    kept = {key: stated[key] for key in LANGUAGE_SETTINGS if stated.get(key) is not None}
    if name == "InternLM2ForCausalLM":
        kept["attention_bias"] = bool(stated["bias"])
    if name == "Qwen2ForCausalLM" and not stated.get("use_sliding_window"):
        kept.pop("sliding_window", None)
    kind: Any = CONFIG_MAPPING[LANGUAGE_MODELS[name]]
    return kind(**kept, rope_parameters=_rotary(stated, name, folder), tie_word_embeddings=False, use_cache=True)


def _rotary(stated: Settings, name: str, folder: Path) -> dict[str, Any]:
    """Rotary position settings: plain, linear, dynamic NTK (arXiv 2309.00071), LongRoPE (2402.13753), Llama 3."""
    scaling = dict(stated.get("rope_scaling") or {})
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    kind = {"su": "longrope"}.get(kind, kind)
    if kind not in ("default", "linear", "dynamic", "longrope", "llama3", "yarn"):
        raise ModelError(f"{folder / 'config.json'}: rope_scaling of type {kind!r} is not supported")
    if kind == "longrope":
        # Must be nested here, or short and long factors would be switched at the wrong length.
        scaling["original_max_position_embeddings"] = stated.get("original_max_position_embeddings", 4096)
    if name == "Phi3ForCausalLM" and kind == "yarn":
        # The original Phi-3 uses this name for LongRoPE with an attention factor other than the native default.
        before = stated.get("original_max_position_embeddings", 4096)
        stretch = stated.get("max_position_embeddings", 4096) / before
        kind, scaling["original_max_position_embeddings"] = "longrope", before
        scaling["attention_factor"] = 1 + 0.1 * math.log(stretch) if stretch > 1 else 1.0
    return {"rope_type": kind, "rope_theta": float(stated.get("rope_theta", 10_000.0)), **scaling}
