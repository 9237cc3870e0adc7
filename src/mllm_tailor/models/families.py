"""What there is to know about a model family that its files do not say. A family is a few lines of data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from mllm_tailor.core.errors import ModelError
from mllm_tailor.models.family_templates import PALIGEMMA, PHI4, VOXTRAL

logger = logging.getLogger(__name__)

Parts = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Family:
    """A kind of model: its parts, the media it reads, and how the outputs of its processor are batched.

    `parts` maps a part (vision, projector, language, audio, head) to the prefixes of its module and weight names.
    """

    name: str  # `model_type` in config.json
    title: str  # names of its published models
    parts: Parts
    media: tuple[str, ...] = ("image",)
    tiled: bool = False  # images are tiled here instead of by the processor of transformers
    token_wise: tuple[str, ...] = ()  # inputs with an entry per token, extended for the answer and padded with it
    reply_kind: int = 0  # `token_type_ids` of the answer
    images_per_sample: bool = False  # a batch dimension of samples: those without images need empty ones
    masks_empty_images: bool = False  # the native class attends to empty images; see `patches.mllama`
    compares: bool = False  # a dual encoder: a vector per image and per text, no generation
    pads_to_context: bool = False  # texts are padded to the context length, without a mask
    video_processor: str = ""  # transformers' video processor to reproduce; see `inputs.video_processor`
    processor: str | None = None  # its class, where transformers does not map the name to it
    processor_parts: Mapping[str, str] = field(default_factory=dict)  # loaded by our code: part -> "module:attribute"
    template: str | None = None  # the chat template of checkpoints that have none
    template_first: bool = False  # `template` replaces that of the checkpoint, which has no media
    unused_modules: tuple[str, ...] = ()  # modules that no reply depends on: in no part, never quantised
    unused_adapters: tuple[str, ...] = ()  # folders of adapters inside checkpoints, which are not applied
    encodes_per_sample: bool = False  # the native class mixes the samples of a batch; see `patches.phi4`
    inner: str | None = None  # the submodel of the checkpoint that is loaded
    vllm: Literal["adapter", "merged", ""] = ""  # what vLLM serves, by its list of July 2026 (docs/models.md)
    note: str = ""  # what a user must know
    linear_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # filled in from the loaded model

    @property
    def supports(self) -> dict[str, str]:
        """Capabilities, as tables show them. QLoRA and merging are tested for every family."""
        reads = {name: "yes" if kind in self.media else "—" for kind, name in MEDIA_COLUMNS.items()}
        return reads | {"QLoRA": "yes", "merge": "yes", "vLLM": self.vllm or "—"}


MEDIA_COLUMNS = {"image": "images", "video": "videos", "audio": "recordings"}

# Parts of almost all native classes; adapters and freezing go by these names.
USUAL: Parts = {
    "vision": ("model.vision_tower",),
    "projector": ("model.multi_modal_projector",),
    "language": ("model.language_model",),
    "head": ("lm_head",),
}
NEWLINE: Parts = USUAL | {"projector": ("model.multi_modal_projector", "model.image_newline")}
QWEN_VISION = tuple(f"model.visual.{name}" for name in ("patch_embed", "blocks", "pos_embed", "rotary_pos_emb"))
QWEN: Parts = USUAL | {
    "vision": QWEN_VISION,
    "projector": ("model.visual.merger", "model.visual.deepstack_merger_list"),
    "language": ("model.language_model",),
}
GLM: Parts = USUAL | {
    "vision": tuple(
        f"model.visual.{name}"
        for name in ("patch_embed", "blocks", "embeddings", "rotary_pos_emb", "post_conv_layernorm", "post_layernorm")
    ),
    "projector": ("model.visual.merger", "model.visual.downsample"),
}
IDEFICS: Parts = USUAL | {
    "vision": ("model.vision_model",),
    "projector": ("model.connector",),
    "language": ("model.text_model",),
}
AUDIO: Parts = {
    "audio": ("model.audio_tower",),
    "projector": ("model.multi_modal_projector",),
    "language": ("model.language_model",),
    "head": ("lm_head",),
}
PHI_IMAGES, PHI_SOUNDS = "model.embed_tokens_extend.image_embed", "model.embed_tokens_extend.audio_embed"
PHI: Parts = {
    "vision": tuple(f"{PHI_IMAGES}.img_processor.{name}" for name in ("embeddings", "encoder", "post_layernorm")),
    "audio": (f"{PHI_SOUNDS}.encoder",),
    "projector": (
        *(f"{PHI_IMAGES}.img_projection_{way}" for way in ("up", "down")),
        *(f"{PHI_IMAGES}.{name}_img_feature_extensor" for name in ("global", "sub")),
        *(f"{PHI_SOUNDS}.{way}_proj_for_{what}" for way in ("up", "down") for what in ("speech", "vision_speech")),
    ),
    "language": ("model.embed_tokens", "model.layers", "model.norm"),
    "head": ("lm_head",),
}
PAIR: Parts = {
    "vision": ("vision_model",),
    "projector": ("visual_projection", "text_projection"),
    "language": ("text_model",),
    "head": ("logit_scale",),
}
# The layers that pool an image. Their attention reads its weights directly, bypassing any adapter, so its output layer
# is listed by its weights: it can be trained, but no adapter targets it.
POOLING = (
    "vision_model.head.probe",
    "vision_model.head.attention.in_proj_weight",
    "vision_model.head.attention.in_proj_bias",
    "vision_model.head.attention.out_proj.weight",
    "vision_model.head.attention.out_proj.bias",
    "vision_model.head.layernorm",
    "vision_model.head.mlp",
)
SIGLIP: Parts = {
    "vision": tuple(f"vision_model.{name}" for name in ("embeddings", "encoder", "post_layernorm")),
    "projector": (*POOLING, "text_model.head"),
    "language": tuple(f"text_model.{name}" for name in ("embeddings", "encoder", "final_layer_norm")),
    "head": ("logit_scale", "logit_bias"),
}
OMNI: Parts = QWEN | {"audio": ("model.audio_tower",)}
TYPES = ("mm_token_type_ids",)
SEEN = ("image", "video")
PAIRS_ONLY = "compares images with texts and generates none"

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "internvl",
            "InternVL 2.5, 3, 3.5; converted: Mini-InternVL 1.5, InternVL 1.2 to 3 in their first layout",
            USUAL,
            SEEN,
            tiled=True,
            vllm="adapter",
        ),
        Family(
            "qwen2_vl",
            "Qwen2-VL",
            QWEN,
            SEEN,
            token_wise=TYPES,
            video_processor="Qwen2VLVideoProcessor",
            vllm="adapter",
        ),
        Family(
            "qwen2_5_vl",
            "Qwen2.5-VL",
            QWEN,
            SEEN,
            token_wise=TYPES,
            video_processor="Qwen2VLVideoProcessor",
            vllm="adapter",
        ),
        Family(
            "qwen3_vl",
            "Qwen3-VL",
            QWEN,
            SEEN,
            token_wise=TYPES,
            video_processor="Qwen3VLVideoProcessor",
            vllm="adapter",
        ),
        Family(
            "qwen2_5_omni",
            "Qwen2.5-Omni",
            OMNI,
            (*SEEN, "audio"),
            token_wise=TYPES,
            video_processor="Qwen2VLVideoProcessor",
            inner="thinker",
            vllm="adapter",
            note="only its thinker is loaded and saved: it reads images, videos and speech and writes text",
        ),
        Family(
            "qwen2_5_omni_thinker",
            "Qwen2.5-Omni, thinker",
            OMNI,
            (*SEEN, "audio"),
            token_wise=TYPES,
            video_processor="Qwen2VLVideoProcessor",
            processor="Qwen2_5OmniProcessor",
            vllm="adapter",
        ),
        Family("llava", "LLaVA 1.5", USUAL, vllm="adapter"),
        Family("vipllava", "ViP-LLaVA", USUAL),
        Family("llava_next", "LLaVA-NeXT", NEWLINE, vllm="adapter"),
        Family(
            "llava_onevision",
            "LLaVA-OneVision",
            NEWLINE,
            SEEN,
            video_processor="LlavaOnevisionVideoProcessor",
            vllm="merged",
        ),
        Family(
            "llava_next_video",
            "LLaVA-NeXT-Video",
            NEWLINE | {"projector": (*NEWLINE["projector"], "model.vision_resampler")},
            SEEN,
            video_processor="LlavaNextVideoVideoProcessor",
            vllm="adapter",
        ),
        Family(
            "video_llava",
            "Video-LLaVA",
            USUAL | {"vision": ("model.image_tower", "model.video_tower")},
            SEEN,
            video_processor="VideoLlavaVideoProcessor",
            note="trained on 8 frames per video",
        ),
        Family(
            "glm4v",
            "GLM-4.1V",
            GLM,
            SEEN,
            token_wise=TYPES,
            video_processor="Glm4vVideoProcessor",
            vllm="adapter",
            note="rows with images and rows with videos cannot share a batch",
        ),
        Family(
            "smolvlm",
            "SmolVLM2",
            IDEFICS,
            SEEN,
            images_per_sample=True,
            video_processor="SmolVLMVideoProcessor",
            vllm="adapter",
            note="needs the num2words package; a row has images or a video, not both",
        ),
        Family("idefics3", "Idefics3, SmolVLM", IDEFICS, images_per_sample=True, vllm="adapter"),
        Family(
            "paligemma",
            "PaliGemma",
            USUAL,
            token_wise=("token_type_ids",),
            # Tokens of kind 0 see each other both ways: an answer of that kind would be read before it is given.
            reply_kind=1,
            template=PALIGEMMA,
            vllm="adapter",
            note="every row needs an image",
        ),
        Family("gemma3", "Gemma 3", USUAL, token_wise=("token_type_ids",), vllm="adapter"),
        Family(
            "mllama",
            "Llama 3.2 Vision",
            USUAL | {"vision": ("model.vision_model",)},
            token_wise=("cross_attention_mask",),
            images_per_sample=True,
            masks_empty_images=True,
        ),
        Family("qwen2_audio", "Qwen2-Audio", AUDIO, ("audio",), vllm="merged"),
        Family(
            "granite_speech",
            "Granite Speech",
            AUDIO | {"audio": ("model.encoder",), "projector": ("model.projector",)},
            ("audio",),
            processor_parts={"audio_processor": "mllm_tailor.models.inputs.granite_speech:SpeechFeatures"},
            vllm="adapter",
        ),
        Family(
            "voxtral",
            "Voxtral",
            AUDIO,
            ("audio",),
            processor="mllm_tailor.models.inputs.voxtral:VoxtralProcessor",
            processor_parts={"tokenizer": "mllm_tailor.models.inputs.voxtral:read_tokenizer"},
            template=VOXTRAL,
            template_first=True,
            note="prompted by text, as in a conversation; its transcription mode is not used",
        ),
        Family(
            "phi4_multimodal",
            "Phi-4-multimodal (native layout: revision refs/pr/70)",
            PHI,
            ("image", "audio"),
            processor_parts={
                "image_processor": "mllm_tailor.models.inputs.phi4:DynamicCrops",
                "audio_processor": "mllm_tailor.models.inputs.phi4:SpeechFrames",
            },
            template=PHI4,
            template_first=True,
            unused_modules=(f"{PHI_IMAGES}.img_processor.head",),
            unused_adapters=("vision-lora", "speech-lora"),
            encodes_per_sample=True,
            note="the adapters of its checkpoint (vision-lora, speech-lora) are not applied; see below",
        ),
        Family("clip", "CLIP", PAIR, compares=True, note=PAIRS_ONLY),
        Family(
            "siglip", "SigLIP, SigLIP 2 of fixed size", SIGLIP, compares=True, pads_to_context=True, note=PAIRS_ONLY
        ),
    )
}

# Models a user may look for, and why they are not supported.
NOT_HERE = {
    "CogVLM2": "exists only as remote code",
    "Phi-3-Vision": "exists only as remote code",
}

# Model types of layouts that need the code of their checkpoint, and what to use instead.
OTHER_LAYOUTS = {
    "phi4mm": "the first layout of Phi-4-multimodal — name revision refs/pr/70, which holds the native layout",
    "phi3_v": f"Phi-3-Vision, which {NOT_HERE['Phi-3-Vision']} — take Phi-4-multimodal, revision refs/pr/70",
    "cogvlm2": f"CogVLM2, which {NOT_HERE['CogVLM2']} — take GLM-4.1V, by the same people",
}

# Words in module names that indicate a part, for families without a description.
SIGNS = {
    "audio": ("audio", "speech"),
    "projector": ("projector", "connector", "merger", "resampler", "newline", "aligner"),
    "vision": ("vision", "visual", "image", "video"),
    "head": ("lm_head",),
    "language": ("language", "text", "layers", "embed_tokens", "norm"),
}


def guess_family(kind: str, model: nn.Module) -> Family:
    """A family guessed from the names of modules, with a warning that lists the guess."""
    parts: dict[str, tuple[str, ...]] = {}
    for name in _branches(model):
        leaf = name.rpartition(".")[2]
        part = next((part for part, signs in SIGNS.items() if any(sign in leaf for sign in signs)), None)
        if part:
            parts[part] = (*parts.get(part, ()), name)
    if "language" not in parts:
        raise ModelError(f"{kind}: no language model among its modules — this kind of model is not supported")
    shown = "; ".join(f"{part}: {', '.join(names)}" for part, names in parts.items())
    logger.warning("%s is not a family described here. Guessed from its modules: %s", kind, shown)
    media = tuple(media for media, part in (("image", "vision"), ("audio", "audio")) if part in parts)
    return Family(kind, kind, parts, media)


def _branches(model: nn.Module) -> list[str]:
    """Names of the top modules: those of the model, or of the model that it wraps."""
    names = []
    for name, child in model.named_children():
        inner = [f"{name}.{leaf}" for leaf, _ in child.named_children()]
        inner += [f"{name}.{leaf}" for leaf, _ in child.named_parameters(recurse=False)]
        names += inner if name in ("model", "thinker") and inner else [name]
    return names


def linear_names(model: nn.Module, parts: Parts) -> dict[str, tuple[str, ...]]:
    """For each part the last names of its linear layers (`q_proj`, `fc1`, ...), which adapters target."""
    names_by_part: dict[str, dict[str, None]] = {part: {} for part in parts}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            for part, prefixes in parts.items():
                if any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes):
                    names_by_part[part][name.rpartition(".")[2]] = None
    return {part: tuple(names) for part, names in names_by_part.items()}
