"""What one GPU does with this package, in under twelve minutes on a bare machine.

    python benchmarks/gpu.py                              # on the GPU
    python benchmarks/gpu.py --device cpu --tiny          # the script itself, with small models, on a CPU

On a machine without the package it installs it first: from `--wheels FOLDER` without an index, else by pip. Results go
to benchmarks/results/gpu.json after every part, so that what was measured is kept if the machine goes away; a part that
fails is stored with its error, and one for which no time is left with that reason. The command fails when a check does.

- parity: a small model trained and read in float32 on the GPU and on the CPU: losses, logits, replies.
- steps: a LoRA step in bf16 and a QLoRA step of a model with the sizes of a published 2B InternVL (random weights),
  documents of 3 and of 7 tiles, beside the plain recipe of PEFT on the same samples: seconds and peak memory.
- predict: documents a second with the same model, constrained.
- pretraining: all weights of the embedded model trained, samples and tokens a second.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
NEEDED = ("torch", "transformers", "peft", "bitsandbytes", "llguidance", "mllm_tailor")
MINUTES = 12.0


def prepare(wheels: str | None) -> None:
    """Install what is missing, then start over in a fresh interpreter."""
    if all(importlib.util.find_spec(name) for name in NEEDED):
        return
    if os.environ.get("GPU_BENCHMARK_PREPARED"):
        raise SystemExit(f"not installed: {[name for name in NEEDED if not importlib.util.find_spec(name)]}")
    source = ["--no-index", "--find-links", wheels] if wheels else []
    command = [sys.executable, "-m", "pip", "install", "-q", *source, "-e", f"{ROOT}[quantize]"]
    subprocess.run(command, check=True)
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"GPU_BENCHMARK_PREPARED": "1"})


class Report:
    """Results, written after every part; parts stop beginning when the time is used up."""

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.ends = path, time.monotonic() + 60 * minutes
        self.parts: dict[str, Any] = {}

    def add(self, name: str, part: Callable[[], dict[str, Any]], minutes: float) -> None:
        """Run a part that takes about so many minutes."""
        started = time.monotonic()
        if self.ends - started < 60 * minutes:
            result: dict[str, Any] = {"skipped": "no time left"}
        else:
            try:
                result = part()
            except Exception as error:  # stored: the other parts are measured all the same
                result = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        self.parts[name] = result | {"wall_seconds": round(time.monotonic() - started, 1)}
        self.write()
        print(json.dumps({name: self.parts[name]}), flush=True)

    def write(self) -> None:
        """All parts so far; the file is whole at any time."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.parts, indent=1) + "\n")
        partial.replace(self.path)

    def failed(self) -> bool:
        """Whether a part failed or a check in it did."""
        return any("error" in part or part.get("passed") is False for part in self.parts.values())


def measure(work: Path, device_name: str, report: Report, *, tiny: bool) -> None:
    """All parts."""
    import torch
    from gpu_parts import Parts

    from mllm_tailor.core.device import describe_machine

    device = torch.device(device_name)
    report.add("machine", lambda: {**describe_machine(), "torch": torch.__version__, "tiny": tiny}, 0)
    parts = Parts(work, device, tiny=tiny)
    report.add("parity", parts.parity, 1)
    report.add("make_model", parts.make_model, 1)
    for tiles in (3, 7):
        for method in ("qlora", "lora"):
            report.add(f"{method}_{tiles}_tiles", lambda m=method, t=tiles: parts.step(m, t), 1)
            report.add(f"{method}_{tiles}_tiles_plain", lambda m=method, t=tiles: parts.plain_step(m, t), 1)
    report.add("predict", parts.predict, 1)
    report.add("pretraining", parts.pretraining, 0.5)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models: a test of this script")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no part begins without time for it")
    parser.add_argument("--wheels", help="folder of wheels to install from, without an index")
    parser.add_argument("--output", type=Path, help="where to write results; default: beside the other results")
    arguments = parser.parse_args()
    prepare(arguments.wheels)
    report = Report(arguments.output or RESULTS, arguments.minutes)
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as work:
        measure(Path(work), arguments.device, report, tiny=arguments.tiny)
    raise SystemExit(1 if report.failed() else 0)


if __name__ == "__main__":
    main()
