"""Build an untrained native InternVL: configuration, random weights, byte tokenizer, processor, chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from mllm_tailor.models.chat_template_builder import INTERNVL_TOKENS, PAD, SPECIAL_TOKENS, TURN_END, build_chat_template
from mllm_tailor.models.inputs.internvl_processor import IMAGENET_MEAN, IMAGENET_STD, InternVLProcessor


def build_tokenizer(
    special: Sequence[str] = SPECIAL_TOKENS, named: Mapping[str, str] = INTERNVL_TOKENS, **options: str
) -> PreTrainedTokenizerFast:
    """One token for each of the 256 byte values, then the special tokens; no merges, so no text is unknown."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # the printable letter that stands for each byte
    core = Tokenizer(BPE({letter: number for number, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=TURN_END,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens=dict(named),
        **options,
    )


def build_processor(  # noqa: PLR0913
    tokenizer: PreTrainedTokenizerBase,
    image_size: int = 448,
    patch_size: int = 14,
    *,
    min_tiles: int = 1,
    max_tiles: int = 12,
    thumbnail: bool = True,
    template: str | None = None,
    downsample: float = 0.5,
    frame_text: str = "Frame{}: ",
    reflow: bool = False,
) -> InternVLProcessor:
    """A processor that cuts images into tiles of `image_size` pixels, with ImageNet statistics.

    `reflow` states that the model reads pages whose lines are set one after the other (`media.reflow`).
    """
    image_processor = GotOcr2ImageProcessorPil(
        size={"height": image_size, "width": image_size},
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
        crop_to_patches=True,
        min_patches=min_tiles,
        max_patches=max_tiles,
    )
    return InternVLProcessor(
        image_processor,
        tokenizer,
        image_seq_length=tokens_per_tile(image_size, patch_size, downsample),
        use_thumbnail=thumbnail,
        frame_text=frame_text,
        reflow=reflow,
        chat_template=template or build_chat_template(),
    )


def tokens_per_tile(image_size: int, patch_size: int = 14, downsample: float = 0.5) -> int:
    """Language tokens of a square tile: its patches, after pixel shuffle has joined 2x2 of them.

    >>> tokens_per_tile(448)
    256
    """
    side = image_size // patch_size
    if image_size % patch_size or (side * downsample) % 1:
        raise ValueError(f"{image_size} pixels do not divide into an even number of patches of {patch_size}")
    return int(side * downsample) ** 2


def build_internvl(  # noqa: PLR0913
    tokenizer: PreTrainedTokenizerFast,
    *,
    vision_width: int,
    vision_layers: int,
    text_width: int,
    text_layers: int,
    image_size: int = 448,
    patch_size: int = 14,
    head_width: int = 64,
    key_value_heads: int | None = None,
    text_expansion: float = 8 / 3,
    max_length: int = 8192,
    tie_embeddings: bool = True,
) -> InternVLForConditionalGeneration:
    """A random InternVL: InternViT tower, pixel shuffle, two-layer projector, Qwen2 language model.

    Widths are in channels, `image_size` and `patch_size` in pixels; heads are `head_width` channels wide.
    """
    vision = InternVLVisionConfig(
        hidden_size=vision_width,
        num_hidden_layers=vision_layers,
        num_attention_heads=max(1, vision_width // head_width),
        intermediate_size=4 * vision_width,
        attention_bias=True,
        image_size=[image_size, image_size],
        patch_size=[patch_size, patch_size],
    )
    heads = max(1, text_width // head_width)
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=text_width,
        num_hidden_layers=text_layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads or heads,
        intermediate_size=round(text_expansion * text_width / 16) * 16,
        max_position_embeddings=max_length,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=tie_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=tokenizer.context_image_token_id,
            image_seq_length=tokens_per_tile(image_size, patch_size),
            tie_word_embeddings=tie_embeddings,
        )
    )
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id], pad_token_id=tokenizer.pad_token_id
    )
    return model


def save(model: InternVLForConditionalGeneration, processor: InternVLProcessor, folder: Path) -> None:
    """Write weights (safetensors), configuration, tokenizer, processor and template as transformers reads them."""
    model.save_pretrained(folder, save_original_format=False)  # see save.save_model
    processor.save_pretrained(folder)
