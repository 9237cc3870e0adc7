"""A tiny random checkpoint of every family, built offline through the real classes of transformers."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForMultimodalLM, PreTrainedTokenizerFast

from mllm_tailor.models.bundled.build import build_tokenizer
from mllm_tailor.models.chat_template_builder import PAD, TURN_END, TURN_START, build_chat_template
from mllm_tailor.models.families import FAMILIES
from mllm_tailor.models.inputs.granite_speech import SpeechFeatures
from mllm_tailor.models.inputs.hf_processor import with_frames
from mllm_tailor.models.inputs.phi4 import DynamicCrops, SpeechFrames
from mllm_tailor.models.inputs.video_processor import FrameReader
from mllm_tailor.models.inputs.voxtral import VoxtralProcessor, read_tokenizer

QWEN2 = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
SIGLIP = CLIP | {"model_type": "siglip_vision_model"}
LLAMA_TEXT = QWEN2 | {"model_type": "llama"}
QWEN_TEXT = QWEN2 | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}


@dataclass(frozen=True)
class Recipe:
    """How to make one family small: its tokens, configuration, processor parts and placeholders."""

    config: Callable[[PreTrainedTokenizerFast], dict[str, Any]]
    processor: Callable[[PreTrainedTokenizerFast, str], Any]
    special: tuple[str, ...] = ("<image>", "<video>")
    named: dict[str, str] = field(default_factory=dict)
    media: dict[str, str] = field(default_factory=lambda: {"image": "<image>\n", "video": "<video>\n"})
    clips: dict[str, Any] = field(default_factory=dict)  # settings of the video processor
    tokens: Callable[[], PreTrainedTokenizerFast] | None = None  # where the usual small one will not do


def made(name: str, template: str, **parts: Any) -> Any:
    """A processor whose video part reads nothing yet; see `write_family`."""
    kind = getattr(transformers, name)
    held = {"video_processor": FrameReader("", None, {})} if "video_processor" in kind.get_attributes() else {}
    processor = with_frames(kind)(**held, **parts)
    processor.chat_template = template
    return processor


def small_clip(**changes: Any) -> Any:
    return transformers.CLIPImageProcessorPil(
        **({"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}} | changes)
    )


def qwen_recipe(kind: str, vision: dict[str, Any], text: dict[str, Any], patch: int = 14) -> Recipe:
    special = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

    def config(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
        names = ("vision_start", "vision_end", "image", "video")
        ids = dict(zip(names, tokens.convert_tokens_to_ids(list(special)), strict=True))
        return {"vision_config": vision, "text_config": text} | {f"{name}_token_id": ids[name] for name in names}

    def processor(tokens: PreTrainedTokenizerFast, template: str) -> Any:
        name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[kind]
        pictures = transformers.Qwen2VLImageProcessorPil(
            patch_size=patch, size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84}
        )
        return made(f"{name}Processor", template, image_processor=pictures, tokenizer=tokens)

    placeholders = {name: f"<|vision_start|><|{name}_pad|><|vision_end|>" for name in ("image", "video")}
    budget = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56 * (6 if kind == "qwen3_vl" else 1)}
    return Recipe(config, processor, special, media=placeholders, clips={"size": budget})


def llava_config(text: dict[str, Any], vision: dict[str, Any], **more: Any) -> Callable[..., dict[str, Any]]:
    def config(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
        names = {"image_token_index": "<image>", "image_token_id": "<image>", "video_token_index": "<video>"}
        ids = {name: tokens.convert_tokens_to_ids(token) for name, token in names.items()}
        return {"text_config": text, "vision_config": vision, "vision_feature_layer": -2, **ids, **more}

    return config


GRID = [[28, 28], [28, 56], [56, 28], [56, 56]]
CLIP_VISION = CLIP | {"model_type": "clip_vision_model", "projection_dim": 16}


def anyres(name: str, **more: Any) -> Callable[..., Any]:
    def processor(tokens: PreTrainedTokenizerFast, template: str) -> Any:
        pictures = transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=GRID
        )
        options = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        return made(name, template, image_processor=pictures, tokenizer=tokens, **(options | more))

    return processor


def onevision(tokens: PreTrainedTokenizerFast, template: str) -> Any:
    pictures = transformers.LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=GRID)
    options = {"num_image_tokens": 4, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"}
    return made("LlavaOnevisionProcessor", template, image_processor=pictures, tokenizer=tokens, **options)


def plain(name: str) -> Callable[..., Any]:
    def processor(tokens: PreTrainedTokenizerFast, template: str) -> Any:
        options = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        return made(name, template, image_processor=small_clip(), tokenizer=tokens, **options)

    return processor


def video_llava(tokens: PreTrainedTokenizerFast, template: str) -> Any:
    pictures = transformers.VideoLlavaImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return made("VideoLlavaProcessor", template, image_processor=pictures, tokenizer=tokens, patch_size=14)


def idefics(name: str, pictures: str) -> Callable[..., Any]:
    def processor(tokens: PreTrainedTokenizerFast, template: str) -> Any:
        reader = getattr(transformers, pictures)(
            size={"longest_edge": 112}, max_image_size={"longest_edge": 56}, do_image_splitting=True
        )
        return made(name, template, image_processor=reader, tokenizer=tokens, image_seq_len=4)

    return processor


def idefics_config(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
    vision = CLIP | {"image_size": 56}
    return {
        "vision_config": vision,
        "text_config": LLAMA_TEXT | {"pad_token_id": 256},
        "scale_factor": 2,
        "image_token_id": tokens.convert_tokens_to_ids("<image>"),
        "tie_word_embeddings": False,
    }


ROWS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
IDEFICS_TOKENS = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *ROWS)


def gemma3_config(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "text_config": QWEN2 | {"head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8},
        "vision_config": SIGLIP | {"vision_use_head": False},
        "mm_tokens_per_image": 4,
        "image_token_id": tokens.convert_tokens_to_ids("<image_soft_token>"),
        "image_token_index": tokens.convert_tokens_to_ids("<image_soft_token>"),
        "boi_token_index": tokens.convert_tokens_to_ids("<start_of_image>"),
        "eoi_token_index": tokens.convert_tokens_to_ids("<end_of_image>"),
    }


def gemma3(tokens: PreTrainedTokenizerFast, template: str) -> Any:
    pictures = transformers.Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    return made("Gemma3Processor", template, image_processor=pictures, tokenizer=tokens, image_seq_length=4)


def paligemma_config(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "text_config": QWEN2 | {"model_type": "gemma", "head_dim": 8, "vocab_size": 2000},
        "vision_config": SIGLIP | {"vision_use_head": False, "projection_dim": 32},
        "image_token_index": tokens.convert_tokens_to_ids("<image>"),
        "image_token_id": tokens.convert_tokens_to_ids("<image>"),
        "projection_dim": 32,
        "hidden_size": 32,
    }


def paligemma(tokens: PreTrainedTokenizerFast, template: str) -> Any:
    pictures = transformers.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    pictures.image_seq_length = 4
    return made("PaliGemmaProcessor", template, image_processor=pictures, tokenizer=tokens)


def glm4v_config(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
    names = {"image": "<|image|>", "video": "<|video|>"}
    edges = {
        f"{name}_{end}": f"<|{word}_of_{name}|>" for name in names for end, word in (("start", "begin"), ("end", "end"))
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "image_size": 56,
        "patch_size": 14,
    }
    ids = {f"{name}_token_id": tokens.convert_tokens_to_ids(token) for name, token in (names | edges).items()}
    text = QWEN_TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    return {"vision_config": vision, "text_config": text | {"pad_token_id": 256}, **ids}


def glm4v(tokens: PreTrainedTokenizerFast, template: str) -> Any:
    pictures = transformers.Glm4vImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84})
    return made("Glm4vProcessor", template, image_processor=pictures, tokenizer=tokens)


def mllama_config(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
    vision = {
        "hidden_size": 32,
        "attention_heads": 2,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "intermediate_size": 48,
        "image_size": 28,
        "patch_size": 14,
        "max_num_tiles": 4,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 96,
        "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    }
    text = QWEN2 | {
        "cross_attention_layers": [1],
        "pad_token_id": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
    return {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": tokens.convert_tokens_to_ids("<|image|>"),
        "image_token_id": tokens.convert_tokens_to_ids("<|image|>"),
    }


def mllama(tokens: PreTrainedTokenizerFast, template: str) -> Any:
    pictures = transformers.MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=4)
    return made("MllamaProcessor", template, image_processor=pictures, tokenizer=tokens)


def qwen2_audio_config(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
    audio = {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "num_mel_bins": 16,
    }
    return {
        "audio_config": audio,
        "text_config": QWEN2 | {"model_type": "qwen2"},
        "audio_token_index": tokens.convert_tokens_to_ids("<|AUDIO|>"),
        "audio_token_id": tokens.convert_tokens_to_ids("<|AUDIO|>"),
    }


def qwen2_audio(tokens: PreTrainedTokenizerFast, template: str) -> Any:
    reader = transformers.WhisperFeatureExtractor(feature_size=16)
    return made("Qwen2AudioProcessor", template, feature_extractor=reader, tokenizer=tokens)


def granite_config(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "text_config": QWEN2 | {"model_type": "granite"},
        "encoder_config": {
            "input_dim": 160,
            "num_layers": 2,
            "hidden_dim": 32,
            "num_heads": 2,
            "dim_head": 16,
            "output_dim": 16,
            "context_size": 50,
        },
        "projector_config": {
            "model_type": "blip_2_qformer",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "encoder_hidden_size": 32,
        },
        "audio_token_index": tokens.convert_tokens_to_ids("<|audio|>"),
        "has_lora_adapter": False,
    }


def granite(tokens: PreTrainedTokenizerFast, template: str) -> Any:
    reader = SpeechFeatures()
    return made("GraniteSpeechProcessor", template, audio_processor=reader, tokenizer=tokens)


OMNI_TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}


def omni_config(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The thinker; `write_family` puts it where the whole checkpoint has it."""
    ids = {name: tokens.convert_tokens_to_ids(token) for name, token in OMNI_TOKENS.items()}
    audio = {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "num_mel_bins": 16,
        "output_dim": 32,
        "n_window": 100,
    }
    return {
        "audio_config": audio,
        "vision_config": QWEN25_VISION,
        "text_config": QWEN_TEXT,
        "image_token_index": ids["image_token"],
        "image_token_id": ids["image_token"],
        "audio_token_index": ids["audio_token"],
        "audio_token_id": ids["audio_token"],
        "video_token_index": ids["video_token"],
        "video_token_id": ids["video_token"],
        "audio_start_token_id": ids["audio_bos_token"],
        "audio_end_token_id": ids["audio_eos_token"],
        "vision_start_token_id": ids["vision_bos_token"],
        "vision_end_token_id": ids["vision_eos_token"],
        "tie_word_embeddings": False,
    }


