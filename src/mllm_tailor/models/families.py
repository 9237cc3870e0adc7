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

Parts = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Family:
    """A kind of model: where its parts lie, what it takes, and how its processor's numbers are batched.

    `parts` maps a part (vision, projector, language, audio, head) to the prefixes of its module and weight names.
    """

    name: str  # `model_type` in config.json
    title: str  # the models people know it by
    parts: Parts
    media: tuple[str, ...] = ("image",)
    tiled: bool = False  # read by our own tiles rather than by the processor of transformers
    token_wise: tuple[str, ...] = ()  # inputs with one entry a token, which grow with the answer and are padded with it
    reply_kind: int = 0  # the kind (`token_type_ids`) of an answer's tokens
    per_sample: bool = False  # pictures are batched sample by sample, so samples without any need empty ones
    blanks: bool = False  # samples without pictures would see the empty ones of their batch; see `blanks`
    compares: bool = False  # pictures with texts, each as one vector; such a family writes nothing
    fills_text: bool = False  # texts are filled up to the longest one possible, and no mask tells where they end
    clips: str = ""  # the video processor of transformers whose way of reading frames is followed; see `frames`
    processor: str | None = None  # its class, where transformers does not tell it from the name
    own: Mapping[str, str] = field(default_factory=dict)  # parts of the processor read by our code, "module:attribute"
    template: str | None = None  # the chat template of checkpoints that have none
    template_first: bool = False  # it stands in for the checkpoint's own, which knows no media
    idle: tuple[str, ...] = ()  # modules that no reply depends on: in no part, and never packed
    left: tuple[str, ...] = ()  # folders of a checkpoint that hold adapters of its own, which are not applied
    apart: bool = False  # the native class would mix the samples of a batch; see `apart`
    inner: str | None = None  # the model inside the checkpoint that reads and writes text
    vllm: Literal["adapter", "merged", ""] = ""  # what vLLM serves, by its own list of July 2026 (docs/models.md)
    note: str = ""  # what a user must know
    linear_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # filled in from the opened model

    @property
    def supports(self) -> dict[str, str]:
        """What it can do, as tables show it. QLoRA and merging are tested for every family alike."""
        reads = {name: "yes" if kind in self.media else "—" for kind, name in SHOWN.items()}
        return reads | {"QLoRA": "yes", "merge": "yes", "vLLM": self.vllm or "—"}


SHOWN = {"image": "pictures", "video": "clips", "audio": "recordings"}

# Where almost all native classes keep their parts; adapters and freezing work by these names.
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
PHI_PICTURES, PHI_SOUNDS = "model.embed_tokens_extend.image_embed", "model.embed_tokens_extend.audio_embed"
PHI: Parts = {
    "vision": tuple(f"{PHI_PICTURES}.img_processor.{name}" for name in ("embeddings", "encoder", "post_layernorm")),
    "audio": (f"{PHI_SOUNDS}.encoder",),
    "projector": (
        *(f"{PHI_PICTURES}.img_projection_{way}" for way in ("up", "down")),
        *(f"{PHI_PICTURES}.{name}_img_feature_extensor" for name in ("global", "sub")),
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
# The layers that pool a picture. The attention among them reads its weights itself, past any adapter, so its output
# layer is named by its weights: it can be trained, but no adapter aims at it.
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
PAIRS_ONLY = "compares pictures with texts and writes none"

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
        Family("qwen2_vl", "Qwen2-VL", QWEN, SEEN, token_wise=TYPES, clips="Qwen2VLVideoProcessor", vllm="adapter"),
        Family("qwen2_5_vl", "Qwen2.5-VL", QWEN, SEEN, token_wise=TYPES, clips="Qwen2VLVideoProcessor", vllm="adapter"),
        Family("qwen3_vl", "Qwen3-VL", QWEN, SEEN, token_wise=TYPES, clips="Qwen3VLVideoProcessor", vllm="adapter"),
        Family(
            "qwen2_5_omni",
            "Qwen2.5-Omni",
            OMNI,
            (*SEEN, "audio"),
            token_wise=TYPES,
            clips="Qwen2VLVideoProcessor",
            inner="thinker",
            vllm="adapter",
            note="its thinker alone is opened and saved: it reads pictures, clips and speech and writes text",
        ),
        Family(
            "qwen2_5_omni_thinker",
            "Qwen2.5-Omni, thinker",
            OMNI,
            (*SEEN, "audio"),
            token_wise=TYPES,
            clips="Qwen2VLVideoProcessor",
            processor="Qwen2_5OmniProcessor",
            vllm="adapter",
        ),
        Family("llava", "LLaVA 1.5", USUAL, vllm="adapter"),
        Family("vipllava", "ViP-LLaVA", USUAL),
        Family("llava_next", "LLaVA-NeXT", NEWLINE, vllm="adapter"),
        Family(
            "llava_onevision", "LLaVA-OneVision", NEWLINE, SEEN, clips="LlavaOnevisionVideoProcessor", vllm="merged"
        ),
        Family(
            "llava_next_video",
            "LLaVA-NeXT-Video",
            NEWLINE | {"projector": (*NEWLINE["projector"], "model.vision_resampler")},
            SEEN,
            clips="LlavaNextVideoVideoProcessor",
            vllm="adapter",
        ),
        Family(
            "video_llava",
            "Video-LLaVA",
            USUAL | {"vision": ("model.image_tower", "model.video_tower")},
            SEEN,
            clips="VideoLlavaVideoProcessor",
            note="trained on 8 frames of a clip",
        ),
        Family(
            "glm4v",
            "GLM-4.1V",
            GLM,
            SEEN,
            token_wise=TYPES,
            clips="Glm4vVideoProcessor",
            vllm="adapter",
            note="rows with pictures and rows with clips do not go into one batch",
        ),
        Family(
            "smolvlm",
            "SmolVLM2",
            IDEFICS,
            SEEN,
            per_sample=True,
            clips="SmolVLMVideoProcessor",
            vllm="adapter",
            note="needs the num2words package; a row has pictures or a clip, not both",
        ),
        Family("idefics3", "Idefics3, SmolVLM", IDEFICS, per_sample=True, vllm="adapter"),
        Family(
            "paligemma",
            "PaliGemma",
            USUAL,
            token_wise=("token_type_ids",),
            # Tokens of kind 0 see each other both ways: an answer of that kind would be read before it is given.
            reply_kind=1,
            template=PALIGEMMA,
            vllm="adapter",
            note="every row needs a picture",
        ),
        Family("gemma3", "Gemma 3", USUAL, token_wise=("token_type_ids",), vllm="adapter"),
        Family(
            "mllama",
            "Llama 3.2 Vision",
            USUAL | {"vision": ("model.vision_model",)},
            token_wise=("cross_attention_mask",),
            per_sample=True,
            blanks=True,
        ),
        Family("qwen2_audio", "Qwen2-Audio", AUDIO, ("audio",), vllm="merged"),
        Family(
            "granite_speech",
            "Granite Speech",
            AUDIO | {"audio": ("model.encoder",), "projector": ("model.projector",)},
            ("audio",),
            own={"audio_processor": "mllm_tailor.models.inputs.granite_speech:SpeechFeatures"},
            vllm="adapter",
        ),
        Family(
            "voxtral",
            "Voxtral",
            AUDIO,
            ("audio",),
            processor="mllm_tailor.models.inputs.voxtral:VoxtralProcessor",
            own={"tokenizer": "mllm_tailor.models.inputs.voxtral:read_tokenizer"},
            template=VOXTRAL,
            template_first=True,
            note="asked in words, as in a conversation; its separate mode for transcripts is not used",
        ),
        Family(
            "phi4_multimodal",
            "Phi-4-multimodal (native layout: revision refs/pr/70)",
            PHI,
            ("image", "audio"),
            own={
                "image_processor": "mllm_tailor.models.inputs.phi4:DynamicCrops",
                "audio_processor": "mllm_tailor.models.inputs.phi4:SpeechFrames",
            },
            template=PHI4,
            template_first=True,
            idle=(f"{PHI_PICTURES}.img_processor.head",),
            left=("vision-lora", "speech-lora"),
            apart=True,
            note="its own adapters (vision-lora, speech-lora) are not applied; see below",
        ),
        Family("clip", "CLIP", PAIR, compares=True, note=PAIRS_ONLY),
        Family("siglip", "SigLIP, SigLIP 2 of fixed size", SIGLIP, compares=True, fills_text=True, note=PAIRS_ONLY),
    )
}

