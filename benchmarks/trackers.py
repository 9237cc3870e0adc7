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
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HOME = HERE.parent / ".benchmarks" / "trackers"
PACKAGES = {"mlflow": "mlflow-skinny==3.17.2", "wandb": "wandb==0.31.0", "trackio": "trackio==0.43.0"}
BESIDE = ("sqlalchemy", "alembic")  # for mlflow.db
LOSSES = [3.0, 2.0, 1.0]
BLOCK, FRAGMENT = 1 << 15, struct.Struct("<IHB")  # of LevelDB's log
WHOLE, FIRST, LAST = 1, 2, 4  # kinds of fragments; 3 is a middle one


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


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """The records of an offline file: LevelDB's log format behind 7 bytes. (wandb removed its own reader in Python.)

    Blocks of 32 KiB hold fragments, each of a CRC-32 of its kind and content, a length and a kind: whole, first,
    middle or last of a record.
    """
    position, parts = 7, b""
    assert log[:4] == b":W&B", log[:7]
    while position < len(log):
        left = BLOCK - position % BLOCK
        if left < FRAGMENT.size:  # what is left of a block is filled up
            position += left
            continue
        checksum, length, kind = FRAGMENT.unpack_from(log, position)
        content = log[position + FRAGMENT.size : position + FRAGMENT.size + length]
        assert checksum == zlib.crc32(bytes([kind]) + content), f"damaged at byte {position}"
        parts = content if kind in (WHOLE, FIRST) else parts + content
        if kind in (WHOLE, LAST):
            yield parts
        position += FRAGMENT.size + length


def of_wandb(folder: Path) -> dict[str, Any]:
    from wandb.proto import wandb_internal_pb2

    losses, dev, ids = [], None, set()
    for file in sorted(folder.rglob("run-*.wandb")):
        ids.add(file.stem)
        for data in leveldb_records(file.read_bytes()):
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


def in_environment(python: str, *words: str, place: str) -> subprocess.CompletedProcess[str]:
    """One step of a check in a process of its own: trackers write their last rows until it ends."""
    names = ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY", "TRACKIO_SPACE_ID")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"TRACKIO_DIR": f"{place}/trackio", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([python, __file__, *words], capture_output=True, text=True, env=environment)


def check(python: str, name: str) -> Any:
    """What the tracker holds, or the last line of what went wrong."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        folder.mkdir()
        for word in ("log", "read"):
            done = in_environment(python, word, name, str(folder), place=place)
            if done.returncode:
                return done.stderr.splitlines()[-1:]
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    if len(sys.argv) > 1:
        word, name, folder = sys.argv[1:]
        print(json.dumps(READERS[name](Path(folder))) if word == "read" else log_all(name, Path(folder)))
        return
    python = os.environ.get("TRACKERS_PYTHON") or str(make_environment())
    expected = {"losses": [[step, loss] for step, loss in enumerate(LOSSES, 1)], "dev": 50.0}
    result: dict[str, Any] = {}
    for name, package in PACKAGES.items():
        held = check(python, name)
        result[name] = {"package": package, "held": held, "holds": held == expected}
        print(name, result[name], file=sys.stderr)
    (HERE / "results" / "trackers.json").write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(not all(entry["holds"] for entry in result.values()))


if __name__ == "__main__":
    main()
