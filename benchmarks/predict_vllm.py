"""Receipts per second of `tailor predict` here and in vLLM: the same model, samples, ids, tiles and schema.

    python benchmarks/predict_vllm.py                    # the embedded model, in float32 and in bf16
    python benchmarks/predict_vllm.py --samples 8 --rounds 3

Each engine reads in a process and its own environment (benchmarks/environments.py), on one thread, drawn receipts
it has not met: first a few to warm up, then one set a round. Seconds are CPU seconds, so that other work on the
machine does not decide; wall seconds stand beside them. Opening is left out and stands beside them too. Results go to
benchmarks/results/predict_vllm.json; the command fails when a ratio fell by more than 10 % under the one stored there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mllm_tailor.cli.main import VLLM

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "predict_vllm.json"
FIELDS = {"company": "string", "date": "date", "address": "string", "total": "amount"}
ENGINES = ("ours", "vllm")
WARM_UP = 2  # receipts
SEED = 20_000
THREADS = {
    **VLLM,
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # as many threads as OMP_NUM_THREADS says, on any core
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True)
class WorkerArgs:
    """What one process reads."""

    engine: str
    dtype: str
    held: bool
    folder: str  # of the receipts
    samples: int  # a round
    rounds: int
    model: str
    max_new_tokens: int


def work_here(work: WorkerArgs) -> dict[str, Any]:
    """Read every round in this process: seconds, and the replies."""
    from mllm_tailor.core.device import Stopwatch
    from mllm_tailor.core.sample import Media, Sample
    from mllm_tailor.generation import predict
    from mllm_tailor.generation.vllm.engine import VllmEngine
    from mllm_tailor.models import load_model
    from mllm_tailor.recipe.schema import Predict
    from mllm_tailor.tasks import open_task

    opening = Stopwatch()
    task = open_task("extract", FIELDS)
    model = load_model(work.model, dtype=work.dtype, device="cpu")
    engine = None
    if work.engine == "vllm":
        engine = VllmEngine(model, model.folder, task.schema())
        model.model.to("meta")
    found: dict[str, Any] = {"opening": opening.seconds(), "cpu": [], "wall": [], "texts": []}
    count = WARM_UP + work.samples * work.rounds
    samples = [Sample(str(number), (Media("image", picture_of(work, number)),)) for number in range(count)]
    settings = Predict(max_new_tokens=work.max_new_tokens)
    predict(model, task, samples[:WARM_UP], settings, constrained=work.held, engine=engine)
    for start in range(WARM_UP, count, work.samples):
        watch = Stopwatch()
        part = samples[start : start + work.samples]
        replies = predict(model, task, part, settings, constrained=work.held, engine=engine)
        found["cpu"].append(watch.cpu_seconds())
        found["wall"].append(watch.seconds())
        found["texts"] += [reply.text for reply in replies]
    return found


def picture_of(work: WorkerArgs, number: int) -> Path:
    """Where a drawn receipt lies."""
    return Path(work.folder) / f"{number}.png"


def draw(work: WorkerArgs) -> None:
    """The receipts of all rounds."""
    from mllm_tailor.synthetic import draw_document

    for number in range(WARM_UP + work.samples * work.rounds):
        draw_document("receipts", SEED + number).image.save(picture_of(work, number))


def run(work: WorkerArgs) -> dict[str, Any]:
    """The same in the engine's own process and environment."""
    from environments import ROOT, python_of

    paths = [str(ROOT / "src"), *([str(HERE / "patched")] if work.engine == "vllm" else [])]
    environment = os.environ | THREADS | {"PYTHONPATH": os.pathsep.join(paths)}
    words = [str(python_of(work.engine)), __file__, "--work", json.dumps(asdict(work))]
    print(f"{work.engine}, {work.dtype}, {'constrained' if work.held else 'unconstrained'}", file=sys.stderr)
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{work.engine} cannot read:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(works: dict[str, WorkerArgs]) -> dict[str, Any]:
    """One row: both engines on the same receipts."""
    found = {engine: run(work) for engine, work in works.items()}
    rates = {engine: works[engine].samples / statistics.median(one["cpu"]) for engine, one in found.items()}
    same = sum(one == other for one, other in zip(*(one.pop("texts") for one in found.values()), strict=True))
    work = works["ours"]
    return {
        "dtype": work.dtype,
        "held": work.held,
        "samples_per_cpu_second": rates,
        "ratio": rates["ours"] / rates["vllm"],
        "same_replies": same,
        "replies": work.samples * work.rounds,
        **found,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "numbers", "replies", "ours, a CPU second", "vLLM", "ours to vLLM", "wall s (ours, vLLM)", "same replies"
    )
    for row in rows:
        rates, wall = row["samples_per_cpu_second"], [statistics.median(row[engine]["wall"]) for engine in ENGINES]
        table.add_row(
            row["dtype"],
            "constrained" if row["held"] else "unconstrained",
            *(f"{rates[engine]:.2f}" for engine in ENGINES),
            f"{row['ratio']:.2f}",
            f"{wall[0]:.1f}, {wall[1]:.1f}",
            f"{row['same_replies']}/{row['replies']}",
        )
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="`embedded`, or a folder of an InternVL")
    parser.add_argument("--samples", type=int, default=8, help="receipts a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--save", action="store_true", help="store these ratios as the ones to hold")
    parser.add_argument("--work", help=argparse.SUPPRESS)  # what a process of one engine is told
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(work_here(WorkerArgs(**json.loads(arguments.work)))))
        return
    from mllm_tailor.core.device import describe_machine
    from mllm_tailor.core.io import write_json

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        size = (folder, arguments.samples, arguments.rounds, arguments.model, arguments.max_new_tokens)
        draw(WorkerArgs("ours", "float32", True, *size))
        for dtype in arguments.dtypes:
            for held in (True, False):
                rows.append(compare({engine: WorkerArgs(engine, dtype, held, *size) for engine in ENGINES}))
    show(rows)
    stored = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    before = {(row["dtype"], row["held"]): row["ratio"] for row in stored}
    if arguments.save or not stored:
        told = {name: value for name, value in vars(arguments).items() if name != "work"}
        write_json(RESULTS, {"machine": describe_machine(), "arguments": told, "rows": rows})
    fallen = [row for row in rows if row["ratio"] < 0.9 * before.get((row["dtype"], row["held"]), 0)]
    if fallen and not arguments.save:
        sys.exit(
            "more than 10 % under the stored ratio: " + "; ".join(f"{row['dtype']}, {row['held']}" for row in fallen)
        )


if __name__ == "__main__":
    main()
