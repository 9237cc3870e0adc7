"""Sharded processes train what one would: losses, weights, and checkpoints that any number of processes resumes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures.small_job import make_conversations, prepare, small_recipe, train
from safetensors.torch import load_file
from torch import Tensor
from training.sharded_worker import METHODS, SETTINGS, rising_score

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.methods import make_method
from mllm_tailor.training import TrainResult, check_sharding

WORKER = Path(__file__).with_name("sharded_worker.py")
KILLED_AFTER = 2


@pytest.mark.parametrize(
    ("method", "train_settings", "message"),
    [
        ("lora", {"optimizer": "muon"}, "muon does not work on slices of weights — use adamw, sgd"),
        ("adalora", {}, "adalora changes weights between steps"),
        ("lomo", {}, "lomo does not work on slices"),
        ("lora", {"one_modality": True, "modality_parts": {"text": ["language"]}}, "train.modality_parts"),
    ],
)
def test_what_cannot_be_sharded_is_refused(method: str, train_settings: dict[str, Any], message: str) -> None:
    recipe = small_recipe(method, shard="fsdp", **train_settings)
    with pytest.raises(RecipeError, match=message):
        check_sharding(make_method(recipe), recipe.train)


@pytest.mark.slow
def test_sharded_processes_equal_one(tiny_model_folder: Path, tmp_path: Path) -> None:
    """LoRA, QLoRA and full tuning; half of the weights each; killed by SIGKILL and resumed by 2, 3 and 1 processes."""
    samples = make_conversations(tmp_path / "pictures", 10)

    def alone(method: str, folder: str, **settings: Any) -> TrainResult:
        model, chosen, recipe = prepare(tiny_model_folder, METHODS[method], **SETTINGS | settings)
        return train(model, chosen, samples, recipe, tmp_path / folder, evaluate=rising_score)

    killed = {"folder": str(tmp_path / "killed"), "method": "full", "optimizer": "adamw", "killed_after": KILLED_AFTER}
    run_jobs(
        tiny_model_folder,
        tmp_path,
        *({"folder": str(tmp_path / f"sharded-{name}"), "method": name} for name in METHODS),
        killed | {"folder": str(tmp_path / "whole"), "killed_after": None},
        killed,
    )
    for method in METHODS:
        sharded = tmp_path / f"sharded-{method}"
        assert losses(sharded) == pytest.approx(alone(method, f"alone-{method}").losses, rel=1e-6)
        assert distance(tmp_path / f"alone-{method}", sharded) <= 1e-6
        for rank in (0, 1):
            held, total = json.loads((sharded / f"rank_{rank}.json").read_text())
            assert held < 0.51 * total

    assert json.loads((tmp_path / "killed" / "exit_codes.json").read_text())[1] == -9
    assert len(losses(tmp_path / "killed")) == KILLED_AFTER < len(losses(tmp_path / "whole"))
    checkpoint = max((tmp_path / "killed" / "checkpoints").glob("step-*"))
    sizes = [file.stat().st_size for file in checkpoint.glob("*.safetensors")]
    assert len(list(checkpoint.glob("shard-*"))) == 2, "each process wrote its own slices"
    assert max(sizes) < 0.52 * sum(sizes)
    for count in (1, 2, 3):
        shutil.copytree(tmp_path / "killed", tmp_path / f"resumed-{count}")
    whole = killed | {"killed_after": None}
    resumed = [whole | {"folder": str(tmp_path / f"resumed-{count}"), "processes": count} for count in (2, 3)]
    run_jobs(tiny_model_folder, tmp_path, *resumed)
    alone("full", "resumed-1", optimizer="adamw")
    assert distance(tmp_path / "whole", tmp_path / "resumed-2") == 0.0
    for count in (1, 3):
        assert losses(tmp_path / f"resumed-{count}") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
        # Adam divides by small gradients: rounding becomes a share of its steps of 0.02.
        assert distance(tmp_path / "whole", tmp_path / f"resumed-{count}") <= 1e-4


def run_jobs(model_folder: Path, work: Path, *jobs: dict[str, Any]) -> None:
    path = os.pathsep.join([str(WORKER.parent.parent), os.environ.get("PYTHONPATH", "")])
    listed = json.dumps([{"processes": 2} | job for job in jobs])
    command = [sys.executable, str(WORKER), str(model_folder), str(work / "pictures"), listed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-3000:]
    for job in jobs:
        if not job.get("killed_after"):
            codes = json.loads((Path(job["folder"]) / "exit_codes.json").read_text())
            assert not any(codes), done.stderr[-3000:]


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def distance(left: Path, right: Path) -> float:
    """The largest difference of two saved adapters."""
    tensors: list[dict[str, Tensor]] = []
    for folder in (left, right):
        (file,) = (folder / "adapter").glob("*.safetensors")
        tensors.append(load_file(file))
    assert tensors[0].keys() == tensors[1].keys()
    return max(float((tensors[0][name] - tensors[1][name]).abs().max()) for name in tensors[0])
