"""Trains and predicts on the fake GPU.

Run by test_fake_gpu.py with the compiled library, a working folder, a JSON list of cases and the folder of a tiny
model. A case is ["family", kind], ["method", name] or ["planted", fault]; for each, a JSON row is printed.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from gpu.load_fake_cuda import load_library

if __name__ == "__main__":
    load_library(Path(sys.argv[1]))  # before torch is imported

import bitsandbytes
import torch
from fixtures.families import family_folder, samples_of
from fixtures.method_cases import CASES
from fixtures.small_job import make_samples, small_recipe
from gpu.fake_gpu import DEVICE, AssignedData, FakeGpu, Records, to_gpu

from mllm_tailor.core.conversation import as_conversation
from mllm_tailor.core.device import seed_everything
from mllm_tailor.generation import predict
from mllm_tailor.methods import make_method
from mllm_tailor.models import load_model
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import open_task
from mllm_tailor.training import TrainingConfig, TrainingEvent, TrainingHooks, train
from mllm_tailor.training.step_runner import StepRunner

FIELDS = {"name": {"type": "string", "max_length": 5}, "kind": {"type": "choice", "choices": ["cash", "card"]}}


def run_case(folder: Path, method_spec: Any, samples: list[Any], work: Path) -> dict[str, Any]:
    """A training step of two micro-batches in bf16, and constrained predictions."""
    recipe = small_recipe(method_spec, steps=1, batch_size=2, micro_batch_size=1, checkpoint_every=60)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "auto"})})
    method = make_method(recipe)
    quantized = {"quantize": method.quantize, "quantize_skip": method.quantize_skip}
    model = load_model(folder, dtype="float32", device="cpu", **quantized)
    with FakeGpu() as gpu:
        for module in model.model.modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                module.compute_dtype = torch.bfloat16
        to_gpu(model.model)
        model = replace(model, device=DEVICE)
        seed_everything(0)
        with AssignedData():  # some initialisations assign `weight.data`
            method.apply(model)
        seen: dict[str, Records] = {}

        def on_event(event: TrainingEvent) -> None:
            if event.kind == "step":
                seen["step"] = gpu.take()

        run = StepRunner.run

        def watched(self: StepRunner, *arguments: Any) -> Any:
            seen["prepare"] = gpu.take()
            return run(self, *arguments)

        conversations = [as_conversation(sample) for sample in samples]
        config = TrainingConfig.from_recipe(recipe)
        with mock.patch.object(StepRunner, "run", watched):
            result = train(model, conversations, config, work, TrainingHooks(on_event=on_event))
        seen["save"] = gpu.take()
        task = open_task("match", {}) if model.family.compares else open_task("extract", FIELDS)
        asked = [replace(sample, answer=sample.answer if model.family.compares else None) for sample in samples[:2]]
        beams = 2 if "everywhere" in work.name else 1
        predictions = predict(model, task, asked, Predict(batch_size=4, max_new_tokens=4, num_beams=beams))
        assert len(predictions) == len(asked)
        seen["predict"] = gpu.take()
    return {"losses": result.losses} | {phase: _row(records) for phase, records in seen.items()}


def _row(records: Records) -> dict[str, Any]:
    waits = Counter({f"{wait.kind} {wait.place} {wait.operation}": count for wait, count in records.waits.items()})
    return {
        "waits": dict(waits),
        "wide_products": dict(records.wide_products),
        "products": records.products,
        "unsupported": dict(records.unsupported),
    }


def run_planted(fault: str) -> dict[str, Any]:
    """A product of weights and a batch, with a fault in it."""

    def planted(weights: torch.Tensor, batch: torch.Tensor) -> Any:
        return {
            "wrong device": lambda: weights + batch.cpu(),
            "wrong dtype": lambda: weights.bfloat16() @ batch,
            "wide product": lambda: weights @ batch,
            "item": lambda: weights.sum().item(),
            "mask": lambda: weights[batch > 0],
            "upload": lambda: torch.ones(3).to(weights.device),
            "numpy": lambda: weights.numpy(),
        }[fault]()

    with FakeGpu() as gpu:
        weights, batch = torch.ones(4, 4).to(DEVICE), torch.eye(4).to(DEVICE)
        gpu.take()
        planted(weights, batch)
        return _row(gpu.records)


def main() -> None:
    """All cases, one after the other."""
    work = Path(sys.argv[2])
    for number, (kind, name) in enumerate(json.loads(sys.argv[3])):
        if kind == "planted":
            try:
                row = run_planted(name)
            except Exception as error:  # what is looked for
                row = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps([kind, name, row]), flush=True)
            continue
        folder = family_folder(work, name) if kind == "family" else Path(sys.argv[4])
        samples = samples_of(name) if kind == "family" else make_samples(work / "pictures", 4)
        spec = {"name": "lora", "rank": 4} if kind == "family" else CASES[name]
        started = time.process_time()
        try:
            row = run_case(folder, spec, samples, work / f"run-{number}-{name}")
        except Exception as error:  # the row names it
            row = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        row["seconds"] = round(time.process_time() - started, 2)
        print(json.dumps([kind, name, row]), flush=True)


if __name__ == "__main__":
    main()
