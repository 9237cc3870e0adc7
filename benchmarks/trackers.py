"""Do MLflow, Weights & Biases and Trackio hold what a training logged, also after it was resumed?

    python benchmarks/trackers.py

Each is installed in an environment that sees the packages of this one. Two steps and a dev score are logged, the log is
closed, opened again at step 2, and a third step is logged; then the tracker's own reader is asked. Writes
results/trackers.json; exit status 1 when one holds something else.
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HOME = HERE.parent / ".benchmarks" / "trackers"
PACKAGES = {"mlflow": "mlflow-skinny==3.17.2", "wandb": "wandb==0.31.0", "trackio": "trackio==0.43.0"}
BESIDE = ("sqlalchemy", "alembic")  # for mlflow.db
LOSSES = [3.0, 2.0, 1.0]


def log_all(name: str, folder: Path) -> None:
    """A training of three steps that was stopped after two."""
    from mllm_tailor.training.log import TrainingLog
    from mllm_tailor.training.state import Progress

    row = {"samples_per_second": 1.0, "memory": 1, "seconds_left": 1.0}
    with TrainingLog(folder, 3, Progress(), [name]) as log:
        for step in (1, 2):
            log.step({"step": step, "loss": LOSSES[step - 1], **row})
        log.dev(2, {"fuzzy": 50.0})
    with TrainingLog(folder, 3, Progress(step=2, evaluated_step=2), [name]) as log:
        log.step({"step": 3, "loss": LOSSES[2], **row})


def of_mlflow(folder: Path) -> dict[str, Any]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "mllm-tailor"]
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    return {
        "losses": [[point.step, point.value] for point in sorted(history, key=lambda point: point.step)],
        "dev": run.data.metrics["dev/fuzzy"],
    }


def of_wandb(folder: Path) -> dict[str, Any]:
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal import datastore

    losses, dev, ids = [], None, set()
    for file in sorted(folder.rglob("run-*.wandb")):
        ids.add(file.stem)
        store = datastore.DataStore()
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if "train/loss" in items:
                losses.append([json.loads(items["_step"]), json.loads(items["train/loss"])])
            dev = json.loads(items["dev/fuzzy"]) if "dev/fuzzy" in items else dev
    assert len(ids) == 1, ids
    return {"losses": losses, "dev": dev}


def of_trackio(folder: Path) -> dict[str, Any]:
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_runs("mllm-tailor")
    rows = SQLiteStorage.get_logs("mllm-tailor", run)
    losses = [[row["step"], row["train/loss"]] for row in rows if "train/loss" in row]
    return {"losses": losses, "dev": next(row["dev/fuzzy"] for row in rows if "dev/fuzzy" in row)}


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {"mlflow": of_mlflow, "wandb": of_wandb, "trackio": of_trackio}


def make_environment() -> Path:
    python = HOME / "bin" / "python"
    if not (HOME / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
        packages = next(HOME.glob("lib/python*/site-packages"))
        (packages / "project.pth").write_text("\n".join(site.getsitepackages()))
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES.values(), *BESIDE], check=True)
        (HOME / ".ready").touch()
    return python


def check(name: str) -> dict[str, Any]:
    """In a process of the environment: what the tracker holds."""
    with tempfile.TemporaryDirectory() as place:
        os.environ |= {"TRACKIO_DIR": f"{place}/trackio", "HF_HUB_OFFLINE": "1"}
        for variable in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY", "TRACKIO_SPACE_ID"):
            os.environ.pop(variable, None)
        folder = Path(place) / "run"
        folder.mkdir()
        log_all(name, folder)
        return READERS[name](folder)


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(check(sys.argv[1])))
        return
    python = os.environ.get("TRACKERS_PYTHON") or str(make_environment())
    expected = {"losses": [[step, loss] for step, loss in enumerate(LOSSES, 1)], "dev": 50.0}
    result: dict[str, Any] = {}
    for name, package in PACKAGES.items():
        done = subprocess.run([python, __file__, name], capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr.splitlines()[-1:]
        result[name] = {"package": package, "found": found, "holds": found == expected}
        print(name, result[name], file=sys.stderr)
    (HERE / "results" / "trackers.json").write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(not all(entry["holds"] for entry in result.values()))


if __name__ == "__main__":
    main()
