"""Memory and time of tuning methods as ratios, beside what their papers say. About five minutes on one CPU thread.

    python benchmarks/methods.py                # a random InternVL of about 50 million weights, in bf16
    python benchmarks/methods.py --width 1024   # a larger one
    python benchmarks/methods.py --only orders  # one kind of figure anew: sizes, ranks or orders

- Bits and saved activations are counted from the tensors themselves.
- Memory is the largest resident size of its own process over two optimizer steps of one short sample, less what it
  held before the model was opened: reading the file is not in it, a whole process with its temporary copies is. The
  model is wide and the sample short, so that weights, gradients and optimizer state outweigh activations, as they do at
  the papers' seven billion weights.
- DyLoRA against a search: CPU seconds of one training of rank 8 and of eight trainings of LoRA, one a rank, with
  as many steps; and the loss of both at every rank.
- The order of adapters is read from benchmarks/results/methods_sroie.json, where that comparison has run.

Results go to benchmarks/results/methods.json and from there into docs/methods.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from mllm_tailor.core.device import Stopwatch, describe_machine, seed_everything
from mllm_tailor.core.io import read_json, write_json
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.methods import MethodSet, make_method
from mllm_tailor.methods.dylora import Dylora
from mllm_tailor.methods.method import injected_adapters
from mllm_tailor.models import LoadedModel, collate, encode, load_model
from mllm_tailor.models.bundled.build import build_internvl, build_processor, build_tokenizer, save
from mllm_tailor.recipe import Recipe, make_recipe
from mllm_tailor.training.objectives.cross_entropy import answer_loss
from mllm_tailor.training.optim.registry import OptimizerConfig, OptimizerStep, make_optimizer_step, make_param_groups
from mllm_tailor.training.trainable import learning_rates, trained_weights

RESULTS = Path(__file__).parent / "results"
PARTS = ["language", "head"]
METHODS: dict[str, dict[str, Any]] = {
    "full (AdamW)": {"name": "full", "parts": PARTS},
    "lomo": {"name": "lomo", "parts": PARTS},
    "adalomo": {"name": "adalomo", "parts": PARTS},
    "mezo": {"name": "mezo", "parts": PARTS},
    "lora": {"name": "lora", "rank": 16},
    "qlora": {"name": "qlora", "rank": 16},
}
MORE: dict[str, dict[str, Any]] = {  # no ratio to this reference is published
    "lisa": {"name": "lisa", "parts": PARTS},
    "galore": {"name": "galore", "rank": 64, "parts": PARTS},
    "apollo": {"name": "apollo", "rank": 64, "parts": PARTS},
}
PUBLISHED = {"lomo": "0.143 (7B)", "mezo": "0.083 (up to 12 times less)", "lora": "0.33 (GPT-3)"}
RANKS, RANK_STEPS = range(1, 9), 40
KINDS = ("sizes", "ranks", "orders")
Rows = dict[str, tuple[float, str]]  # figure -> measured, published


def recipe_of(method: dict[str, Any], model: Path, rate: float = 1e-5) -> Recipe:
    """Only what a method needs of a recipe."""
    values = {"data": "unused", "task": {"extract": {"total": "string"}}, "method": method, "model": str(model)}
    return make_recipe(values | {"train": {"learning_rate": rate, "max_grad_norm": None}})


def build(folder: Path, width: int, layers: int = 12) -> None:
    """A random model and pictures of numbers."""
    tokenizer = build_tokenizer()
    seed_everything(0)
    model = build_internvl(
        tokenizer, vision_width=64, vision_layers=2, text_width=width, text_layers=layers, image_size=56,
        head_width=64 if width >= 64 else width, tie_embeddings=False,
    )  # fmt: skip
    save(model.to(torch.bfloat16), build_processor(tokenizer, 56, max_tiles=1), folder)
    for number in range(4):
        picture = Image.new("RGB", (56, 56), "white")
        ImageDraw.Draw(picture).text((5, 20), str(number) * 3, fill="black")
        picture.save(folder / f"{number}.png")


def begin(
    method: dict[str, Any], folder: Path, dtype: str, count: int = 1, rate: float = 1e-5
) -> tuple[LoadedModel, MethodSet, dict[str, Any]]:
    """The model with a method applied, and a batch of `count` samples."""
    chosen = make_method(recipe_of(method, folder, rate))
    model = load_model(folder, dtype=dtype, device="cpu", quantize=chosen.quantize, quantize_skip=chosen.quantize_skip)
    seed_everything(0)
    chosen.apply(model)
    samples = [
        Sample(str(number), (Media("image", folder / f"{number}.png"),), "Total?", f'{{"total": "{number * 111}"}}')
        for number in range(count)
    ]
    batch: dict[str, Any] = collate([encode(sample, model) for sample in samples], model, side="right")
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    model.model.train()
    return model, chosen, batch


def stepper_of(model: LoadedModel, chosen: MethodSet, rate: float) -> OptimizerStep:
    """The optimizer of a method."""
    groups = make_param_groups(trained_weights(model), learning_rates(model, rate), 0.0)
    return make_optimizer_step(
        chosen.optimizer or "adamw", OptimizerConfig(groups, None, model.model, chosen.optimizer_options)
    )


def take_steps(
    model: LoadedModel, chosen: MethodSet, batch: dict[str, Any], steps: int, rate: float, bf16: bool
) -> None:
    """Some optimizer steps on one batch."""
    optimizer = stepper_of(model, chosen, rate)

    def passes(each: Any) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            summed, count = answer_loss(model.model, batch)
        each(summed / count)
        return float(summed.detach()) / count

    for step in range(steps):
        chosen.begin_step(model, step, step)
        optimizer.step(passes, 1.0, step)
        chosen.end_step(model, step, steps)


def resident(what: str) -> int:
    """Bytes: VmRSS now, or VmHWM, the most since it was last reset."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, f"{what} is not in /proc/self/status"
    return int(found[1]) * 1024


