"""Every method and optimizer: stopped in the middle and taken up by a fresh model, it ends with the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_job import make_samples, prepare, snapshot

from mllm_tailor.core.sample import Sample
from mllm_tailor.methods import METHODS
from mllm_tailor.training import OPTIMIZERS, Interrupted, train

SETTINGS: dict[str, dict[str, Any]] = {
    "qlora": {"rank": 4, "dropout": 0.1},
    "vera": {"rank": 16},
    "oft": {"block": 16},
    "bottleneck": {"width": 8},
    "lora_fa": {"rank": 4, "projected": True},
    "lisa": {"layers": 1, "interval": 2},
    "mezo": {"parts": ["projector"]},
    "adalora": {"rank": 4, "dropout": 0.1, "start": 0.0, "end": 0.25},
    "prefix": {"length": 3},
    "prompt": {"length": 3},
    "galore": {"rank": 8, "interval": 3},
    "apollo": {"rank": 8, "interval": 3},
} | {name: {"rank": 4, "dropout": 0.1} for name in ("lora", "rslora", "dora", "pissa", "lora_plus", "dylora")}
CASES = [(name, "adamw") for name in METHODS if name != "freeze"]
CASES += [("lora", name) for name in OPTIMIZERS if name not in ("adamw", "galore", "apollo")]  # those are methods too


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return make_samples(tmp_path_factory.mktemp("pictures"), 4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "optimizer"), CASES)
def test_resumes_exactly(
    name: str, optimizer: str, tiny_model_folder: Path, samples: list[Sample], tmp_path: Path
) -> None:
    def begin() -> Any:
        spec = {"name": name, **SETTINGS.get(name, {})}
        return prepare(tiny_model_folder, spec, optimizer=optimizer, batch=2, epochs=2, learning_rate=1e-3)

    def stop(event: str, step: int) -> None:
        if (event, step) == ("step", 3):  # in the middle of an interval of LISA
            raise KeyboardInterrupt

    model, method, recipe = begin()
    whole = train(model, method, samples, recipe, tmp_path / "whole")
    wanted = snapshot(model)
    model, method, recipe = begin()
    # The event comes within the step, so what it breaks off is taken up from the checkpoint of the second step.
    often = recipe.model_copy(update={"train": recipe.train.model_copy(update={"checkpoint_every": 1e-9})})
    with pytest.raises(Interrupted):
        train(model, method, samples, often, tmp_path / "cut", on_event=stop)
    model, method, recipe = begin()
    again = train(model, method, samples, recipe, tmp_path / "cut")
    assert again.losses == whole.losses
    after = snapshot(model)
    assert all(torch.equal(wanted[key], after[key]) for key in wanted)
    rows = (tmp_path / "cut" / "log.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4]
