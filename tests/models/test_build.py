"""A model built from nothing is an ordinary transformers checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForMultimodalLM, AutoTokenizer, GotOcr2ImageProcessorPil

from mllm_tailor.models.bundled.build import build_tokenizer, tokens_per_tile
from mllm_tailor.models.chat_template_builder import SPECIAL_TOKENS
from mllm_tailor.models.inputs.internvl_processor import InternVLProcessor


def test_every_byte_is_a_token_and_comes_back() -> None:
    tokenizer = build_tokenizer()
    assert len(tokenizer) == 256 + len(SPECIAL_TOKENS)
    text = "RM 12.50 é 总计 😀\n\t\x00 ￥"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_plain_transformers_opens_the_folder(tiny_model_folder: Path) -> None:
    model = AutoModelForMultimodalLM.from_pretrained(tiny_model_folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    assert tokenizer.context_image_token_id == model.config.image_token_id
    assert isinstance(AutoImageProcessor.from_pretrained(tiny_model_folder), GotOcr2ImageProcessorPil)
    stated = json.loads((tiny_model_folder / "processor_config.json").read_text())
    assert stated["processor_class"] == "InternVLProcessor"
    assert stated["video_processor"]["size"] == stated["image_processor"]["size"]


def test_the_processor_alone_feeds_the_model(tiny_model_folder: Path) -> None:
    processor = InternVLProcessor.from_pretrained(tiny_model_folder)
    model = AutoModelForMultimodalLM.from_pretrained(tiny_model_folder)
    picture = {"type": "image", "image": Image.new("RGB", (100, 50), "red")}
    messages = [
        {"role": "user", "content": [picture, {"type": "text", "text": "Total?"}]},
        {"role": "assistant", "content": "9.00"},
    ]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    answer = inputs["input_ids"][0][inputs.pop("assistant_masks")[0].bool()]
    assert processor.tokenizer.decode(answer) == "9.00<|im_end|>"
    assert inputs["pixel_values"].shape == (3, 3, 56, 56)  # two tiles and the thumbnail
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()


def test_tokens_per_tile() -> None:
    assert [tokens_per_tile(size) for size in (448, 224, 56)] == [256, 64, 4]
    with pytest.raises(ValueError, match="even number of patches"):
        tokens_per_tile(70)
