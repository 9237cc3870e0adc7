"""Two processes train what one would, and share what an optimizer computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.muon_steps import muon_steps
from fixtures.small_job import make_conversations, prepare, train
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("ranks_worker.py")


@pytest.mark.slow
def test_two_processes_equal_one(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Same samples in the same steps, odd ones out included; losses and weights within 1e-6, with Muon, too."""
    samples = make_conversations(tmp_path / "pictures", 10)
    model, method, recipe = prepare(
        tiny_model_folder,
        {"name": "lora", "rank": 4},
        optimizer="sgd",
        micro_batch_size=1,
        learning_rate=0.5,
        batch_size=4,
    )
    alone = train(model, method, samples, recipe, tmp_path / "alone", evaluate=lambda: {"score": 1.0})
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(WORKER),
         str(tiny_model_folder), str(tmp_path / "pictures"), str(tmp_path / "together")],
        capture_output=True, text=True, timeout=600, cwd=WORKER.parents[1],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(WORKER.parent.parent), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "together" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses == pytest.approx(alone.losses, rel=1e-6)
    left, right = (load_file(tmp_path / who / "adapter" / "adapter_model.safetensors") for who in ("alone", "together"))
    assert max(float((left[name] - right[name]).abs().max()) for name in left) <= 1e-6
    ranks = [load_file(tmp_path / "together" / f"muon-{rank}.safetensors") for rank in range(2)]
    for name, weight in muon_steps(share=1.0).items():
        assert ranks[0][name].equal(ranks[1][name])
        assert float((ranks[0][name] - weight).abs().max()) <= 1e-6
