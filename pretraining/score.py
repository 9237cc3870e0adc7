"""Measure a model folder the way the product uses it, on stored seeds of drawn receipts; keep the figures beside it.

tests/test_embedded.py repeats the measurement and compares.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from rapidfuzz import fuzz

from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data.drawn import draw_document
from mllm_tailor.models import open_model
from mllm_tailor.predicting import predict
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import open_task
from pretraining.pages import HELD_OUT

FIELDS = ("company", "date", "address", "total")


def score(folder: Path, count: int = 8, effects: float = 0.5) -> dict:
    """Mean fuzzy similarity (0..100) and exact share over the fields of `count` receipts; written to scores.json."""
    layouts = [name for name in HELD_OUT if name != "franchise"]
    seeds = list(range(9000, 9000 + count))
    samples = []
    with tempfile.TemporaryDirectory() as place:
        for seed in seeds:
            page = draw_document("receipts", seed, layouts=layouts, effects=effects)
            page.image.save(Path(place) / f"{seed}.png")
            samples.append(Sample(str(seed), (Media("image", Path(place) / f"{seed}.png"),), fields=page.fields))
        task = open_task("extract", dict.fromkeys(FIELDS, "string"))
        settings = Predict(constrained=False, max_new_tokens=256)
        found = predict(open_model(folder, device="cpu"), task, samples, settings)
    table = np.array(
        [
            [fuzz.ratio(str(sample.fields[name]), str(prediction.fields.get(name, ""))) for name in FIELDS]
            for sample, prediction in zip(samples, found, strict=True)
        ]
    )
    stored = {
        "seeds": seeds,
        "layouts": layouts,
        "effects": effects,
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