# What a user may look for here, and why it is not there.
NOT_HERE = {
    "CogVLM2": "exists only as its own remote code",
    "Phi-3-Vision": "exists only as its own remote code",
}

# Model types of layouts that work with their own code alone, and what to do instead.
OTHER_LAYOUTS = {
    "phi4mm": "the first layout of Phi-4-multimodal — name revision refs/pr/70, which holds the native one",
    "phi3_v": f"Phi-3-Vision, which {NOT_HERE['Phi-3-Vision']} — take Phi-4-multimodal, revision refs/pr/70",
    "cogvlm2": f"CogVLM2, which {NOT_HERE['CogVLM2']} — take GLM-4.1V, by the same people",
}

# Words in module names that tell a part, for families nobody described.
SIGNS = {
    "audio": ("audio", "speech"),
    "projector": ("projector", "connector", "merger", "resampler", "newline", "aligner"),
    "vision": ("vision", "visual", "image", "video"),
    "head": ("lm_head",),
    "language": ("language", "text", "layers", "embed_tokens", "norm"),
}


def guess_family(kind: str, model: nn.Module) -> Family:
    """A family by the look of its modules, with a warning that says what was guessed."""
    parts: dict[str, tuple[str, ...]] = {}
    for name in _branches(model):
        leaf = name.rpartition(".")[2]
        part = next((part for part, signs in SIGNS.items() if any(sign in leaf for sign in signs)), None)
        if part:
            parts[part] = (*parts.get(part, ()), name)
    if "language" not in parts:
        raise ModelError(f"{kind}: no language model found among its modules — this kind of model is not supported")
    shown = "; ".join(f"{part}: {', '.join(names)}" for part, names in parts.items())
    logger.warning("%s is not a family described here. Guessed from its modules: %s", kind, shown)
    media = tuple(media for media, part in (("image", "vision"), ("audio", "audio")) if part in parts)
    return Family(kind, kind, parts, media)


def _branches(model: nn.Module) -> list[str]:
    """Names of the big modules: those of the model, or of what it merely wraps."""
    names = []
    for name, child in model.named_children():
        inner = [f"{name}.{leaf}" for leaf, _ in child.named_children()]
        inner += [f"{name}.{leaf}" for leaf, _ in child.named_parameters(recurse=False)]
        names += inner if name in ("model", "thinker") and inner else [name]
    return names


def linear_names(model: nn.Module, parts: Parts) -> dict[str, tuple[str, ...]]:
    """For each part the last names of its linear layers (`q_proj`, `fc1`, ...), which is what adapters aim at."""
    found: dict[str, dict[str, None]] = {part: {} for part in parts}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            for part, prefixes in parts.items():
                if any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes):
                    found[part][name.rpartition(".")[2]] = None
    return {part: tuple(names) for part, names in found.items()}
