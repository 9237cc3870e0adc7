"""The GPU path on a GPU that is not there: every family and method trains a step and predicts on fake CUDA tensors.

The product's own training and prediction run in a process of their own (worker.py), where every operation passes
torch's FakeTensorMode with a CUDA device before its numbers are computed on the CPU (fake_gpu.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures.method_cases import CASES
from fixtures.tiny_families import RECIPES
from gpu.load_fake_cuda import compile_library

WORKER = Path(__file__).with_name("worker.py")
FAMILIES = {f"family {name}": ("family", name) for name in RECIPES}
METHODS = {f"method {name}": ("method", name) for name in CASES}
# Where the product itself lets the host wait within a step: the loss and the gradient norm, once a step.
STEP_WAITS = {"training/step_runner.py:_run_micro_batches", "training/optim/torch_bnb.py:step"}
# Further ones: Phi-4's encoder takes the media of one sample at a time, whose number stands in the batch.
PHI4_WAITS = {f"models/patches/phi4.py:{name}" for name in ("_encode_per_sample", "_take_images", "_take_audios")}
# APOLLO limits the growth of each matrix's update by its norm, which it keeps as a number.
CASE_WAITS = {
    "family phi4_multimodal": PHI4_WAITS | {"models/inputs/phi4.py:shown_patches"},
    "method apollo": {"training/optim/galore_apollo.py:apollo_step"},
}
# Products in float32 that are meant: a regulariser, projections of gradients, a rotation's matrix.
WIDE = {
    "method adalora": {"methods/adalora.py:add"},
    "method apollo": {"training/optim/galore_apollo.py:apollo_step"},
    "method galore": {"training/optim/galore_apollo.py:galore_step"},
    "method oft": {"backward"},
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="the fake device is compiled by g++"),
]


def run_worker(folder: Path, cases: list[tuple[str, str]], model: Path) -> dict[str, Any]:
    library = compile_library(folder)
    path = os.pathsep.join([str(WORKER.parent.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(WORKER), str(library), str(folder), json.dumps(cases), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {f"{kind} {name}": row for kind, name, row in rows}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> dict[str, Any]:
    """What was seen, by case; `planted` ones hold a fault each."""
    cases = [*FAMILIES.values(), *METHODS.values(), *(("planted", name) for name in PLANTED)]
    return run_worker(tmp_path_factory.mktemp("gpu"), cases, tiny_model_folder)


@pytest.mark.parametrize("case", [*FAMILIES, *METHODS])
def test_trains_and_predicts(case: str, rows: dict[str, Any]) -> None:
    row = rows[case]
    assert "error" not in row, row["traceback"]
    for phase in ("step", "predict"):
        assert not row[phase]["unsupported"], f"{phase}: without a rule for CUDA"
    step = row["step"]
    assert step["products"], "no product ran on the device"
    wide = set(step["wide_products"]) - WIDE.get(case, set())
    assert not wide, "products in float32, where the step computes in bf16"
    waits = {place for place in map(own_place, step["waits"]) if place} - STEP_WAITS - CASE_WAITS.get(case, set())
    assert not waits, "the host waits for the device within a step"


def own_place(wait: str) -> str:
    """Where in the product a wait stands; empty for one of a library that it calls."""
    _, place, *rest = wait.split(" ")
    return "" if rest[0] == ">" or place.startswith("backward") else place


# A small fault each, and what must be found.
PLANTED = {
    "wrong device": "FakeTensorDeviceMismatchError",
    "wrong dtype": "expected m1 and m2 to have the same dtype",
    "wide product": '{"worker.py:<lambda>": 1}',
    "item": "read worker.py:<lambda> item",
    "mask": "size worker.py:<lambda> index.Tensor by a mask",
    "upload": "upload worker.py:<lambda> _to_copy",
    "numpy": "can't convert cuda:0 device type tensor to numpy",
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault: str, rows: dict[str, Any]) -> None:
    assert PLANTED[fault] in json.dumps(rows[f"planted {fault}"])
