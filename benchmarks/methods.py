"""Memory of tuning methods as ratios, beside what their papers say. Under five minutes on one CPU thread.

    python benchmarks/methods.py                # a random InternVL of about 50 million weights, in bf16
    python benchmarks/methods.py --width 768    # a larger one

Bits and saved activations are counted from the tensors themselves. Memory is the largest resident size of a process of
its own over two optimizer steps of one sample, less what it held before the model was opened. The papers measured
billions of weights on GPUs; here activations and temporary copies weigh more, so ratios come out nearer to one.
Results go to benchmarks/results/methods.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from mllm_tailor.core.device import describe_machine, seed_everything
from mllm_tailor.core.files import write_json
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.methods import make_method
from mllm_tailor.models import OpenModel, open_model
from mllm_tailor.models.build import build_internvl, build_processor, build_tokenizer, save
from mllm_tailor.recipe import Recipe, make_recipe
from mllm_tailor.training.losses import answer_loss
from mllm_tailor.training.modes import learning_rates, trained_weights
from mllm_tailor.training.optimizers import Setup, make_groups, make_stepper

RESULTS = Path(__file__).parent / "results" / "methods.json"
PARTS = ["language", "head"]
METHODS: dict[str, dict[str, Any]] = {
    "full (AdamW)": {"name": "full", "parts": PARTS},
    "galore": {"name": "galore", "rank": 64, "parts": PARTS},
    "apollo": {"name": "apollo", "rank": 64, "parts": PARTS},
    "lomo": {"name": "lomo", "parts": PARTS},
    "adalomo": {"name": "adalomo", "parts": PARTS},
    "mezo": {"name": "mezo", "parts": PARTS},
    "lora": {"name": "lora", "rank": 16},
    "qlora": {"name": "qlora", "rank": 16},
}


def recipe_of(method: dict[str, Any], model: Path) -> Recipe:
    """Only what a method needs of a recipe."""
    values = {"data": "unused", "task": {"extract": {"total": "string"}}, "method": method, "model": str(model)}
    return make_recipe(values | {"train": {"learning_rate": 1e-5, "clip": None}})


def build(folder: Path, width: int) -> None:
    """A random model with 12 layers of text."""
    tokenizer = build_tokenizer()
    seed_everything(0)
    model = build_internvl(
        tokenizer, vision_width=64, vision_layers=2, text_width=width, text_layers=12, image_size=56, head_width=64,
        tie_embeddings=False,
    )  # fmt: skip
    save(model.to(torch.bfloat16), build_processor(tokenizer, 56, max_tiles=1), folder)
    Image.new("RGB", (56, 56), "white").save(folder / "white.png")


def begin(method: dict[str, Any], folder: Path, dtype: str) -> tuple[OpenModel, Any, dict[str, Any]]:
    """The model with a method applied, and one training sample as a batch."""
    recipe = recipe_of(method, folder)
    chosen = make_method(recipe)
    model = open_model(folder, dtype=dtype, device="cpu", quantize=chosen.quantize, quantize_skip=chosen.quantize_skip)
    seed_everything(0)
    chosen.apply(model)
    sample = Sample("0", (Media("image", folder / "white.png"),), "Total?", '{"total": "12.50"}')
    batch: dict[str, Any] = model.collate([model.encode(sample)], side="right")
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    return model, chosen, batch


def child(name: str, folder: Path) -> None:
    """Two steps; prints bytes above what the process held before."""
    torch.set_num_threads(1)
    before = psutil.Process().memory_info().rss
    model, chosen, batch = begin(METHODS[name], folder, "bfloat16")
    model.model.train()
    groups = make_groups(trained_weights(model), learning_rates(model, 1e-5), 0.0)
    stepper = make_stepper(chosen.optimizer or "adamw", Setup(groups, None, model.model, chosen.optimizer_options))

    def passes(each: Any) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            summed, count = answer_loss(model.model, batch)
        each(summed / count)
        return float(summed.detach()) / count

    for step in range(2):
        chosen.begin_step(model, step, step)
        stepper.take(passes, 1.0, step)
        chosen.end_step(model, step, 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"bytes": peak - before, "weights": sum(weight.numel() for weight in model.model.parameters())}))


def memory(folder: Path) -> dict[str, dict[str, int]]:
    """Every method in a process of its own."""

    def run(name: str) -> dict[str, int]:
        command = [sys.executable, __file__, "--child", name, "--folder", str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
        return found

    with ThreadPoolExecutor(4) as pool:  # side by side: a size does not depend on speed
        return dict(zip(METHODS, pool.map(run, METHODS), strict=True))


def nf4_bits(folder: Path) -> float:
    """Bits a packed weight, constants of both levels included."""
    model, _, _ = begin(METHODS["qlora"], folder, "bfloat16")
    bits = weights = 0
    for weight in model.model.parameters():
        state = getattr(weight, "quant_state", None)
        if state is None:
            continue
        parts = (weight, state.absmax, state.state2.absmax)
        bits += 8 * sum(part.numel() * part.element_size() for part in parts)
        weights += state.shape.numel()
    return bits / weights


def saved_bytes(name: str, folder: Path) -> int:
    """Bytes of distinct tensors kept for the backward pass of LoRA of rank 4, the model's own weights left out."""
    model, _, batch = begin({"name": name, "rank": 4}, folder, "float32")
    own = {weight.data_ptr() for weight in model.model.parameters()}
    kept: dict[int, int] = {}
    held: list[torch.Tensor] = []  # keeps addresses from being used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = max(kept.get(tensor.data_ptr(), 0), tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer_loss(model.model.train(), batch)
    return sum(kept.values())


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="channels of the text model")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.child:
        child(said.child, said.folder)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        build(folder, said.width)
        used, bits = memory(folder), nf4_bits(folder)
        activations = saved_bytes("lora", folder) / saved_bytes("lora_fa", folder)
    adamw = used["full (AdamW)"]["bytes"]
    rows: dict[str, tuple[float, str]] = {
        "NF4, bits a weight": (bits, "4.127"),
        "NF4 weights / bf16 weights": (bits / 16, "0.258"),
        "activations kept: LoRA / LoRA-FA": (activations, "1.4"),
    }
    published = {"lomo": "0.143 (7B)", "mezo": "0.083 (up to 12 times less)", "lora": "0.33 (GPT-3)"}
    for name, found in used.items():
        if found["bytes"] != adamw:
            rows[f"memory: {name} / full (AdamW)"] = (found["bytes"] / adamw, published.get(name, "—"))
    table = Table(title=f"Methods as ratios ({used['full (AdamW)']['weights']:,} weights)", title_justify="left")
    for column in ("figure", "measured here", "published"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name, (value, paper) in rows.items():
        table.add_row(name, f"{value:.3f}", paper)
    Console().print(table)
    figures = {name: {"measured": round(value, 4), "published": paper} for name, (value, paper) in rows.items()}
    write_json(RESULTS, {"machine": describe_machine(), "width": said.width, "figures": figures, "memory": used})


if __name__ == "__main__":
    main()
