"""How costs grow: seconds and memory against rows of data, size of pictures, tiles, answers and models.

    python benchmarks/growth.py                          # every curve
    python benchmarks/growth.py --only rows --most 1000000

A curve's exponent is the slope of a line through its points in logarithms: 1 is linear. Seconds are CPU seconds
of one thread, the best of a few runs; each point of the rows' curves is its own process, so that its memory is its
own. Results go to benchmarks/results/growth.json, curve by curve; the command fails when a curve that should be linear
grows with an exponent over 1.15.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from mllm_tailor.core.device import Stopwatch, describe_machine, pick_device, seed_everything, watch_memory
from mllm_tailor.core.io import human_bytes, write_json
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data import read_samples, split, split_dev, validate
from mllm_tailor.methods import make_method
from mllm_tailor.models import InputSettings, LoadedModel, encode, load_model
from mllm_tailor.models.bundled.build import build_internvl, build_processor, build_tokenizer, save
from mllm_tailor.models.vision_cache import image_features
from mllm_tailor.recipe import make_recipe
from mllm_tailor.recipe.schema import HeldOut, Tiles
from mllm_tailor.tasks import open_task
from mllm_tailor.training.objectives.cross_entropy import answer_loss
from mllm_tailor.training.sampler import epoch_order

RESULTS = Path(__file__).parent / "results" / "growth.json"
LINEAR = 1.15  # an exponent up to here counts as linear
PICTURES = 100  # that the rows ask about


@dataclass(frozen=True)
class Curve:
    """Costs at several sizes."""

    name: str
    of: str  # what grows
    sizes: list[float]
    costs: list[float]  # seconds, or bytes
    unit: str
    linear: bool = True  # whether it should not be worse than linear

    @property
    def exponent(self) -> float:
        """Slope of the line through the points' logarithms, the smallest size left out where there are four or more.

        There what costs the same at any size still weighs.
        """
        first = 1 if len(self.sizes) > 3 else 0
        return float(np.polyfit(np.log(self.sizes[first:]), np.log(np.maximum(self.costs[first:], 1e-9)), 1)[0])


def best(work: Callable[[], Any], times: int = 3) -> float:
    """Processor seconds, the least of several runs after a first."""
    work()
    found = []
    for _ in range(times):
        watch = Stopwatch()
        work()
        found.append(watch.cpu_seconds())
    return min(found)


def write_rows(folder: Path, count: int) -> None:
    """A table of questions about a hundred small pictures."""
    for number in range(PICTURES):
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "question", "answer"])
        writer.writerows((f"{row % PICTURES}.png", f"What is item {row}?", f"item {row}") for row in range(count))


def child(count: int) -> None:
    """Read, split, check and order so many rows; prints seconds and bytes of each."""
    task, found = open_task("answer"), {}
    with tempfile.TemporaryDirectory() as place:
        write_rows(Path(place), count)

        def measured(name: str, work: Callable[[], Any]) -> Any:
            # What was made before is left out of the collector's passes, so that each curve is of its own work.
            gc.collect()
            gc.freeze()
            with watch_memory(pick_device()) as memory:
                watch = Stopwatch()
                made = work()
                seconds = watch.cpu_seconds()
            found[name] = {"seconds": seconds, "bytes": memory.rise}
            return made

        data = measured("read", lambda: read_samples(place))
        train, held = measured("split", lambda: split(data, HeldOut(fraction=0.1), 0))
        learned, _ = measured("choose dev", lambda: split_dev(train, 0.05, 0))
        measured("check", lambda: validate(train, held, task, decode=False))
        measured("phrase", lambda: tuple(map(task.phrase, learned)))
        measured("order of an epoch", lambda: epoch_order(0, 0, len(learned)))
    print(json.dumps(found))


def rows(most: int) -> Iterator[Curve]:
    """From 100 rows upwards, ten times as many each time."""
    counts = [10**power for power in range(2, 8) if 10**power <= most]
    points = []
    for count in counts:
        print(f"{count:,} rows", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--child", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        points.append(json.loads(done.stdout.splitlines()[-1]))
    for name in points[0]:
        seconds = [point[name]["seconds"] for point in points]
        yield Curve(f"{name}, seconds", "rows", [float(count) for count in counts], seconds, "s")
    rises = [float(sum(part["bytes"] for part in point.values())) for point in points]
    yield Curve("all of these, memory", "rows", [float(count) for count in counts], rises, "B")


def sizes(_: int) -> Iterator[Curve]:
    """Decoding and cutting pictures of more and more pixels, always into two tiles and the whole."""
    model = load_model("embedded", dtype="float32", inputs=InputSettings(tiles=Tiles(min=2, max=2)))
    rng = np.random.default_rng(0)
    sides, costs, rises = [512, 1024, 2048, 4096], [], []
    with tempfile.TemporaryDirectory() as place:
        for side in sides:
            file = Path(place) / f"{side}.jpg"
            coarse = rng.integers(0, 255, (side // 8, side // 16), dtype=np.uint8)
            Image.fromarray(coarse).resize((side // 2, side)).save(file, quality=85)
            sample = Sample("a", (Media("image", file),), "Read.", "yes")
            with watch_memory(model.device) as memory:
                encode(sample, model)
            rises.append(float(memory.rise))
            costs.append(best(lambda sample=sample: encode(sample, model)))  # type: ignore[misc]
    pixels = [side * side / 2 for side in sides]
    yield Curve("decode and cut, seconds", "pixels of a picture", pixels, costs, "s")
    yield Curve("decode and cut, memory", "pixels of a picture", pixels, rises, "B")


def tiles(_: int) -> Iterator[Curve]:
    """The vision pass over more and more tiles."""
    model = load_model("embedded", dtype="float32")
    counts = [1, 2, 4, 8]
    costs, rises = [], []
    for count in counts:
        pixels = torch.rand(count, 3, model.tile_size, model.tile_size)
        with watch_memory(model.device) as memory:
            image_features(model, pixels, bf16=False)
        rises.append(float(memory.rise))
        costs.append(best(lambda pixels=pixels: image_features(model, pixels, bf16=False), 2))  # type: ignore[misc]
    yield Curve("vision pass, seconds", "tiles", [float(count) for count in counts], costs, "s")
    yield Curve("vision pass, memory", "tiles", [float(count) for count in counts], rises, "B")


def adapted(path: str | Path) -> LoadedModel:
    """A model with LoRA on its language part, ready for a training pass."""
    model = load_model(path, dtype="float32")
    words = {"name": "lora", "rank": 16, "alpha": 32, "dropout": 0.0, "parts": ["language"]}
    seed_everything(0)
    make_method(make_recipe({"data": "unused", "task": "answer", "method": words})).apply(model)
    return model


def words(asked: int, answered: int) -> dict[str, torch.Tensor]:
    """A batch of one: random ids, the last `answered` of them labelled."""
    ids = torch.randint(0, 255, (1, asked + answered))
    labels = ids.masked_fill(torch.arange(asked + answered) < asked, -100)
    return {"input_ids": ids, "labels": labels}


def passes(model: LoadedModel, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Seconds and bytes of a forward and backward pass."""

    def once() -> None:
        answer_loss(model.model, batch)[0].backward()

    once()
    with watch_memory(model.device) as memory:
        once()
    return best(once, 2), float(memory.rise)


