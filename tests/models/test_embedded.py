"""The shipped model: it opens with plain transformers, is small, and still reads what it read when it was shipped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rapidfuzz import fuzz

from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.models import load_model
from mllm_tailor.models.resolve import EMBEDDED

SCORES = json.loads((EMBEDDED / "scores.json").read_text()) if (EMBEDDED / "scores.json").is_file() else None
MEGABYTES_AT_MOST = 25
needs_weights = pytest.mark.skipif(SCORES is None, reason="the embedded weights are not in this checkout")


@needs_weights
def test_weights_are_small_safetensors_in_bf16() -> None:
    from safetensors import safe_open

    (file,) = EMBEDDED.glob("*.safetensors")
    assert file.stat().st_size < MEGABYTES_AT_MOST * 2**20
    with safe_open(file, "pt") as stored:
        kinds = {stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118 - not a dict
    assert kinds == {"BF16"}


@needs_weights
def test_plain_transformers_opens_it() -> None:
    from transformers import InternVLForConditionalGeneration

    _, report = InternVLForConditionalGeneration.from_pretrained(EMBEDDED, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


@needs_weights
@pytest.mark.slow
def test_stored_scores_are_reproduced(tmp_path: Path) -> None:
    """Drawn receipts of layouts it never saw, by stored seeds: mean fuzzy similarity as when it was shipped."""
    from mllm_tailor.generation import predict
    from mllm_tailor.recipe.schema import Predict
    from mllm_tailor.synthetic import draw_document
    from mllm_tailor.tasks import open_task

    stored = SCORES["drawn_receipts"]
    samples = []
    for seed in stored["seeds"]:
        page = draw_document("receipts", seed, layouts=stored["layouts"], effects=stored["effects"])
        page.image.save(tmp_path / f"{seed}.png")
        samples.append(Sample(str(seed), (Media("image", tmp_path / f"{seed}.png"),), fields=page.fields))
    task = open_task("extract", dict.fromkeys(stored["fields"], "string"))
    settings = Predict(constrained=False, max_new_tokens=stored["max_new_tokens"])
    found = predict(load_model("embedded", device="cpu"), task, samples, settings)
    scores = [
        fuzz.ratio(str(sample.fields[name]), str(prediction.fields.get(name, "")))
        for sample, prediction in zip(samples, found, strict=True)
        for name in stored["fields"]
    ]
    assert np.mean(scores) == pytest.approx(stored["fuzzy"], abs=stored["tolerance"])
