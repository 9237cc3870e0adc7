"""The share of the machine's matrix-multiplication rate that one of our training steps reaches, part by part.

    python benchmarks/train.py --rates                     # the embedded model: LoRA on its language part, every weight
    python benchmarks/train.py --rates --works 150M

A table by part of a step over one drawn receipt: operations, those of attention among them, CPU seconds of a thread,
the share of the rate of a large product, and the fewest seconds that the operations take at that rate; what lies
between is norms, activations, rotations, sums of gradients, Python, and attention's exponentials. Results:
benchmarks/results/rates.json.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from mllm_tailor.core.conversation import Conversation, as_conversation
from mllm_tailor.core.device import Stopwatch, computes_in_bf16, describe_machine, pick_device, seed_everything
from mllm_tailor.core.io import write_json
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.methods import make_method
from mllm_tailor.models import LoadedModel, encode, load_model
from mllm_tailor.models.patches.cpu_attention import torch_attention
from mllm_tailor.models.patches.fused_layers import fused_layers
from mllm_tailor.models.vision_cache import image_features
from mllm_tailor.recipe import make_recipe
from mllm_tailor.training.batches import collate_right
from mllm_tailor.training.objectives.cross_entropy import answer_loss
from mllm_tailor.training.optim.registry import OptimizerConfig, ParamGroup, make_optimizer_step
from mllm_tailor.training.precision import autocast, frozen_in_bf16
from mllm_tailor.training.trainable import set_train_mode
from mllm_tailor.training.vision_cache import CachedBatches, as_inputs

RESULTS = Path(__file__).parent / "results" / "rates.json"
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


def measure(work: Callable[[], Any], network: nn.Module, times: int) -> dict[str, float]:
    """Operations of `work`, and CPU seconds, the best of `times` runs after a first.

    They are counted without fused layers, which multiply in place, where the counter does not look, and without blocks
    of queries, which compute their shares twice: that is not to count.
    """
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter, torch_attention():
        work()
    counts = counter.get_flop_counts().get("Global", {})
    in_attention = sum(count for name, count in counts.items() if "attention" in str(name))
    best = float("inf")
    with fused_layers(network):
        work()
        for _ in range(times):
            watch = Stopwatch()
            work()
            best = min(best, watch.cpu_seconds())
    return {"flops": counter.get_total_flops(), "attention_flops": in_attention, "cpu_seconds": best}


def seen_again(model: LoadedModel, samples: Sequence[Conversation], folder: Path, bf16: bool) -> float:
    """Processor seconds a training spends on pictures an earlier one has seen: checking files, reading features."""
    CachedBatches(model, samples, "answer", folder, bf16=bf16)
    watch = Stopwatch()
    feed = CachedBatches(model, samples, "answer", folder, bf16=bf16)
    for epoch in range(EPOCHS):
        for number in range(len(samples)):
            feed.batch([number], epoch)
    return watch.cpu_seconds()


def describe_rates(folder: Path, rank: int, times: int = 3, *, full: bool = False) -> dict[str, Any]:
    """Vision pass (once a training), forward and backward pass from cached features, and the optimizer's update.

    `folder` holds `model` and `unique.jsonl` as the comparison wrote them; the step is a pass over one sample. `full`:
    of a training of every weight, with the vision tower in the pass.
    """
    lora = {"name": "lora", "rank": rank, "alpha": 2 * rank, "dropout": 0.0, "parts": ["language"]}
    method_words = {"name": "full", "parts": ["vision", "projector", "language", "head"]} if full else lora
    optimizer_name = "muon" if full else "adamw"
    recipe = make_recipe({"data": "unused", "task": "answer", "method": method_words})
    model, method = load_model(folder / "model", dtype="auto"), make_method(recipe)
    bf16 = computes_in_bf16(recipe.model.dtype, pick_device())
    seed_everything(0)
    method.apply(model)
    set_train_mode(model)
    told = [json.loads(line) for line in (folder / "unique.jsonl").read_text("utf-8").splitlines()]
    samples = [
        as_conversation(Sample(row["image"], (Media("image", Path(row["image"])),), row["prompt"], row["answer"]))
        for row in told
    ]
    batch = collate_right([encode(samples[0], model)], model)
    pixels = batch["pixel_values"]
    if not full:
        del batch["pixel_values"]
        batch["image_features"] = image_features(model, pixels, bf16=bf16).flatten(0, 1)[None]
    group = ParamGroup(
        {name: weight for name, weight in model.model.named_parameters() if weight.requires_grad}, 0.0, 0.0
    )
    optimizer = make_optimizer_step(optimizer_name, OptimizerConfig([group], None, model.model))

    def loss() -> torch.Tensor:
        with autocast(model.device, bf16=bf16):
            return answer_loss(model.model, as_inputs(dict(batch)))[0]

    def both() -> None:
        loss().backward()

    def see() -> None:
        image_features(model, pixels, bf16=bf16)

    def set_gradients(_: object) -> float:
        for weight in group.weights.values():
            weight.grad = torch.zeros_like(weight)
        return 0.0

    def update() -> None:
        optimizer.step(set_gradients, 1.0, 0)

    with frozen_in_bf16(model, bf16=bf16):
        parts = {
            "vision pass": measure(see, model.model, times),
            "forward": measure(loss, model.model, times),
            "forward and backward": measure(both, model.model, times),
            "optimizer": measure(update, model.model, times),
        }
    top = matmul_rate(bf16)
    for part in parts.values():
        part["share"] = part["flops"] / part["cpu_seconds"] / top
        part["least_seconds"] = part["flops"] / top
    step = parts["forward and backward"]
    whole = step["cpu_seconds"] + parts["optimizer"]["cpu_seconds"]
    facts = {"matmul_gflops": top / 1e9, "bf16": bf16, "tokens": batch["input_ids"].numel(), "tiles": len(pixels)}
    if not full:
        again = seen_again(model, samples, folder / "seen", bf16)
        facts["vision_of_a_second_run"] = again / (whole * len(samples) * EPOCHS)
    share = (step["flops"] + parts["optimizer"]["flops"]) / whole / top
    return {**facts, "kept_bytes": kept_bytes(loss, model.model), "step_share": share, "parts": parts}


def kept_bytes(loss: Callable[[], Any], network: nn.Module) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights and inputs included."""
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with fused_layers(network), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss()
    return sum(storages.values())


