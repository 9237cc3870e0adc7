"""How fast one core makes batches ready for training: from kept features, and from the pictures themselves.

    python benchmarks/batches.py
    python benchmarks/batches.py --samples 64

Drawn receipts for the embedded model, batches of four, no training step: samples a CPU second of one thread, the
best of three rounds. From memory and from disk are what a second epoch takes; live is a training whose pictures change.
The goal: 500 from the cache, so that no device waits. Results go to benchmarks/results/batches.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mllm_tailor.core.device import Stopwatch, computes_in_bf16, describe_machine
from mllm_tailor.core.io import write_json
from mllm_tailor.data import read_samples
from mllm_tailor.models import load_model
from mllm_tailor.models.vision_cache import VisionFeatureCache
from mllm_tailor.recipe import make_recipe
from mllm_tailor.synthetic import draw_folder
from mllm_tailor.tasks import open_task
from mllm_tailor.training.batches import BatchSource, LiveBatches
from mllm_tailor.training.vision_cache import CachedBatches

RESULTS = Path(__file__).parent / "results" / "batches.json"
BATCH, ROUNDS = 4, 3


def rate(feed: BatchSource, count: int) -> float:
    """Samples a CPU second, the best round."""
    best = 0.0
    for _ in range(ROUNDS):
        watch = Stopwatch()
        for start in range(0, count, BATCH):
            feed.batch(range(start, min(start + BATCH, count)), 0)
        best = max(best, count / watch.cpu_seconds())
    return best


def from_disk(feed: CachedBatches) -> CachedBatches:
    """The same without what it holds in memory."""
    feed.cache = feed.vision.cache = VisionFeatureCache(0, feed.cache.folder)
    return feed


def measure(folder: Path, count: int) -> dict[str, float]:
    """Rates by where batches come from."""
    draw_folder(folder, count, 0, seed=11)
    recipe = make_recipe(
        {"data": str(folder), "task": {"extract": {"company": "string", "date": "date", "total": "amount"}}}
    )
    task = open_task(recipe.task_name, recipe.task_settings)
    samples = [task.phrase(sample) for sample in read_samples(folder).samples]
    model = load_model("embedded", device="cpu")
    for weight in model.model.parameters():
        weight.requires_grad_(False)
    bf16 = computes_in_bf16("auto", model.device)
    kept = CachedBatches(model, samples, "answer", folder / "cache", bf16=bf16)
    ways: dict[str, Callable[[], BatchSource]] = {
        "features in memory": lambda: kept,
        "features on disk": lambda: from_disk(kept),
        "pictures": lambda: LiveBatches(model, samples, "answer", None),
        "pictures, changed": lambda: LiveBatches(model, samples, "answer", 1),
    }
    return {name: rate(make(), len(samples)) for name, make in ways.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        found = measure(Path(place), arguments.samples)
    table = Table("batches from", "samples a CPU second")
    for name, value in found.items():
        table.add_row(name, f"{value:,.0f}")
    Console().print(table)
    write_json(RESULTS, {"machine": describe_machine(), "samples": arguments.samples, "rates": found})


if __name__ == "__main__":
    main()
