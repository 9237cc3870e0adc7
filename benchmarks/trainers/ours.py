"""`mllm_tailor.training.train` as the comparison runs it; one thing can be switched off at a time (`job.without`)."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from meter import open_job
from torch.nn import functional

from mllm_tailor.core.device import computes_in_bf16, seed_everything
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.methods import make_method
from mllm_tailor.models import last_layer, open_model
from mllm_tailor.recipe import make_recipe
from mllm_tailor.training import features, loop, objectives, order
from mllm_tailor.training.modes import keep_frozen_parts_quiet


def full_logits(network: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """The answers' loss the usual way: logits of the whole vocabulary at every position, most of them thrown away."""
    inputs = dict(batch)
    labels = inputs.pop("labels")[:, 1:]
    logits = network(**inputs, use_cache=False).logits[:, :-1].float()
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"), int((labels >= 0).sum())


def into_the_graph(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Pixels that ask for a gradient pull the frozen vision tower into the backward pass."""
    batch = {name: value.to(device) for name, value in batch.items()}
    batch["pixel_values"] = batch["pixel_values"].clone().requires_grad_()
    return batch


def any_lengths(samples: Any, tokens: Any, *, most: Any, budget: int, padding: Any) -> Any:
    """Passes as full as 4,096 tokens allow, whatever of them is padding."""
    return order.micro_batches(samples, tokens, most=most, budget=4096)


def switch_off(name: str | None) -> None:
    """Put the usual way in place of one of ours."""
    if name == "last_layer":
        last_layer.WORTH = 1 << 40
    if name == "products":
        loop.summed_products = nullcontext
    if name == "padding":
        loop.micro_batches = any_lengths
    if name in ("cache", "frozen"):
        features.can_cache = lambda *_: False
    if name == "frozen":
        loop.to_device = into_the_graph
    if name == "answer_logits":
        objectives.answer_loss = full_logits


def samples_of(rows: list[dict[str, str]]) -> list[Sample]:
    """Rows {image, prompt, answer} as phrased samples."""
    return [
        Sample(str(number), (Media("image", Path(row["image"])),), row["prompt"], row["answer"])
        for number, row in enumerate(rows)
    ]


def main() -> None:
    job, meter = open_job()
    switch_off(job.without)
    samples = samples_of([json.loads(line) for line in Path(job.unique).read_text("utf-8").splitlines()])
    recipe = make_recipe(
        {
            "data": "unused",
            "task": "answer",
            "seed": job.seed,
            "model": {"path": job.model, "dtype": "auto" if job.bf16 else "float32"},
            "method": {"name": "lora", "rank": job.rank, "alpha": job.alpha, "dropout": 0.0, "parts": ["language"]},
            "train": {
                "steps": job.steps,
                "batch": job.batch,
                "learning_rate": job.rate,
                "schedule": "constant",
                "warmup": 0.0,
                "checkpoint_every": 600,
            },
        }
    )
    model = open_model(recipe.model.path, dtype=recipe.model.dtype)
    method = make_method(recipe)
    seed_everything(job.seed)
    method.apply(model)
    folder = Path(job.scratch)
    meter.watch(model.model)

    def tell(event: str, step: int) -> None:
        if event == "step":
            meter.step(model.model, step)

    kept = Path(job.features) if job.seen else None
    if kept is not None:  # an earlier run over the same pictures
        keep_frozen_parts_quiet(model)
        features.make_feed(model, samples, recipe, kept, computes_in_bf16(recipe.model.dtype, model.device))
    meter.start()  # pictures are read, and their features computed, on the clock
    loop.train(model, method, samples, recipe, folder, on_event=tell, features=kept)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    meter.finish(model.model, [row["loss"] for row in rows if "loss" in row])


if __name__ == "__main__":
    main()
