"""Tiny random checkpoints in the original InternVL layout, as tests need them."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file

Weights = dict[str, torch.Tensor]
PICTURE_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
TEXT = [
    "The total of this receipt is nine ringgit and fifty sen.",
    "You are an AI assistant whose name is InternLM.",
    "What is the date of this receipt? Answer with the date alone.",
    "Extract the company, date, address and total in json format.",
    "KEDAI MAKAN SDN BHD 12, Jalan Besar, 50000 Kuala Lumpur  TOTAL RM 9.50 CASH 10.00 CHANGE 0.50",
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型",
] * 4


def vision_config(kind: str = "300m", **changes: Any) -> dict[str, Any]:
    """A small InternViT: `300m` (layer norm, biases) or `6b` (RMS norm, normalised queries and keys, no biases)."""
    big = kind == "6b"
    config = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "patch_size": 14,
        "image_size": 56,
        "qkv_bias": not big,
        "qk_normalization": big,
        "norm_type": "rms_norm" if big else "layer_norm",
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "initializer_factor": 1.0,
    }
    return config | changes


def language_config(name: str, vocabulary: int, **changes: Any) -> dict[str, Any]:
    """A small language model of one of the four classes, with grouped queries."""
    config: dict[str, Any] = {
        "architectures": [name],
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    if name == "InternLM2ForCausalLM":
        config |= {"bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 1_000_000.0}
    if name == "Phi3ForCausalLM":
        factors = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 3.0, 4.0]}
        config |= {"rope_scaling": {"type": "su", **factors}, "original_max_position_embeddings": 512}
    return config | changes


def random_weights(config: dict[str, Any], seed: int = 0) -> Weights:
    """Every weight of the original layout, by its original name, large enough to make outputs differ."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int, scale: float = 1.0) -> torch.Tensor:
        fan = shape[-1] if len(shape) > 1 else 1
        return torch.randn(shape, generator=generator) * scale / fan**0.5

    def norm(name: str, width: int, bias: bool) -> Weights:
        weights = {f"{name}.weight": 1 + 0.2 * make(width)}
        return weights | ({f"{name}.bias": 0.2 * make(width)} if bias else {})

    def dense(name: str, rows: int, columns: int, bias: bool) -> Weights:
        weights = {f"{name}.weight": make(rows, columns)}
        return weights | ({f"{name}.bias": 0.2 * make(rows)} if bias else {})

    v, c = config["vision_config"], config["llm_config"]
    width, layered = v["hidden_size"], v["norm_type"] == "layer_norm"
    places = (v["image_size"] // v["patch_size"]) ** 2
    base = "vision_model.embeddings"
    w = {
        f"{base}.class_embedding": make(1, 1, width),
        f"{base}.position_embedding": make(1, places + 1, width, scale=3),
    }
    w |= {f"{base}.patch_embedding.weight": make(width, 3, 14, 14) / 8, f"{base}.patch_embedding.bias": make(width)}
    for layer in range(v["num_hidden_layers"]):
        base = f"vision_model.encoder.layers.{layer}"
        w |= dense(f"{base}.attn.qkv", 3 * width, width, v["qkv_bias"]) | dense(f"{base}.attn.proj", width, width, True)
        w |= norm(f"{base}.norm1", width, layered) | norm(f"{base}.norm2", width, layered)
        w |= dense(f"{base}.mlp.fc1", v["intermediate_size"], width, True)
        w |= dense(f"{base}.mlp.fc2", width, v["intermediate_size"], True)
        w |= {f"{base}.ls1": 0.5 + 0.1 * make(width), f"{base}.ls2": 0.5 + 0.1 * make(width)}
        if v["qk_normalization"]:
            w |= norm(f"{base}.attn.q_norm", width, False) | norm(f"{base}.attn.k_norm", width, False)
    w |= norm("mlp1.0", 4 * width, True) | dense("mlp1.1", c["hidden_size"], 4 * width, True)
    w |= dense("mlp1.3", c["hidden_size"], c["hidden_size"], True)
    return {name: tensor.contiguous() for name, tensor in (w | _language_weights(c, make, norm, dense)).items()}


def _language_weights(c: dict[str, Any], make: Any, norm: Any, dense: Any) -> Weights:
    kind, size, inner = c["architectures"][0], c["hidden_size"], c["intermediate_size"]
    key_values = c["num_key_value_heads"] * size // c["num_attention_heads"]
    internlm2 = kind == "InternLM2ForCausalLM"
    w: Weights = {}
    for layer in range(c["num_hidden_layers"]):
        base = f"language_model.model.layers.{layer}"
        if internlm2:
            w |= dense(f"{base}.attention.wqkv", size + 2 * key_values, size, c["bias"])
            w |= dense(f"{base}.attention.wo", size, size, c["bias"])
            for name, rows, columns in (("w1", inner, size), ("w3", inner, size), ("w2", size, inner)):
                w |= dense(f"{base}.feed_forward.{name}", rows, columns, False)
            w |= norm(f"{base}.attention_norm", size, False) | norm(f"{base}.ffn_norm", size, False)
            continue
        biased = kind == "Qwen2ForCausalLM" or c.get("attention_bias", False)
        if kind == "Phi3ForCausalLM":
            w |= dense(f"{base}.self_attn.qkv_proj", size + 2 * key_values, size, False)
            w |= dense(f"{base}.mlp.gate_up_proj", 2 * inner, size, False)
        else:
            w |= dense(f"{base}.self_attn.q_proj", size, size, biased)
            for letter in "kv":
                w |= dense(f"{base}.self_attn.{letter}_proj", key_values, size, biased)
            w |= dense(f"{base}.mlp.gate_proj", inner, size, False) | dense(f"{base}.mlp.up_proj", inner, size, False)
        w |= dense(f"{base}.self_attn.o_proj", size, size, biased and kind == "LlamaForCausalLM")
        w |= dense(f"{base}.mlp.down_proj", size, inner, False)
        w |= norm(f"{base}.input_layernorm", size, False) | norm(f"{base}.post_attention_layernorm", size, False)
    embed, head = ("tok_embeddings", "output") if internlm2 else ("embed_tokens", "lm_head")
    w |= {f"language_model.model.{embed}.weight": make(c["vocab_size"], size) * size**0.5}
    w |= {f"language_model.{head}.weight": make(c["vocab_size"], size)} | norm("language_model.model.norm", size, False)
    return w


@cache
def sentencepiece_model(dummy_prefix: bool, unused: int) -> bytes:
    """A small BPE vocabulary with byte fallback, as Llama has; the last pieces are unused ones, as in InternLM2's."""
    from sentencepiece import sentencepiece_model_pb2

    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=stream,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        character_coverage=1.0,
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(stream.getvalue())
    for number in range(unused):
        piece = proto.pieces.add()
        piece.piece, piece.score = f"[UNUSED_TOKEN_{number}]", 0.0
        piece.type = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
    return proto.SerializeToString()


def write_tokenizer(folder: Path, language: str) -> int:
    """Tokenizer files as the hub has them (some name Python code of their own); returns the number of tokens."""
    if language == "Qwen2ForCausalLM":
        return _write_qwen2(folder)
    unused = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]
    internlm2 = language == "InternLM2ForCausalLM"
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(not internlm2, len(unused) if internlm2 else 0))
    turns = unused if internlm2 else ["<|im_start|>", "<|im_end|>"]
    if language == "Phi3ForCausalLM":
        turns = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
    stripped = {"<|assistant|>", "<|system|>", "<|end|>", "<|user|>"}
    names = ["<unk>", "<s>", "</s>"]
    places = [*enumerate(names), *enumerate(turns + PICTURE_TOKENS, 420)]
    added = {
        str(place): {
            "content": token,
            "lstrip": False,
            "rstrip": token in stripped,
            "normalized": False,
            "single_word": False,
            "special": True,
        }
        for place, token in places
    }
    settings = {
        "tokenizer_class": "InternLM2Tokenizer" if language == "InternLM2ForCausalLM" else "LlamaTokenizer",
        "added_tokens_decoder": added,
        "additional_special_tokens": [*turns, *PICTURE_TOKENS] if language != "Phi3ForCausalLM" else PICTURE_TOKENS,
        "bos_token": "<s>",
        "eos_token": "</s>" if language != "Phi3ForCausalLM" else "<|endoftext|>",
        "unk_token": "<unk>",
        "pad_token": "</s>" if language != "Phi3ForCausalLM" else "<|endoftext|>",
        "add_bos_token": True,
        "add_eos_token": False,
        "model_max_length": 8192,
    }
    if language == "InternLM2ForCausalLM":
        settings["auto_map"] = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    if language == "Phi3ForCausalLM":
        settings["legacy"] = False
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return 420 + len(turns) + len(PICTURE_TOKENS)