def omni(tokens: PreTrainedTokenizerFast, template: str) -> Any:
    pictures = transformers.Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84})
    reader = transformers.WhisperFeatureExtractor(feature_size=16)
    return made("Qwen2_5OmniProcessor", template, image_processor=pictures, feature_extractor=reader, tokenizer=tokens)


MISTRAL_TOKENS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
MISTRAL_TOKENS += ("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]")
MISTRAL_TOKENS += ("[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]")
MISTRAL_TOKENS += (*(f"<SPECIAL_{number}>" for number in range(20, 24)), "[AUDIO]", "[BEGIN_AUDIO]")
MISTRAL_TOKENS += (*(f"<SPECIAL_{number}>" for number in range(26, 34)), "[TRANSCRIBE]")
WORDS = (b"th", b"he", b" th", b"the", b" the", b"in", b"an", b"re", b"Hi", b"\xe6\x80", b"12")


def write_tekken(folder: Path) -> None:
    """A small vocabulary in the form of Voxtral's: bytes, a few words, control tokens before them."""
    words = [bytes([number]) for number in range(256)] + list(WORDS)
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(word).decode(), "token_str": word.decode("utf-8", "replace")}
        for rank, word in enumerate(words)
    ]
    special = [{"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(MISTRAL_TOKENS)]
    count = len(MISTRAL_TOKENS)
    config = {"pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+", "version": "v7"}
    config |= {"num_vocab_tokens": len(words), "default_vocab_size": len(words) + count}
    config |= {"default_num_special_tokens": count}
    frames = {"num_mel_bins": 16, "window_size": 400, "hop_length": 160}
    audio = {"sampling_rate": 16000, "frame_rate": 12.5, "audio_encoding_config": frames, "chunk_length_s": 30.0}
    file = {"config": config, "vocab": vocabulary, "special_tokens": special, "audio": audio}
    (folder / "tekken.json").write_text(json.dumps(file))


def tekken_tokens() -> PreTrainedTokenizerFast:
    with tempfile.TemporaryDirectory() as folder:
        write_tekken(Path(folder))
        return read_tokenizer(Path(folder))


def voxtral_config(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
    audio = {
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_mel_bins": 16,
    }
    return {
        "audio_config": audio | {"model_type": "voxtral_encoder"},
        "text_config": LLAMA_TEXT | {"head_dim": 8, "rope_theta": 1e4},
        "audio_token_id": tokens.convert_tokens_to_ids("[AUDIO]"),
    }


def voxtral(tokens: PreTrainedTokenizerFast, template: str) -> Any:
    reader = transformers.WhisperFeatureExtractor(feature_size=16)
    return with_frames(VoxtralProcessor)(feature_extractor=reader, tokenizer=tokens)


PHI_TURNS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|image|>", "<|audio|>")


def phi4_tokens() -> PreTrainedTokenizerFast:
    named = {"image_token": "<|image|>", "audio_token": "<|audio|>"}
    tokens = build_tokenizer((PAD, *PHI_TURNS), named, bos_token=PAD)
    tokens.eos_token = "<|end|>"
    return tokens


def phi4_config(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
    vision = CLIP | {"image_size": 56, "crop_size": 56, "image_token_id": tokens.image_token_id}
    audio = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_blocks": 2,
        "num_attention_heads": 2,
        "ext_pw_out_channel": 32,
        "depthwise_separable_out_channel": 32,
        "nemo_conv_channels": 8,
        "audio_token_id": tokens.audio_token_id,
    }
    ids = {"bos_token_id": 256, "pad_token_id": 256, "eos_token_id": [tokens.eos_token_id]}
    return QWEN2 | ids | {"vision_config": vision, "audio_config": audio, "original_max_position_embeddings": 4096}


def phi4(tokens: PreTrainedTokenizerFast, template: str) -> Any:
    pictures = DynamicCrops(size={"height": 56, "width": 56}, dynamic_hd=6)
    kind = with_frames(transformers.Phi4MultimodalProcessor)
    return kind(image_processor=pictures, audio_processor=SpeechFrames(), tokenizer=tokens)


QWEN2_VISION = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 14}
QWEN25_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 48,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
    "window_size": 56,
}
QWEN3_VISION = QWEN25_VISION | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16, "patch_size": 14}
SIGLIP_FULL = {
    "vision_feature_select_strategy": "full",
    "vision_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": GRID,
}

