"""Convert a full-size random checkpoint in the original InternVL layout, open it, and take one QLoRA step.

Real weights are not needed to learn what a 2B model costs. Run, one after the other, with .venv/bin/python:
benchmarks/convert.py --step make; --step convert; --step qlora
(about 9 GB of disk; the folder is left for another run).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mllm_tailor.core.device import Stopwatch, describe_machine
from mllm_tailor.core.io import human_bytes
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.models import InputSettings, collate, encode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fixtures.original_internvl import random_weights, write_tokenizer

# Mini-InternVL-Chat-2B-V1-5: InternViT-300M at 448 pixels and InternLM2-chat-1.8B; 2.2 billion weights.
VISION = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "patch_size": 14,
    "image_size": 448,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "initializer_factor": 1.0,
}
LANGUAGE = {
    "architectures": ["InternLM2ForCausalLM"],
    "vocab_size": 92553,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "max_position_embeddings": 32768,
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
CONFIG: dict[str, Any] = {
    "architectures": ["InternVLChatModel"],
    "model_type": "internvl_chat",
    "vision_config": VISION,
    "llm_config": LANGUAGE,
    "select_layer": -1,
    "force_image_size": 448,
    "downsample_ratio": 0.5,
    "template": "internlm2-chat",
    "dynamic_image_size": True,
    "use_thumbnail": True,
    "ps_version": "v2",
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 12,
    "torch_dtype": "bfloat16",
}
SHARD = 2 * 2**30


def peak() -> str:
    """The most memory this process held so far."""
    return human_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def write_original(folder: Path) -> None:
    """Random bf16 weights of the whole layout in shards, with a small tokenizer."""
    folder.mkdir(parents=True)
    write_tokenizer(folder, "InternLM2ForCausalLM")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    torch.set_default_dtype(torch.bfloat16)
    weights = random_weights(CONFIG)
    torch.set_default_dtype(torch.float32)
    places: dict[str, str] = {}
    held: dict[str, torch.Tensor] = {}
    number = 0
    for name in sorted(weights):
        held[name] = weights.pop(name).to(torch.bfloat16)
        if sum(tensor.nbytes for tensor in held.values()) > SHARD or not weights:
            number += 1
            places |= dict.fromkeys(held, f"model-{number:05d}.safetensors")
            save_file(held, folder / f"model-{number:05d}.safetensors", metadata={"format": "pt"})
            held = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def convert_step(folder: Path) -> None:
    """Convert, and say what it took."""
    from mllm_tailor.models.convert import convert

    before, watch = peak(), Stopwatch()
    convert(folder / "original", folder / "native")
    size = sum(file.stat().st_size for file in (folder / "native").glob("*.safetensors"))
    print(f"converted {human_bytes(size)} in {watch.seconds():.0f} s; peak memory {peak()} ({before} before it began)")


def qlora_step(folder: Path) -> None:
    """Open in NF4, adapt the language model with rank 128, and take one optimizer step on one picture of one tile."""
    from mllm_tailor.methods import make_method
    from mllm_tailor.models import load_model
    from mllm_tailor.recipe import make_recipe
    from mllm_tailor.recipe.schema import Tiles

    recipe = make_recipe(
        {
            "data": "unused",
            "task": "answer",
            "method": {"name": "qlora", "rank": 128, "alpha": 256, "parts": ["language"]},
        }
    )
    method, watch = make_method(recipe), Stopwatch()
    model = load_model(
        folder / "native",
        dtype="auto",  # bf16 where the processor computes in it
        inputs=InputSettings(tiles=Tiles(min=1, max=1)),
        quantize=method.quantize,
        quantize_skip=method.quantize_skip,
    )
    number = str(model.dtype).removeprefix("torch.")
    print(f"opened in NF4, computing in {number}, in {watch.seconds():.0f} s; peak memory {peak()}", flush=True)
    applied = method.apply(model)
    print(f"{sum(applied.counts.values()):,} of {applied.total:,} weights are trained")
    picture = Path(__file__).resolve().parent.parent / "docs" / "before-after.png"
    sample = Sample("a", (Media("image", picture),), "Total?", '{"total": "9.50"}')
    batch = collate([encode(sample, model)], model)
    optimizer = torch.optim.AdamW([weight for weight in model.model.parameters() if weight.requires_grad], lr=5e-4)
    watch = Stopwatch()
    model.model.train()
    loss = model.model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).loss
    loss.backward()
    optimizer.step()
    length = batch["input_ids"].shape[1]
    took = f"{watch.seconds():.0f} s, {watch.cpu_seconds():.0f} s of processor time"
    print(json.dumps(describe_machine()))
    print(f"one step on {length} tokens in {took}; loss {loss.item():.3f}; peak memory {peak()}")


def main() -> None:
    """Make the checkpoint if it is not there, then the step asked for; each step in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(tempfile.gettempdir()) / "internvl-2b")
    parser.add_argument("--step", choices=["make", "convert", "qlora"], required=True)
    arguments = parser.parse_args()
    steps = {"make": lambda folder: write_original(folder / "original"), "convert": convert_step, "qlora": qlora_step}
    steps[arguments.step](arguments.folder)


if __name__ == "__main__":
    main()