def _write_qwen2(folder: Path) -> int:
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.train_from_iterator(TEXT, BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    core.model.save(str(folder))
    size = core.get_vocab_size()
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *PICTURE_TOKENS]
    added = {
        str(place): {"content": token, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for place, token in enumerate(tokens, size)
    }
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "additional_special_tokens": tokens[1:],
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "added_tokens.json").write_text(json.dumps({token: place for place, token in enumerate(tokens, size)}))
    return size + len(tokens)


TEMPLATES = {
    "InternLM2ForCausalLM": "internlm2-chat",
    "Qwen2ForCausalLM": "Hermes-2",
    "LlamaForCausalLM": "Hermes-2",
    "Phi3ForCausalLM": "phi3-chat",
}


def write_checkpoint(
    folder: Path,
    language: str = "InternLM2ForCausalLM",
    *,
    vision: dict[str, Any] | None = None,
    llm: dict[str, Any] | None = None,
    seed: int = 0,
    **changes: Any,
) -> tuple[dict[str, Any], Weights]:
    """A whole checkpoint in `folder`; returns its configuration and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder, language)
    config = {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "model_type": "internvl_chat",
        "vision_config": vision or vision_config(),
        "llm_config": language_config(language, vocabulary + 3, **(llm or {})),
        "select_layer": -1,
        "force_image_size": 56,
        "downsample_ratio": 0.5,
        "template": TEMPLATES[language],
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "ps_version": "v2",
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 6,
        "torch_dtype": "float32",
    } | changes
    config = {key: value for key, value in config.items() if value is not None}
    weights = random_weights(config, seed)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return config, weights