def child(name: str, folder: Path) -> None:
    """Two steps; prints the peak above what the process held before, everything imported and used once."""
    torch.set_num_threads(1)
    method = (METHODS | MORE)[name]
    small = method | ({"rank": 8} if "rank" in method else {})
    take_steps(*begin(small, folder / "tiny", "bfloat16"), steps=1, rate=1e-5, bf16=True)
    gc.collect()
    before = resident("VmRSS")
    model, chosen, batch = begin(method, folder / "model", "bfloat16")
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    take_steps(model, chosen, batch, steps=2, rate=1e-5, bf16=True)
    weights = sum(weight.numel() for weight in model.model.parameters())
    print(json.dumps({"bytes": resident("VmHWM") - before, "weights": weights}))


def memory(folder: Path, more: bool) -> dict[str, dict[str, int]]:
    """Every method in its own process, one after another."""

    def run(name: str) -> dict[str, int]:
        command = [sys.executable, __file__, "--child", name, "--folder", str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
        found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
        return found

    return {name: run(name) for name in (*METHODS, *(MORE if more else ()))}


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
        answer_loss(model.model, batch)
    return sum(kept.values())


def rank_search(folder: Path) -> Rows:
    """One DyLoRA against a LoRA for every rank: CPU seconds, and the loss at each rank."""
    rate = 5e-3

    def train(name: str, rank: int) -> tuple[float, LoadedModel, MethodSet, dict[str, Any]]:
        model, chosen, batch = begin({"name": name, "rank": rank, "alpha": 16}, folder, "float32", 4, rate)
        watch = Stopwatch()
        take_steps(model, chosen, batch, RANK_STEPS, rate, bf16=False)
        return watch.cpu_seconds(), model, chosen, batch

    def loss(model: LoadedModel, batch: dict[str, Any]) -> float:
        with torch.no_grad():
            summed, count = answer_loss(model.model, batch)
        return float(summed) / count

    once, model, chosen, batch = train("dylora", max(RANKS))
    tuning_method = chosen.assignments[0].tuning_method
    assert isinstance(tuning_method, Dylora)
    cut, searched, searching = {}, {}, 0.0
    for rank in RANKS:
        tuning_method.use_rank(injected_adapters(model)[0], rank)
        cut[rank] = loss(model, batch)
        seconds, plain, _, _ = train("lora", rank)
        searching, searched[rank] = searching + seconds, loss(plain, batch)
    rows: Rows = {"CPU seconds: search of 8 ranks / one DyLoRA": (searching / once, "4 to 7")}
    for rank in (1, 4, 8):
        rows[f"loss after {RANK_STEPS} steps: DyLoRA cut to rank {rank} / LoRA of rank {rank}"] = (
            cut[rank] / searched[rank],
            "about 1",
        )
    return rows


def orders() -> Rows:
    """Scores of adapters relative to LoRA's, on the real receipts."""
    file = RESULTS / "methods_sroie.json"
    if not file.exists():
        return {}
    found = {one["name"].partition(":learning")[0]: one["score"] for one in read_json(file)["methods"] if one["score"]}
    published = {"series": "0.95", "parallel": "0.99"}  # 44.6, 46.4 and 46.9: mean of arithmetic sets, LLaMA-7B
    rows: Rows = {}
    for name, score in found.items():
        placement = name.partition("placement=")[2].partition(":")[0]
        if placement and "lora" in found:
            ratio = score["value"] / found["lora"]["value"]
            rows[f"score: bottleneck, {placement} / lora"] = (ratio, published.get(placement, "—"))
    return rows


def sizes(place: Path, width: int, more: bool) -> dict[str, Any]:
    """Bits, saved activations and memory: the figures, and the bytes of each method."""
    build(place / "model", width)
    build(place / "tiny", 128, layers=2)
    used, bits = memory(place, more), nf4_bits(place / "model")
    kept = [saved_bytes(name, place / "model") for name in ("lora", "lora_fa")]
    rows: Rows = {
        "NF4, bits a weight": (bits, "4.127"),
        "NF4 weights / bf16 weights": (bits / 16, "0.258"),
        "activations kept: LoRA / LoRA-FA": (kept[0] / kept[1], "1.4"),
    }
    adamw = used["full (AdamW)"]["bytes"]
    for name, found in used.items():
        if not name.startswith("full"):
            rows[f"memory: {name} / full (AdamW)"] = (found["bytes"] / adamw, PUBLISHED.get(name, "—"))
    return {"figures": rows, "width": width, "weights": used["full (AdamW)"]["weights"], "memory": used}


def ranks(place: Path) -> dict[str, Any]:
    """The search of a rank."""
    build(place / "tiny", 128, layers=2)
    return {"figures": rank_search(place / "tiny")}


def measure(what: list[str], width: int, more: bool) -> dict[str, Any]:
    """Each kind of figure asked for."""
    with tempfile.TemporaryDirectory() as place:
        ways = {
            "sizes": lambda: sizes(Path(place), width, more),
            "ranks": lambda: ranks(Path(place)),
            "orders": lambda: {"figures": orders()},
        }
        return {name: way() | {"machine": describe_machine()} for name, way in ways.items() if name in what}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="channels of the text model")
    parser.add_argument("--more", action="store_true", help=f"memory of {', '.join(MORE)} too")
    parser.add_argument(
        "--only", nargs="+", choices=KINDS, default=list(KINDS), help="keep what is stored of the others"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.child:
        child(said.child, said.folder)
        return
    torch.set_num_threads(1)
    file = RESULTS / "methods.json"
    found = measure(said.only, said.width, said.more)
    known = (read_json(file) if file.exists() else {}) | found  # read late: another kind may have been stored meanwhile
    write_json(file, {name: known[name] for name in (*KINDS, "wide") if name in known})  # wide: --width 1536, two alone
    table = Table(title="Methods as ratios", title_justify="left")
    for column in ("figure", "measured here", "published"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for kind in read_json(file).values():
        for name, (value, paper) in kind["figures"].items():
            table.add_row(name, f"{value:.3f}", paper)
    Console().print(table)


if __name__ == "__main__":
    main()
