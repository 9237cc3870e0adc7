"""What an original InternVL checkpoint computes, in plain torch over its own weight names. Slow, short, independent.

Written from the layout's description, not from the product: it shares no code with it, so that a mistake in one shows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, interpolate, layer_norm, silu

Weights = dict[str, Tensor]
Config = dict[str, Any]


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    if f"{name}.lora_A.default.weight" in w:
        y = y + 2.0 * (x @ w[f"{name}.lora_A.default.weight"].T @ w[f"{name}.lora_B.default.weight"].T)
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """(heads, length, width) each; scores in the plain way."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        length = scores.shape[-1]
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
    return scores.softmax(-1) @ v


def heads(x: Tensor, count: int) -> Tensor:
    """(length, count * width) -> (count, length, width)."""
    return x.view(x.shape[0], count, -1).transpose(0, 1)


def joined(x: Tensor) -> Tensor:
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def vision_layers(pixels: Tensor, w: Weights, config: Config) -> list[Tensor]:
    """Hidden states (places + 1, width) of one tile before the first layer and after each."""
    c, base = config, "vision_model.embeddings"
    patch, weight = c["patch_size"], w[f"{base}.patch_embedding.weight"]
    windows = pixels.unfold(1, patch, patch).unfold(2, patch, patch)  # (3, rows, columns, patch, patch)
    rows, columns = windows.shape[1:3]
    flat = windows.permute(1, 2, 0, 3, 4).reshape(rows * columns, -1)
    x = flat @ weight.reshape(weight.shape[0], -1).T + w[f"{base}.patch_embedding.bias"]
    x = torch.cat([w[f"{base}.class_embedding"][0], x])
    places, side = w[f"{base}.position_embedding"][0], c["image_size"] // patch
    grid = places[1:].T.reshape(1, -1, side, side)
    if (rows, columns) != (side, side):
        grid = interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
    x = x + torch.cat([places[:1], grid.reshape(grid.shape[1], -1).T])
    states = [x]
    for layer in range(c["num_hidden_layers"]):
        x = x + w[f"vision_model.encoder.layers.{layer}.ls1"] * vision_attention(x, w, layer, c)
        base = f"vision_model.encoder.layers.{layer}"
        inner = gelu(linear(vision_norm(x, w, f"{base}.norm2", c), w, f"{base}.mlp.fc1"))
        x = x + w[f"{base}.ls2"] * linear(inner, w, f"{base}.mlp.fc2")
        states.append(x)
    return states


def vision_norm(x: Tensor, w: Weights, name: str, c: Config) -> Tensor:
    if c["norm_type"] == "rms_norm":
        return rms(x, w[f"{name}.weight"], c["layer_norm_eps"])
    return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], c["layer_norm_eps"])


def vision_attention(x: Tensor, w: Weights, layer: int, c: Config) -> Tensor:
    base = f"vision_model.encoder.layers.{layer}.attn"
    stacked = linear(vision_norm(x, w, f"vision_model.encoder.layers.{layer}.norm1", c), w, f"{base}.qkv")
    q, k, v = stacked.view(x.shape[0], 3, -1).unbind(1)
    if c["qk_normalization"]:
        q, k = (rms(t, w[f"{base}.{n}_norm.weight"], c["layer_norm_eps"]) for t, n in ((q, "q"), (k, "k")))
    count = c["num_attention_heads"]
    return linear(joined(attend(heads(q, count), heads(k, count), heads(v, count), causal=False)), w, f"{base}.proj")


