"""One side of `against.py`: a process that imports the product of one commit and reads receipts when told to.

Every line of standard input is a JSON object {"beams": 1, "files": [...]}; the answer is a line with CPU seconds and
replies. The names of earlier commits are tried where the present ones do not exist, so this file may import nothing
else of the product.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

try:
    from mllm_tailor.generation import predict
    from mllm_tailor.models import load_model
except ImportError:  # until 29 November 2026
    from mllm_tailor.predicting import predict  # type: ignore[no-redef]

    from mllm_tailor.models import open_model as load_model  # type: ignore[no-redef]
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import open_task

FIELDS = {"company": "string", "date": "date", "address": "string", "total": "amount"}
BEAMS = "num_beams" if "num_beams" in Predict.model_fields else "beams"


def answer(model: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Read files that were not met before."""
    samples = [Sample(name, (Media("image", Path(name)),)) for name in asked["files"]]
    settings = Predict.model_validate({"max_new_tokens": 200, BEAMS: asked["beams"]})
    started = time.process_time()
    replies = predict(model, open_task("extract", FIELDS), samples, settings)
    seconds = time.process_time() - started
    return {"cpu": seconds, "texts": [reply.text for reply in replies]}


def main() -> None:
    torch.set_num_threads(1)
    model = load_model("embedded", dtype="float32", device="cpu")
    output, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    for line in sys.stdin:
        output.write(json.dumps(answer(model, json.loads(line))) + "\n")
        output.flush()


if __name__ == "__main__":
    main()
