"""The share of the machine's matrix-multiplication rate that one of our training steps reaches, part by part."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from mllm_tailor.core.device import Stopwatch, computes_in_bf16, pick_device, seed_everything
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.methods import make_method
from mllm_tailor.models import LoadedModel, encode, load_model
from mllm_tailor.models.patches.cpu_attention import torch_attention
from mllm_tailor.models.patches.fused_lora import fused_lora
from mllm_tailor.models.vision_cache import image_features
from mllm_tailor.recipe import make_recipe
from mllm_tailor.training.batches import collate_right
from mllm_tailor.training.objectives.cross_entropy import answer_loss
from mllm_tailor.training.precision import autocast, frozen_in_bf16
from mllm_tailor.training.trainable import set_train_mode
from mllm_tailor.training.vision_cache import CachedBatches, as_inputs

EPOCHS = 3  # of the second run over the same pictures
SIDE = 1024  # of the square matrices whose product is the 100 %


def matmul_rate(bf16: bool, seconds: float = 2.0) -> float:
    """Operations a CPU second of large products on one thread (float32 unless `bf16`): the best of many."""
    left, right = (torch.randn(SIDE, SIDE, dtype=torch.bfloat16 if bf16 else torch.float32) for _ in range(2))
    whole, best = Stopwatch(), float("inf")
    left @ right
    while whole.cpu_seconds() < seconds:
        watch = Stopwatch()
        left @ right
        best = min(best, watch.cpu_seconds())
    return 2 * SIDE**3 / best


def attention(query: Any, key: Any, value: Any, dropout: float = 0.0, causal: bool = False, **_: Any) -> int:
    """Operations of an attention from its shapes; half of them, where nobody sees what comes later."""
    return sdpa_flop_count(query, key, value) // (2 if causal else 1)


def attention_back(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **_: Any) -> int:
    """The same of its backward pass, which computes the shares again; `rest`: output, sums, dropout, causal."""
    return sdpa_backward_flop_count(gradient, query, key, value) // (2 if rest[3] else 1)


ON_CPU = {  # torch counts the kernels of GPUs alone
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_back,
}


def measure(work: Callable[[], Any], times: int) -> dict[str, float]:
    """Operations of `work`, and CPU seconds, the best of `times` runs after a first."""
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter, torch_attention():
        work()  # blocks of queries compute their shares twice, which is not to count
    work()
    best = float("inf")
    for _ in range(times):
        watch = Stopwatch()
        work()
        best = min(best, watch.cpu_seconds())
    return {"flops": counter.get_total_flops(), "cpu_seconds": best}


def seen_again(model: LoadedModel, samples: Sequence[Sample], folder: Path, bf16: bool) -> float:
    """Processor seconds a training spends on pictures an earlier one has seen: checking files, reading features."""
    CachedBatches(model, samples, "answer", folder, bf16=bf16)
    watch = Stopwatch()
    feed = CachedBatches(model, samples, "answer", folder, bf16=bf16)
    for epoch in range(EPOCHS):
        for number in range(len(samples)):
            feed.batch([number], epoch)
    return watch.cpu_seconds()


def describe_rates(folder: Path, rank: int, times: int = 3) -> dict[str, Any]:
    """Vision pass (once a training), forward and backward pass from cached features, and the optimizer's update.

    `folder` holds `model` and `unique.jsonl` as the comparison wrote them; the step is a pass over one sample.
    """
    method_words = {"name": "lora", "rank": rank, "alpha": 2 * rank, "dropout": 0.0, "parts": ["language"]}
    recipe = make_recipe({"data": "unused", "task": "answer", "method": method_words})
    model, method = load_model(folder / "model", dtype="auto"), make_method(recipe)
    bf16 = computes_in_bf16(recipe.model.dtype, pick_device())
    seed_everything(0)
    method.apply(model)
    set_train_mode(model)
    told = [json.loads(line) for line in (folder / "unique.jsonl").read_text("utf-8").splitlines()]
    samples = [
        Sample(row["image"], (Media("image", Path(row["image"])),), row["prompt"], row["answer"]) for row in told
    ]
    batch = collate_right([encode(samples[0], model)], model)
    pixels = batch.pop("pixel_values")
    features = image_features(model, pixels, bf16=bf16).flatten(0, 1)[None]
    weights = [weight for weight in model.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights)

    def loss() -> torch.Tensor:
        with autocast(model.device, bf16=bf16), fused_lora(model.model):
            return answer_loss(model.model, as_inputs(batch | {"image_features": features}))[0]

    def both() -> None:
        loss().backward()

    with frozen_in_bf16(model, bf16):
        parts = {
            "vision pass": measure(lambda: image_features(model, pixels, bf16=bf16), times),
            "forward": measure(loss, times),
            "forward and backward": measure(both, times),
            "optimizer": measure(optimizer.step, times),
        }
    top = matmul_rate(bf16)
    for part in parts.values():
        part["share"] = part["flops"] / part["cpu_seconds"] / top
    step = parts["forward and backward"]
    whole = step["cpu_seconds"] + parts["optimizer"]["cpu_seconds"]
    facts = {"matmul_gflops": top / 1e9, "bf16": bf16, "tokens": batch["input_ids"].numel()}
    again = seen_again(model, samples, folder / "seen", bf16)
    facts["vision_of_a_second_run"] = again / (whole * len(samples) * EPOCHS)
    return {**facts, "step_share": step["flops"] / whole / top, "parts": parts}
