"""Work on two Ray nodes inside one machine, one of them killed: is anything lost, twice, or different?

    python benchmarks/ray_cluster.py              # some ten minutes on two idle cores; --out FILE elsewhere

Training: two nodes give the losses of one process up to rounding; with a node killed in between, those of two nodes
nobody killed, to the last digit. Prediction: with a node killed in between, every file has one row, equal to that of
one process. Tasks: results in order, a user's mistake as its message. Exit status 1 when any of it does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_nodes import RAY, Nodes, in_ray_environment, ray_nodes

HERE = Path(__file__).resolve().parent
STEPS = 8
DOCUMENTS = 96
NODES = 4  # two at work; of the others one takes the place of each that is killed


def recipe(name: str, place: Path) -> Any:
    from mllm_tailor.recipe import make_recipe

    return make_recipe(
        {
            "name": name,
            "model": {"path": "tiny", "dtype": "float32"},
            "data": {"train": str(place / "data"), "held_out": {"column": "split", "value": "dev"}, "dev": 0},
            "task": {"extract": {"company": "string", "total": "amount"}},
            "method": {"name": "lora", "rank": 4},
            "train": {
                "steps": STEPS, "batch_size": 4, "micro_batch_size": 1, "learning_rate": 0.1, "processes": 1,
                "optimizer": "sgd",  # AdamW makes rounding of small gradients 100 times larger
                "checkpoint_every": 1e-6,
            },
            "predict": {"max_new_tokens": 8},
            "output": str(place / "runs"),
        }
    )  # fmt: skip


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows_of(run / "log.jsonl") if "loss" in row]


def when(condition: Callable[[], object], action: Callable[[], None]) -> threading.Thread:
    """Do something in another thread as soon as the condition holds."""

    def watch() -> None:
        while not condition():
            time.sleep(0.05)
        action()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def train(place: Path, nodes: Nodes) -> dict[str, Any]:
    from pathlib import PurePosixPath

    import torch
    from safetensors.torch import load_file

    from mllm_tailor.launch.plan import LaunchPlan
    from mllm_tailor.launch.ray_train import run_on_ray
    from mllm_tailor.run.execute import execute
    from mllm_tailor.run.options import DEFAULT

    torch.set_num_threads(1)
    alone = execute(recipe("alone", place)).path
    plan = LaunchPlan("train", "", (), PurePosixPath(place), nodes=2, cpus=1)
    seconds = {}
    started = time.perf_counter()
    together = run_on_ray(recipe("together", place), plan, options=DEFAULT).path
    seconds["undisturbed"] = time.perf_counter() - started
    killed = place / "runs" / "killed"
    started = time.perf_counter()
    at: list[int] = []

    def kill() -> None:
        at.append(len(losses(killed)))
        nodes.kill("RayTrainWorker")

    watcher = when(lambda: list(killed.glob("checkpoints/step-*[3-9]")), kill)
    run_on_ray(recipe("killed", place), plan, options=DEFAULT)
    seconds["one_node_killed"] = time.perf_counter() - started
    watcher.join(timeout=120)
    weights = [load_file(next(run.glob("adapter/*.safetensors"))) for run in (alone, together, killed)]
    ledgers = [sorted(row["id"] for row in rows_of(run / "samples.jsonl")) for run in (alone, killed)]
    return {
        "steps": STEPS,
        "largest_difference_of_losses_to_one_process": max(
            abs(left - right) for left, right in zip(losses(alone), losses(together), strict=True)
        ),
        "largest_difference_of_weights_to_one_process": max(
            float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]
        ),
        "killed_after_steps": at,
        "losses_undisturbed": losses(together),
        "losses_with_a_node_killed": losses(killed),
        "weights_with_a_node_killed_equal": all(torch.equal(weights[1][name], weights[2][name]) for name in weights[1]),
        "samples_in_ledger_once": ledgers[0] == ledgers[1] and len(set(ledgers[1])) == len(ledgers[1]),
        "wall_seconds": {name: round(value) for name, value in seconds.items()},
    }


def predict(place: Path, nodes: Nodes) -> dict[str, Any]:
    from PIL import Image, ImageDraw

    from mllm_tailor.generation import read_inputs
    from mllm_tailor.launch import ray_predict
    from mllm_tailor.run.new_files import predict_to_file, predictor_of_run

    scans = place / "scans"
    scans.mkdir()
    for number in range(DOCUMENTS):
        image = Image.new("RGB", (56, 56), "white")
        ImageDraw.Draw(image).text((5, 20), str(number), fill="black")
        image.save(scans / f"{number:04}.png")
    predictor, samples = predictor_of_run(place / "runs" / "alone"), read_inputs([scans])
    expected = predict_to_file(place / "expected.jsonl", predictor, samples)
    out, at = place / "predictions", []
    ray_predict.BLOCK = 8

    def kill() -> None:
        at.append(len(list(out.glob("part-*"))))
        nodes.kill("Reader")

    watcher = when(lambda: len(list(out.glob("part-*"))) >= 2, kill)
    started = time.perf_counter()
    outcome = ray_predict.predict_on_ray(out, predictor, samples, 2)
    seconds = time.perf_counter() - started
    watcher.join(timeout=120)
    made = [row for part in out.glob("part-*.jsonl") for row in rows_of(part)]
    texts = {row["file"]: row["text"] for row in made}
    again = ray_predict.predict_on_ray(out, predictor, samples, 2)
    return {
        "documents": DOCUMENTS,
        "killed_after_parts_of_8": at,
        "rows": len(made),
        "files_with_a_row": len(texts),
        "made_by_the_call": outcome.made,
        "texts_equal_to_one_process": texts == {row["file"]: row["text"] for row in expected},
        "read_by_a_second_call": again.made,
        "wall_seconds": round(seconds),
    }


def double(number: int) -> int:
    from mllm_tailor.core.errors import DataError

    if number < 0:
        raise DataError("row 7: negative — fix it")
    return 2 * number


def tasks() -> dict[str, Any]:
    from mllm_tailor.core.errors import RunError
    from mllm_tailor.launch.ray_map import ray_mapper

    mapper = ray_mapper()
    results = list(mapper(double, [3, 1, 2]))
    try:
        list(mapper(double, [1, -1]))
        message = ""
    except RunError as error:
        message = str(error)
    return {"in_order": results == [6, 2, 4], "message": message}


def holds(result: dict[str, Any]) -> bool:
    training, prediction, work = result["training"], result["prediction"], result["tasks"]
    return (
        training["largest_difference_of_losses_to_one_process"] <= 1e-5
        and training["largest_difference_of_weights_to_one_process"] <= 1e-5
        and bool(training["killed_after_steps"])
        and training["losses_undisturbed"] == training["losses_with_a_node_killed"]
        and training["weights_with_a_node_killed_equal"]
        and training["samples_in_ledger_once"]
        and bool(prediction["killed_after_parts_of_8"])
        and prediction["rows"] == prediction["files_with_a_row"] == prediction["made_by_the_call"] == DOCUMENTS
        and prediction["texts_equal_to_one_process"]
        and prediction["read_by_a_second_call"] == 0
        and work == {"in_order": True, "message": "row 7: negative — fix it"}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "ray_cluster.json")
    arguments = parser.parse_args()
    in_ray_environment()
    from mllm_tailor.core.device import describe_machine
    from mllm_tailor.synthetic import draw_folder

    with tempfile.TemporaryDirectory(prefix="tailor-ray-") as folder:
        place = Path(folder)
        draw_folder(place / "data", 12, 4, seed=5)
        with ray_nodes(NODES) as nodes:
            result: dict[str, Any] = {"ray": RAY, "machine": describe_machine(), "nodes": NODES}
            for name, part in (
                ("tasks", tasks),
                ("training", lambda: train(place, nodes)),
                ("prediction", lambda: predict(place, nodes)),
            ):
                result[name] = part()
                print(json.dumps({name: result[name]}, indent=2), flush=True)
    result["holds"] = holds(result)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(not result["holds"])


if __name__ == "__main__":
    main()
