"""The loop on every family: logits at labels alone give the loss of all logits, and a step lowers it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixtures.families import family_folder, samples_of
from fixtures.small_job import batch_of, open_small, small_recipe, train
from fixtures.tiny_families import RECIPES

from mllm_tailor.core.device import seed_everything
from mllm_tailor.methods import make_method
from mllm_tailor.training.objectives.cross_entropy import answer_loss


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECIPES)
def test_trains(kind: str, families: Path, tmp_path: Path) -> None:
    recipe = small_recipe({"name": "lora", "rank": 4}, epochs=4, batch_size=3)
    method = make_method(recipe)
    model = open_small(family_folder(families, kind), method)
    seed_everything(0)
    method.apply(model)
    samples = samples_of(kind)
    batch = batch_of(model, samples)
    with torch.no_grad():
        summed, count = answer_loss(model.model, batch)
        whole = model.model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False)
    ahead, labels = whole.logits[:, :-1], batch["labels"][:, 1:]
    wanted = torch.nn.functional.cross_entropy(ahead[labels != -100].float(), labels[labels != -100])
    assert float(summed / count) == pytest.approx(float(wanted), abs=1e-6)
    result = train(model, method, samples, recipe, tmp_path)
    assert result.losses[-1] < result.losses[0]
