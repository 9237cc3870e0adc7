"""Every method: what one process saved, a fresh one reads back and then says the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures.method_cases import CASES, ROUNDED
from fixtures.pairs import write_pair_family
from fixtures.small_job import difference
from safetensors.torch import load_file

from mllm_tailor.methods import METHODS

WORKER = Path(__file__).resolve().parents[1] / "fixtures" / "reload_worker.py"
PAIRS = {
    "clip lora": {"name": "lora", "rank": 4, "parts": ["vision", "language"]},
    "clip full": {"name": "full", "parts": ["projector"]},
}


def test_every_method_is_in_the_table() -> None:
    assert {spec["name"] for spec in CASES.values()} | {"freeze", "lomo", "adalomo", "mezo"} == set(METHODS)


@pytest.mark.slow
def test_a_fresh_process_says_the_same(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Bit for bit, but where a method is written in another form than trained: then to rounding, replies the same."""
    write_pair_family(tmp_path / "clip", "clip")
    optimizers = {name: {"name": name, "parts": ["projector"]} for name in ("lomo", "adalomo", "mezo")}
    cases = CASES | PAIRS | optimizers
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(WORKER.parents[1])])}
    for what in ("write", "read"):
        words = [what, str(tiny_model_folder), str(tmp_path / "clip"), str(tmp_path / "work"), json.dumps(cases)]
        done = subprocess.run([sys.executable, str(WORKER), *words], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    for name in cases:
        wrote, found = (load_file(tmp_path / "work" / name / f"{what}.safetensors") for what in ("write", "read"))
        same = [torch.equal(found[f"untouched {key}"], wanted) for key, wanted in wrote.items()]
        assert not all(same), f"{name}: so does the base, which shows nothing"
        for key, wanted in wrote.items():
            if key != "replies" and name in ROUNDED:
                assert difference(wanted, found[key]) <= ROUNDED[name], name
            else:
                assert torch.equal(wanted, found[key]), name
