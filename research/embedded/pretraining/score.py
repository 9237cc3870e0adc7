"""Measure a model folder the way the product uses it, on stored seeds of drawn receipts; keep the figures beside it.

tests/models/test_embedded.py repeats the measurement and compares.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mllm_tailor.core.sample import Media, Prediction, Sample
from mllm_tailor.generation import predict
from mllm_tailor.models import load_model
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.synthetic import draw_document
from mllm_tailor.tasks import open_task
from rapidfuzz import fuzz

from pretraining import questions
from pretraining.pages import HELD_OUT

FIELDS = questions.MAIN
LAYOUTS = [name for name in HELD_OUT if name != "franchise"]
TASK = open_task("extract", dict.fromkeys(FIELDS, "string"))
EFFECTS = 0.5


def drawn(folder: Path, seed: int) -> Sample:
    """A receipt of a family that is never trained on, its picture written into `folder`."""
    page = draw_document("receipts", seed, layouts=LAYOUTS, effects=EFFECTS)
    page.image.save(folder / f"{seed}.png")
    return Sample(str(seed), (Media("image", folder / f"{seed}.png"),), fields=page.fields)


def similarity(samples: Sequence[Sample], found: Sequence[Prediction]) -> np.ndarray:
    """Fuzzy similarity 0..100 (samples, FIELDS)."""
    return np.array(
        [
            [fuzz.ratio(str(sample.fields[name]), str(said.fields.get(name, ""))) for name in FIELDS]
            for sample, said in zip(samples, found, strict=True)
        ]
    )


def score(folder: Path, count: int = 8) -> dict:
    """Mean fuzzy similarity (0..100) and exact share over the fields of `count` receipts; written to scores.json."""
    seeds = list(range(9000, 9000 + count))
    with tempfile.TemporaryDirectory() as place:
        samples = [drawn(Path(place), seed) for seed in seeds]
        settings = Predict(constrained=False, max_new_tokens=256)
        found = predict(load_model(folder, device="cpu"), TASK, samples, settings)
    table = similarity(samples, found)
    stored = {
        "seeds": seeds,
        "layouts": LAYOUTS,
        "effects": EFFECTS,
        "fields": FIELDS,
        "max_new_tokens": settings.max_new_tokens,
        "fuzzy": round(float(table.mean()), 2),
        "exact": round(float((table == 100).mean()), 3),
        "fuzzy_by_field": dict(zip(FIELDS, table.mean(0).round(2).tolist(), strict=True)),
        "tolerance": 4.0,  # points; bf16 rounds differently on other processors
    }
    (folder / "scores.json").write_text(json.dumps({"drawn_receipts": stored}, indent=1) + "\n")
    for prediction, sample in list(zip(found, samples, strict=True))[:4]:
        print(prediction.text, "\n   ", sample.fields)
    return stored
