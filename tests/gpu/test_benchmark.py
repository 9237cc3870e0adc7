"""benchmarks/gpu.py runs from beginning to end with small models on a CPU, its checks included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_every_part_passes_on_a_cpu(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--minutes", "60", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=os.environ)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    parts = json.loads(output.read_text())
    assert {"parity", "qlora_3_tiles", "lora_7_tiles_plain", "predict", "pretraining"} <= parts.keys()
    assert not [name for name, part in parts.items() if "error" in part or "skipped" in part]
    assert parts["parity"]["loss_distance"] == 0.0