def show(name: str, rates: dict[str, Any]) -> None:
    """The table of one training."""
    title = (
        f"{name}: {rates['tokens']} tokens, {rates['tiles']} tiles; {rates['matmul_gflops']:.0f} GFLOP/s of large "
        f"products; {rates['kept_bytes'] / 2**20:.0f} MiB kept for the backward pass"
    )
    table = Table("part", "GFLOP", "of it attention", "CPU seconds", "GFLOP/s", "share", "least seconds", title=title)
    for part, found in rates["parts"].items():
        table.add_row(
            part,
            f"{found['flops'] / 1e9:.1f}",
            f"{found['attention_flops'] / 1e9:.1f}",
            f"{found['cpu_seconds']:.3f}",
            f"{found['flops'] / found['cpu_seconds'] / 1e9:.0f}",
            f"{100 * found['share']:.0f} %",
            f"{found['least_seconds']:.3f}",
        )
    Console(width=140).print(table)


def rate_works(works: Mapping[str, int], prepare: Callable[[str, Path], Any]) -> None:
    """Measure, show and store works by name, with their ranks; `prepare` writes a work into a folder."""
    rows: dict[str, Any] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    for name, rank in works.items():
        with tempfile.TemporaryDirectory() as folder:
            prepare(name, Path(folder))
            for full in (False, True) if name == "embedded" else (False,):
                title = f"{name}, {'every weight' if full else 'LoRA'}"
                rows[title] = describe_rates(Path(folder), rank, full=full)
                show(title, rows[title])
    write_json(RESULTS, {"machine": describe_machine(), "rows": rows})