def shuffle(x: Tensor, version: str) -> Tensor:
    """(rows, columns, width) -> (tokens, 4 width): each token joins a block of two by two places."""
    rows, columns, width = x.shape
    blocks = torch.empty(rows // 2, columns // 2, 4 * width)
    for r in range(rows // 2):
        for c in range(columns // 2):
            blocks[r, c] = torch.cat([x[2 * r + i, 2 * c + j] for i in (0, 1) for j in (0, 1)])
    if version == "v1":
        blocks = blocks.transpose(0, 1)
    return blocks.reshape(-1, 4 * width)


def image_features(pixels: Tensor, w: Weights, config: Config) -> Tensor:
    """(tiles, tokens, width of the language model)."""
    found = []
    for tile in pixels:
        x = vision_layers(tile, w, config["vision_config"])[config["select_layer"]][1:]
        side = math.isqrt(x.shape[0])
        x = shuffle(x.view(side, side, -1), config.get("ps_version", "v1"))
        x = layer_norm(x, x.shape[-1:], w["mlp1.0.weight"], w["mlp1.0.bias"], 1e-5)
        found.append(linear(gelu(linear(x, w, "mlp1.1")), w, "mlp1.3"))
    return torch.stack(found)


def angles(length: int, width: int, c: Config) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, width) of the rotary positions."""
    base, scaling, places = c["rope_theta"], c.get("rope_scaling") or {}, torch.arange(length).float()
    kind, most, strength = scaling.get("type"), c["max_position_embeddings"], 1.0
    if kind == "dynamic" and length > most:
        base = base * (scaling["factor"] * length / most - (scaling["factor"] - 1)) ** (width / (width - 2))
    frequencies = 1.0 / base ** (torch.arange(0, width, 2).float() / width)
    if kind == "linear":
        places = places / scaling["factor"]
    if kind in ("su", "yarn"):
        before = c["original_max_position_embeddings"]
        factors = scaling["long_factor"] if length > before else scaling["short_factor"]
        frequencies = frequencies / torch.tensor(factors)
        strength = math.sqrt(1 + math.log(most / before) / math.log(before)) if most > before else 1.0
        strength = 1 + 0.1 * math.log(most / before) if kind == "yarn" else strength
    turn = torch.outer(places, frequencies)
    turn = torch.cat([turn, turn], -1)
    return turn.cos() * strength, turn.sin() * strength


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


def projections(x: Tensor, w: Weights, layer: int, c: Config) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (heads, length, width), keys and values (key-value heads, ...), as each language model stores them."""
    base, count, groups = f"language_model.model.layers.{layer}", c["num_attention_heads"], c["num_key_value_heads"]
    width = c["hidden_size"] // count
    if c["architectures"] == ["InternLM2ForCausalLM"]:
        stacked = linear(x, w, f"{base}.attention.wqkv").view(len(x), groups, count // groups + 2, width)
        q = stacked[:, :, : count // groups].reshape(len(x), count, width).transpose(0, 1)
        return q, stacked[:, :, -2].transpose(0, 1), stacked[:, :, -1].transpose(0, 1)
    if c["architectures"] == ["Phi3ForCausalLM"]:
        sizes = [count * width, groups * width, groups * width]
        q, k, v = linear(x, w, f"{base}.self_attn.qkv_proj").split(sizes, -1)
    else:
        q, k, v = (linear(x, w, f"{base}.self_attn.{letter}_proj") for letter in "qkv")
    return heads(q, count), heads(k, groups), heads(v, groups)


def feed_forward(x: Tensor, w: Weights, layer: int, c: Config) -> Tensor:
    base = f"language_model.model.layers.{layer}"
    if c["architectures"] == ["InternLM2ForCausalLM"]:
        gate, up, down = (f"{base}.feed_forward.{name}" for name in ("w1", "w3", "w2"))
        return linear(silu(linear(x, w, gate)) * linear(x, w, up), w, down)
    if c["architectures"] == ["Phi3ForCausalLM"]:
        gated, raised = linear(x, w, f"{base}.mlp.gate_up_proj").chunk(2, -1)
        return linear(silu(gated) * raised, w, f"{base}.mlp.down_proj")
    gate, up, down = (f"{base}.mlp.{name}_proj" for name in ("gate", "up", "down"))
    return linear(silu(linear(x, w, gate)) * linear(x, w, up), w, down)


def logits(ids: list[int], pixels: Tensor | None, w: Weights, config: Config, picture_id: int) -> Tensor:
    """(length, vocabulary) of one sequence without padding."""
    c, internlm2 = config["llm_config"], config["llm_config"]["architectures"] == ["InternLM2ForCausalLM"]
    embed, first, second, attention_out, head = (
        ("tok_embeddings", "attention_norm", "ffn_norm", "attention.wo", "output")
        if internlm2
        else ("embed_tokens", "input_layernorm", "post_attention_layernorm", "self_attn.o_proj", "lm_head")
    )
    tokens = torch.tensor(ids)
    x = w[f"language_model.model.{embed}.weight"][tokens].clone()
    if pixels is not None:
        x[tokens == picture_id] = image_features(pixels, w, config).flatten(0, 1)
    width, repeat = c["hidden_size"] // c["num_attention_heads"], c["num_attention_heads"] // c["num_key_value_heads"]
    cos, sin = angles(len(ids), width, c)
    for layer in range(c["num_hidden_layers"]):
        base = f"language_model.model.layers.{layer}"
        q, k, v = projections(rms(x, w[f"{base}.{first}.weight"], c["rms_norm_eps"]), w, layer, c)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        x = x + linear(joined(attend(q, k, v, causal=True)), w, f"{base}.{attention_out}")
        x = x + feed_forward(rms(x, w[f"{base}.{second}.weight"], c["rms_norm_eps"]), w, layer, c)
    return linear(rms(x, w["language_model.model.norm.weight"], c["rms_norm_eps"]), w, f"language_model.{head}")


def greedy(ids: list[int], pixels: Tensor | None, w: Weights, config: Config, picture_id: int, steps: int) -> list[int]:
    """The likeliest next tokens, the whole sequence computed anew for each."""
    for _ in range(steps):
        ids = [*ids, int(logits(ids, pixels, w, config, picture_id)[-1].argmax())]
    return ids[len(ids) - steps :]
