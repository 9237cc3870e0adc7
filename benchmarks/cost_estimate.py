"""Does the cost estimate hold? Estimated peak memory and seconds beside those of the real training, over many settings.

    python benchmarks/cost_estimate.py                # every setting, two processes each
    python benchmarks/cost_estimate.py --only lora    # those whose name holds these letters
    python benchmarks/cost_estimate.py --runs RUN...  # finished runs: what they estimated beside what they took

One process profiles a step (as `tailor check` and `tailor run` do), another trains two epochs; each is fresh, so that
none profits from memory the other has touched. Drawn receipts, one thread. Results:
benchmarks/results/cost_estimate.json.
Seconds are CPU seconds on both sides, so that other work on the machine does not decide, and twice those of the
second epoch: what a process sets up once, in its first step, is nothing beside a real training. Of finished runs,
the memory of all processes is compared alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mllm_tailor.core.device import describe_machine, peak_memory, pick_device, seed_everything
from mllm_tailor.core.io import human_bytes, human_time, write_json
from mllm_tailor.models import measure_length
from mllm_tailor.models.bundled.build import build_internvl, build_processor, build_tokenizer, save
from mllm_tailor.recipe import Recipe, make_recipe
from mllm_tailor.run.cost_estimate import Shape, extrapolate
from mllm_tailor.run.dataset import prepare
from mllm_tailor.run.predict import open_for_training
from mllm_tailor.run.resolve import resolve
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.synthetic import draw_folder
from mllm_tailor.training import TrainingConfig, TrainingEvent, TrainingHooks, profile_step, train
from mllm_tailor.training import profile as rehearsal

RESULTS = Path(__file__).parent / "results" / "cost_estimate.json"
SAMPLES, BATCH, STEPS = 8, 4, 4  # two epochs, the second of which is timed
EVERYTHING = ["vision", "projector", "language", "head"]
FULL = {"name": "full", "parts": EVERYTHING}
LORA = {"name": "lora", "rank": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"method": LORA},
    "lora, one a pass": {"method": LORA, "train": {"micro_batch_size": 1}},
    "lora, vision too": {"method": {**LORA, "parts": ["vision", "projector", "language"]}},
    "lora, vision too, recomputed": {
        "method": {**LORA, "parts": ["vision", "projector", "language"]},
        "train": {"gradient_checkpointing": True},
    },
    "qlora": {"method": {"name": "qlora", "rank": 16}},
    "full": {"method": FULL},
    "full, one a pass": {"method": FULL, "train": {"micro_batch_size": 1}},
    "full, recomputed": {"method": FULL, "train": {"gradient_checkpointing": True}},
    "full, augmented, sgd": {"method": FULL, "train": {"augment": True, "optimizer": "sgd"}},
    "full, one tile": {"method": FULL, "model": {"path": "embedded", "tiles": {"min": 1, "max": 1}}},
    "lomo": {"method": {"name": "lomo", "parts": EVERYTHING}},
    "mezo": {"method": {"name": "mezo", "parts": EVERYTHING}},
    "lora, 50 million weights": {"method": LORA, "model": {"path": "WIDE"}},
    "full language, 50 million weights": {"method": {"name": "full", "parts": ["language"]}, "model": {"path": "WIDE"}},
}


def build(folder: Path) -> None:
    """Receipts, and a random model of about 50 million weights in the text side."""
    draw_folder(folder / "receipts", SAMPLES, 2, seed=3)
    seed_everything(0)
    tokenizer = build_tokenizer()
    model = build_internvl(
        tokenizer, vision_width=192, vision_layers=4, text_width=512, text_layers=12, image_size=448, head_width=64,
        tie_embeddings=False,
    )  # fmt: skip
    save(model, build_processor(tokenizer, 448, max_tiles=2), folder / "wide")


def recipe_of(name: str, folder: Path) -> Recipe:
    """The setting as a recipe."""
    said = SETTINGS[name]
    model = dict(said.get("model", {"path": "embedded"}))
    if model["path"] == "WIDE":
        model["path"] = str(folder / "wide")
    steps = {"batch_size": BATCH, "steps": STEPS, "learning_rate": 1e-5} | said.get("train", {})
    data = {"train": str(folder / "receipts"), "held_out": {"column": "split", "value": "dev"}, "dev": 0}
    task = {"extract": {"company": "string", "date": "date", "address": "string", "total": "amount"}}
    return make_recipe({"data": data, "task": task, "model": model, "method": said["method"], "train": steps})


def child(name: str, folder: Path, what: str) -> None:
    """Estimate, or train; prints bytes and seconds."""
    torch.set_num_threads(1)
    rehearsal.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[attr-defined]
    recipe = recipe_of(name, folder)
    run = resolve(recipe)
    splits, _ = prepare(run)
    model, method = open_for_training(run), run.method
    method.apply(model)
    if what == "estimate":
        lengths = [measure_length(sample, model) for sample in splits.learned]
        found = profile_step(model, splits.learned, lengths, TrainingConfig.from_recipe(recipe))
        said = extrapolate(found, Shape.of(model), lengths, recipe.train, len(splits.train))
        answer = {"bytes": said.peak_bytes, "seconds": said.training_seconds}
    else:
        ends: list[float] = []

        def tell(event: TrainingEvent) -> None:
            if event.kind == "step":
                ends.append(time.process_time())

        with tempfile.TemporaryDirectory() as place:
            hooks = TrainingHooks(on_event=tell)
            train(model, splits.learned, TrainingConfig.from_recipe(recipe), Path(place), hooks)
        seconds = 2 * (ends[STEPS - 1] - ends[STEPS // 2 - 1])
        answer = {"bytes": peak_memory(pick_device()), "seconds": seconds}
    print(json.dumps(answer))


def measure(name: str, folder: Path, what: str) -> dict[str, float]:
    """In its own process."""
    command = [sys.executable, __file__, "--child", name, "--folder", str(folder), "--what", what]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{name}, {what}:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def off_by(estimated: dict[str, float], measured: dict[str, float]) -> dict[str, float]:
    """By which share each estimate is too high."""
    return {key: value / measured[key] - 1 for key, value in estimated.items()}


def compare_runs(folders: list[Path]) -> list[dict[str, Any]]:
    """What memory finished runs estimated and took; their seconds depend on what ran beside them."""
    rows = []
    for folder in folders:
        recipe = RunFolder(folder).recipe()
        cost, took = (json.loads((folder / name).read_text()) for name in ("cost_estimate.json", "training.json"))
        estimated, measured = {"bytes": cost["peak_bytes"]}, {"bytes": took["peak_bytes"]}
        rows.append(
            {
                "run": recipe.name,
                "method": recipe.method["name"],
                "processes": cost["processes"],
                "steps": took["steps"],
                "estimated": estimated,
                "measured": measured,
                "off": off_by(estimated, measured),
            }
        )
    return rows


def main() -> None:
    """Estimate, train, compare, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="settings whose name holds these letters")
    parser.add_argument("--runs", type=Path, nargs="+", help="finished runs instead")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.child:
        child(said.child, said.folder, said.what)
        return
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"settings": [], "runs": []}
    if said.runs:
        runs = compare_runs(said.runs)
        kept = [row for row in stored.get("runs", ()) if row["run"] not in {run["run"] for run in runs}]
        write_json(RESULTS, stored | {"runs": kept + runs})
        for row in runs:
            print(
                f"{row['run']}: {row['processes']} processes, {row['steps']} steps: memory {row['off']['bytes']:+.0%}"
            )
        return
    table = Table(title="The forecast beside the training", title_justify="left")
    for column in ("setting", "memory estimated", "measured", "off by", "seconds estimated", "measured", "off by"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    rows = stored["settings"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build(folder)
        for name in (name for name in SETTINGS if said.only in name):
            began = time.perf_counter()
            estimate, measured = (measure(name, folder, what) for what in ("estimate", "train"))
            off = off_by(estimate, measured)
            rows = [row for row in rows if row["setting"] != name]
            rows.append(
                {
                    "setting": name,
                    "estimated": estimate,
                    "measured": measured,
                    "off": off,
                    "machine": describe_machine(),
                }
            )
            write_json(RESULTS, stored | {"settings": rows})  # it is a long way to the last one
            print(f"{name}: memory {off['bytes']:+.0%}, seconds {off['seconds']:+.0%}, "
                  f"took {human_time(time.perf_counter() - began)}", flush=True)  # fmt: skip
            table.add_row(
                name, human_bytes(estimate["bytes"]), human_bytes(measured["bytes"]), f"{off['bytes']:+.0%}",
                human_time(estimate["seconds"]), human_time(measured["seconds"]), f"{off['seconds']:+.0%}",
            )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
