"""`mllm_tailor.training.train` as the comparison runs it."""

from __future__ import annotations

import json
from pathlib import Path

from meter import open_job

from mllm_tailor.core.conversation import Conversation, as_conversation
from mllm_tailor.core.device import seed_everything
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.methods import make_method
from mllm_tailor.models import load_model
from mllm_tailor.recipe import make_recipe
from mllm_tailor.training import TrainingConfig, TrainingEvent, TrainingHooks, loop
from mllm_tailor.training import vision_cache as features
from mllm_tailor.training.trainable import set_train_mode


def samples_of(rows: list[dict[str, str]]) -> list[Conversation]:
    """Rows {image, prompt, answer} as phrased samples."""
    return [
        as_conversation(Sample(str(number), (Media("image", Path(row["image"])),), row["prompt"], row["answer"]))
        for number, row in enumerate(rows)
    ]


def main() -> None:
    job, meter = open_job()
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
                "batch_size": job.batch,
                "learning_rate": job.rate,
                "schedule": "constant",
                "warmup_ratio": 0.0,
                "checkpoint_every": 600,
            },
        }
    )
    model = load_model(recipe.model.path, dtype=recipe.model.dtype)
    method = make_method(recipe)
    seed_everything(job.seed)
    method.apply(model)
    folder = Path(job.scratch)
    meter.watch(model.model)

    def tell(event: TrainingEvent) -> None:
        if event.kind == "step":
            meter.step(model.model, event.step)

    kept = Path(job.features) if job.seen else None
    if kept is not None:  # an earlier run over the same pictures
        set_train_mode(model)
        features.make_batch_source(model, samples, TrainingConfig.from_recipe(recipe), kept)
    meter.start()  # pictures are read, and their features computed, on the clock
    loop.train(model, samples, TrainingConfig.from_recipe(recipe, kept), folder, TrainingHooks(on_event=tell))
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    meter.finish(model.model, [row["loss"] for row in rows if "loss" in row])


if __name__ == "__main__":
    main()
