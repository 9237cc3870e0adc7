"""The training benchmark compares like with like: its recipe and ours compute the same loss where they should."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixtures.small_job import batch_of, make_samples, prepare

from mllm_tailor.models import LoadedModel
from mllm_tailor.training.objectives.cross_entropy import answer_loss

TRAINERS = Path(__file__).resolve().parents[2] / "benchmarks" / "trainers"


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> LoadedModel:
    return prepare(tiny_model_folder, {"name": "lora", "rank": 4})[0]


def test_answer_losses_agree(model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's loop reads the samples by transformers' own steps; tokens, labels, pixels and loss are ours."""
    monkeypatch.syspath_prepend(str(TRAINERS))
    from plain import encode

    samples = make_samples(tmp_path, 3)
    model.tiles = model.tiles.model_copy(update={"thumbnail": True})
    rows = [{"image": str(one.media[0].path), "prompt": one.prompt, "answer": str(one.answer)} for one in samples]
    theirs, own = encode(model.processor, rows, answer_only=True), batch_of(model, samples)
    length, read = own["input_ids"].shape[1], own["attention_mask"] == 1  # they also read the newline behind the answer
    assert torch.equal(theirs["input_ids"][:, :length][read], own["input_ids"][read])
    assert torch.equal(theirs["labels"][:, :length], own["labels"])
    assert torch.equal(theirs["pixel_values"], own["pixel_values"])
    with torch.no_grad():
        summed, count = answer_loss(model.model, own)
        mean = model.model(**theirs).loss
    torch.testing.assert_close(mean, summed / count, rtol=1e-5, atol=1e-6)
