"""A process that imports one build of the product and reads receipts when told to.

    python benchmarks/reading_worker.py ENGINE DTYPE MODEL     # ours, vllm, or plain: transformers' own loop

Every line of standard input is a JSON object {"files": [...], "beams": 1, "constrained": true, "max_new_tokens": 200};
the answer is a line with CPU and wall seconds, peak memory in bytes and replies. The names of earlier commits are tried
where the present ones do not exist, so this file may import nothing else of the product for the engine `ours`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parent / "trainers"))
from meter import give_back_memory, memory, versions

try:
    from mllm_tailor.generation import predict
    from mllm_tailor.models import load_model
except ModuleNotFoundError as error:  # until 29 November 2026
    if not str(error.name).startswith("mllm_tailor"):
        raise  # a package that this environment lacks
    from mllm_tailor.predicting import predict  # type: ignore[no-redef]

    from mllm_tailor.models import open_model as load_model  # type: ignore[no-redef]
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import open_task

FIELDS = {"company": "string", "date": "date", "address": "string", "total": "amount"}
BEAMS = "num_beams" if "num_beams" in Predict.model_fields else "beams"


class Reader:
    """A model and what decodes with it."""

    def __init__(self, engine: str, dtype: str, path: str) -> None:
        self.engine, self.task = engine, open_task("extract", FIELDS)
        self.model: Any = load_model(path, dtype=dtype, device="cpu")
        self.more: dict[str, Any] = {}
        if engine == "vllm":
            from mllm_tailor.generation.vllm.engine import VllmEngine

            self.more["engine"] = VllmEngine(self.model, self.model.folder, self.task.schema())
            self.model.model.to("meta")

    def texts(self, samples: list[Sample], settings: Predict, *, constrained: bool) -> list[str]:
        """Replies to samples."""
        if self.engine == "plain":
            from predict import plain

            return plain(self.model, self.task, samples, settings, constrained)
        replies = predict(self.model, self.task, samples, settings, constrained=constrained, **self.more)
        return [reply.text for reply in replies]

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Read files that were not met before."""
        samples = [Sample(name, (Media("image", Path(name)),)) for name in asked["files"]]
        settings = Predict.model_validate(
            {"max_new_tokens": asked.get("max_new_tokens", 200), BEAMS: asked.get("beams", 1)}
        )
        give_back_memory()
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
        cpu, wall = time.process_time(), time.perf_counter()
        texts = self.texts(samples, settings, constrained=asked.get("constrained", True))
        return {
            "cpu": time.process_time() - cpu,
            "wall": time.perf_counter() - wall,
            "peak_memory": memory("VmHWM"),
            "texts": texts,
        }


def main() -> None:
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    engine, dtype, path = sys.argv[1:]
    torch.set_num_threads(1)
    reader = Reader(engine, dtype, path)
    facts = {"opening": time.process_time(), "versions": versions()}
    for line in sys.stdin:
        output.write(json.dumps(reader.answer(json.loads(line)) | facts) + "\n")
        output.flush()
        facts = {}


if __name__ == "__main__":
    main()