CUT = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, "do_center_crop": True}

RECIPES: dict[str, Recipe] = {
    "qwen2_vl": qwen_recipe("qwen2_vl", QWEN2_VISION, QWEN_TEXT),
    "qwen2_5_vl": qwen_recipe("qwen2_5_vl", QWEN25_VISION, QWEN_TEXT),
    "qwen3_vl": qwen_recipe("qwen3_vl", QWEN3_VISION, QWEN_TEXT | {"head_dim": 8}),
    "llava": Recipe(llava_config(LLAMA_TEXT, CLIP_VISION), plain("LlavaProcessor")),
    "vipllava": Recipe(
        llava_config(LLAMA_TEXT, CLIP_VISION, vision_feature_layers=[-2, -1], image_seq_length=4),
        plain("LlavaProcessor"),
    ),
    "llava_next": Recipe(
        llava_config(LLAMA_TEXT, CLIP_VISION, image_grid_pinpoints=GRID), anyres("LlavaNextProcessor")
    ),
    "llava_onevision": Recipe(
        llava_config(QWEN2 | {"model_type": "qwen2"}, SIGLIP | {"vision_use_head": False}, **SIGLIP_FULL),
        onevision,
        clips={"size": {"height": 28, "width": 28}},
    ),
    "llava_next_video": Recipe(
        llava_config(LLAMA_TEXT, CLIP_VISION, image_grid_pinpoints=GRID), anyres("LlavaNextVideoProcessor"), clips=CUT
    ),
    "video_llava": Recipe(llava_config(LLAMA_TEXT, CLIP_VISION), video_llava, clips=CUT),
    "glm4v": Recipe(
        glm4v_config,
        glm4v,
        (
            "<|image|>",
            "<|video|>",
            *(f"<|{word}_of_{name}|>" for name in ("image", "video") for word in ("begin", "end")),
        ),
        media={name: f"<|begin_of_{name}|><|{name}|><|end_of_{name}|>" for name in ("image", "video")},
        clips={"size": {"shortest_edge": 8 * 28 * 28, "longest_edge": 8 * 56 * 56}},
    ),
    "idefics3": Recipe(idefics_config, idefics("Idefics3Processor", "Idefics3ImageProcessorPil"), IDEFICS_TOKENS),
    "smolvlm": Recipe(
        idefics_config,
        idefics("SmolVLMProcessor", "SmolVLMImageProcessorPil"),
        (*IDEFICS_TOKENS, "<video>"),
        clips={"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}},
    ),
    "paligemma": Recipe(paligemma_config, paligemma, ("<image>",), {"image_token": "<image>"}, media={}),
    "gemma3": Recipe(
        gemma3_config,
        gemma3,
        ("<image_soft_token>", "<start_of_image>", "<end_of_image>"),
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        {"image": "<start_of_image>"},
    ),
    "mllama": Recipe(mllama_config, mllama, ("<|image|>", "<|python_tag|>"), media={"image": "<|image|>"}),
    "qwen2_audio": Recipe(
        qwen2_audio_config,
        qwen2_audio,
        ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
        media={"audio": "<|audio_bos|><|AUDIO|><|audio_eos|>\n"},
    ),
    "qwen2_5_omni_thinker": Recipe(
        omni_config,
        omni,
        tuple(OMNI_TOKENS.values()),
        OMNI_TOKENS,
        {
            "image": "<|vision_bos|><|IMAGE|><|vision_eos|>",
            "video": "<|vision_bos|><|VIDEO|><|vision_eos|>",
            "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
        },
    ),
    "granite_speech": Recipe(granite_config, granite, ("<|audio|>",), media={"audio": "<|audio|>"}),
    "voxtral": Recipe(voxtral_config, voxtral, media={}, tokens=tekken_tokens),
    "phi4_multimodal": Recipe(phi4_config, phi4, media={}, tokens=phi4_tokens),
}


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Weights large enough that a tiny model tells its inputs apart."""
    for weight in model.parameters():
        weight.copy_(torch.randn_like(weight) * (0.5 / weight.shape[-1] ** 0.5 if weight.dim() > 1 else 0.1))
        if weight.dim() == 1:
            weight.add_(1.0)


def write_family(folder: Path, kind: str) -> None:
    """A whole checkpoint of the family in `folder`."""
    recipe = RECIPES[kind]
    usual = partial(build_tokenizer, (PAD, TURN_START, TURN_END, *recipe.special), recipe.named, bos_token=PAD)
    tokens = (recipe.tokens or usual)()
    config = transformers.CONFIG_MAPPING[kind].from_dict({"model_type": kind, **recipe.config(tokens)})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForMultimodalLM.from_config(config)
        fill(model)
    model.generation_config.eos_token_id = tokens.eos_token_id
    model.generation_config.pad_token_id = tokens.pad_token_id
    model.save_pretrained(folder)
    template = build_chat_template(media=recipe.media) if recipe.media else None
    processor = recipe.processor(tokens, template)
    if FAMILIES[kind].clips:
        processor.video_processor = FrameReader(FAMILIES[kind].clips, processor.image_processor, recipe.clips)
    processor.save_pretrained(folder)
    if kind == "voxtral":  # whose folders have this one file for a tokenizer
        write_tekken(folder)
        (folder / "tokenizer.json").unlink()
