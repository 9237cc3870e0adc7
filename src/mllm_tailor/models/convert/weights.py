"""Map the weights of an original InternVL checkpoint to native names, and split fused weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from mllm_tailor.core.errors import ModelError
from mllm_tailor.models.checkpoint import read_header, weight_files

LORA_SCALE = 2.0  # the original trainer always sets alpha to twice the rank

RENAMES: tuple[tuple[str, str], ...] = (
    (r"vision_model\.embeddings\.class_embedding", "model.vision_tower.embeddings.cls_token"),
    (r"vision_model\.embeddings\.position_embedding", "model.vision_tower.embeddings.position_embeddings"),
    (r"vision_model\.embeddings\.patch_embedding\.", "model.vision_tower.embeddings.patch_embeddings.projection."),
    (
        r"vision_model\.encoder\.layers\.(\d+)\.attn\.proj\.",
        r"model.vision_tower.encoder.layer.\1.attention.projection_layer.",
    ),
    (
        r"vision_model\.encoder\.layers\.(\d+)\.attn\.([qk]_norm)\.",
        r"model.vision_tower.encoder.layer.\1.attention.\2.",
    ),
    (r"vision_model\.encoder\.layers\.(\d+)\.ls([12])", r"model.vision_tower.encoder.layer.\1.lambda_\2"),
    (r"vision_model\.encoder\.layers\.(\d+)\.norm1\.", r"model.vision_tower.encoder.layer.\1.layernorm_before."),
    (r"vision_model\.encoder\.layers\.(\d+)\.norm2\.", r"model.vision_tower.encoder.layer.\1.layernorm_after."),
    (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.(fc[12])\.", r"model.vision_tower.encoder.layer.\1.mlp.\2."),
    (r"mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"mlp1\.3\.", "model.multi_modal_projector.linear_2."),
)
INTERNLM2_RENAMES: tuple[tuple[str, str], ...] = (
    (r"language_model\.model\.tok_embeddings\.", "model.language_model.embed_tokens."),
    (r"language_model\.output\.", "lm_head."),
    (r"language_model\.model\.layers\.(\d+)\.attention\.wo\.", r"model.language_model.layers.\1.self_attn.o_proj."),
    (r"language_model\.model\.layers\.(\d+)\.feed_forward\.w1\.", r"model.language_model.layers.\1.mlp.gate_proj."),
    (r"language_model\.model\.layers\.(\d+)\.feed_forward\.w3\.", r"model.language_model.layers.\1.mlp.up_proj."),
    (r"language_model\.model\.layers\.(\d+)\.feed_forward\.w2\.", r"model.language_model.layers.\1.mlp.down_proj."),
    (r"language_model\.model\.layers\.(\d+)\.attention_norm\.", r"model.language_model.layers.\1.input_layernorm."),
    (r"language_model\.model\.layers\.(\d+)\.ffn_norm\.", r"model.language_model.layers.\1.post_attention_layernorm."),
    (r"language_model\.model\.norm\.", "model.language_model.norm."),
)
VISION_QKV = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.attn\.qkv\.(weight|bias)")
LANGUAGE_QKV = re.compile(r"language_model\.model\.layers\.(\d+)\.attention\.wqkv\.(weight|bias)")
COMPUTED = re.compile(r".*rotary_emb\.inv_freq")  # stored by old versions; computed from the configuration

Split = Callable[[Tensor], list[Tensor]]


def thirds(stored: Tensor) -> list[Tensor]:
    """Queries, keys, values of the vision tower: (3 width, ...) stacked."""
    return list(stored.chunk(3))


def grouped(config: Mapping[str, Any]) -> Split:
    """Queries, keys, values of InternLM2: rows are (key-value heads, queries of the group + key + value, width)."""
    groups = config.get("num_key_value_heads") or config["num_attention_heads"]
    queries = config["num_attention_heads"] // groups

    def split(stored: Tensor) -> list[Tensor]:
        rest = stored.shape[1:]
        rows = stored.reshape(groups, queries + 2, -1, *rest)
        parts = (rows[:, :queries], rows[:, queries], rows[:, queries + 1])
        return [part.reshape(-1, *rest) for part in parts]

    return split


def destinations(name: str, llm: Mapping[str, Any], language: str) -> tuple[list[str], Split | None]:
    """Native names of an original weight, in the order of the split; no names: the weight is not needed.

    Raises:
        KeyError: for a name that is not in this layout.
    """
    if COMPUTED.fullmatch(name):
        return [], None
    if match := VISION_QKV.fullmatch(name):
        attention = f"model.vision_tower.encoder.layer.{match[1]}.attention"
        return [f"{attention}.{letter}_proj.{match[2]}" for letter in "qkv"], thirds
    internlm2 = language == "InternLM2ForCausalLM"
    if internlm2 and (match := LANGUAGE_QKV.fullmatch(name)):
        return [
            f"model.language_model.layers.{match[1]}.self_attn.{letter}_proj.{match[2]}" for letter in "qkv"
        ], grouped(llm)
    if not internlm2 and name.startswith(("language_model.model.", "language_model.lm_head.")):
        inner = name.removeprefix("language_model.")  # the other language models use the native names
        return [inner.replace("model.", "model.language_model.", 1) if inner.startswith("model.") else inner], None
    for pattern, replacement in RENAMES + (INTERNLM2_RENAMES if internlm2 else ()):
        renamed, count = re.subn("^" + pattern, replacement, name)
        if count:
            return [renamed], None
    raise KeyError(name)


@dataclass(frozen=True)
class Stored:
    """A weight on disk; `low_rank` names its two LoRA factors, if it has any."""

    name: str  # in the file
    shape: tuple[int, ...]
    low_rank: tuple[str, str] | None = None


class Source:
    """The weights of a folder by their plain names; LoRA factors are merged when a weight is read."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(weight_files(folder)):
            for name, entry in read_header(file).items():
                self.files[name] = file
                shapes[name] = tuple(entry["shape"])
        factors = {name for name in shapes if ".lora_" in name}
        self.weights: dict[str, Stored] = {}
        for name in sorted(shapes.keys() - factors):
            pair = _factors_of(name)
            present = factors.intersection(pair)
            if len(present) == 1:
                raise ModelError(f"{folder}: {present.pop()} has no partner — this checkpoint is incomplete")
            self.weights[plain_name(name)] = Stored(name, shapes[name], pair if present else None)
        claimed = {factor for stored in self.weights.values() for factor in stored.low_rank or ()}
        if unmatched := factors - claimed:
            raise ModelError(f"{folder}: {min(unmatched)} belongs to no weight — this checkpoint is incomplete")

    def read(self, name: str) -> Tensor:
        """Read a weight, with its LoRA factors merged."""
        stored = self.weights[name]
        weight = self._tensor(stored.name)
        if stored.low_rank:
            down, up = (self._tensor(factor).float() for factor in stored.low_rank)
            weight = (weight.float() + LORA_SCALE * (up @ down)).to(weight.dtype)
        return weight

    def _tensor(self, name: str) -> Tensor:
        with safe_open(self.files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor


def _factors_of(name: str) -> tuple[str, str]:
    """The names of the LoRA factors of a weight."""
    stem = re.sub(r"(\.base_layer)?\.weight$", "", name)
    return f"{stem}.lora_A.default.weight", f"{stem}.lora_B.default.weight"


def plain_name(name: str) -> str:
    """The name without the infixes of PEFT."""
    return name.replace(".base_model.model.", ".").replace(".base_layer.", ".")