def answers(_: int) -> Iterator[Curve]:
    """A training pass with longer and longer answers behind a picture's 768 tokens."""
    model, lengths = adapted("embedded"), [64, 256, 1024, 2048]
    found = [passes(model, words(768, length)) for length in lengths]
    tokens = [float(768 + length) for length in lengths]
    # Attention to all earlier tokens is quadratic: between one and two.
    yield Curve(
        "training pass, seconds", "tokens, answers 64 to 2,048 of them", tokens, [cost for cost, _ in found], "s", False
    )
    yield Curve(
        "training pass, memory", "tokens, answers 64 to 2,048 of them", tokens, [rise for _, rise in found], "B"
    )


def models(_: int) -> Iterator[Curve]:
    """A training pass of 512 tokens through wider and wider language models of six layers."""
    weights, found = [], []
    with tempfile.TemporaryDirectory() as place:
        for width in (256, 512, 1024):
            tokenizer = build_tokenizer()
            seed_everything(0)
            built = build_internvl(
                tokenizer, vision_width=64, vision_layers=1, text_width=width, text_layers=6, image_size=448
            )
            folder = Path(place) / str(width)
            save(built, build_processor(tokenizer, 448, max_tiles=2), folder)
            weights.append(float(sum(weight.numel() for weight in built.parameters())))
            found.append(passes(adapted(folder), words(384, 128)))
    yield Curve("training pass, seconds", "weights", weights, [cost for cost, _ in found], "s")
    yield Curve("training pass, memory", "weights", weights, [rise for _, rise in found], "B")


CURVES: dict[str, Callable[[int], Iterator[Curve]]] = {
    "rows": rows, "sizes": sizes, "tiles": tiles, "answers": answers, "models": models,
}  # fmt: skip


def show(curves: list[Curve]) -> None:
    """One line a curve."""
    table = Table("against", "cost", "from", "to", "exponent", title="How costs grow", title_justify="left")
    for curve in curves:
        ends = [human_bytes(int(cost)) if curve.unit == "B" else f"{cost:.3g} s" for cost in curve.costs]
        said = [f"{ends[place]} at {curve.sizes[place]:,.0f}" for place in (0, -1)]
        table.add_row(curve.of, curve.name, *said, f"{curve.exponent:.2f}")
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CURVES), default=list(CURVES))
    parser.add_argument("--most", type=int, default=100_000, help="rows of the largest table")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    said = parser.parse_args()
    torch.set_num_threads(1)
    if said.child:
        child(said.child)
        return
    stored = json.loads(RESULTS.read_text())["curves"] if RESULTS.exists() else {}
    found: list[Curve] = []
    for name in said.only:
        found += (own := list(CURVES[name](said.most)))
        stored[name] = [asdict(curve) | {"exponent": curve.exponent} for curve in own]
        write_json(RESULTS, {"machine": describe_machine(), "curves": stored})
    show(found)
    if worse := [f"{one.name} ({one.exponent:.2f})" for one in found if one.linear and one.exponent > LINEAR]:
        sys.exit(f"worse than linear: {'; '.join(worse)}")


if __name__ == "__main__":
    main()
