"""The ledger: one line for every sample of the data, saying what became of it and how large it is to the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from mllm_tailor.core.device import fast_bf16
from mllm_tailor.core.files import write_jsonl
from mllm_tailor.core.progress import console, track
from mllm_tailor.core.sample import Sample
from mllm_tailor.methods import Method
from mllm_tailor.models import Length, OpenModel, measure_length
from mllm_tailor.run.breakdown import never_learned
from mllm_tailor.run.forecast import Forecast, ModelCost, SampleCost, forecast, matmul_rate
from mllm_tailor.run.prepare import Job


def measure(model: OpenModel, job: Job) -> dict[str, Length]:
    """The exact length of every sample that takes part, image tokens included; pixels are not decoded."""
    samples = [*job.learned, *map(job.task.phrase, (*job.dev, *job.held_out))]
    distinct = {sample.id: sample for sample in samples}  # a mixed source may repeat its samples
    return {sample.id: measure_length(sample, model) for sample in track(distinct.values(), "Measuring samples")}


def write_ledger(path: Path, job: Job, lengths: Mapping[str, Length]) -> None:
    """One row a sample: part, size, the scale its pictures are seen at (below 1: shrunk), or why it takes no part."""
    notes = never_learned(job.task, job.train, job.held_out)
    rows = []
    for part, samples in job.parts().items():
        times = Counter(sample.id for sample in samples)
        distinct = {sample.id: sample for sample in samples}
        for sample in distinct.values():
            note = {"note": notes[sample.id]} if part == "held_out" and sample.id in notes else {}
            rows.append(_row(sample, part, lengths[sample.id], times[sample.id]) | note)
    for note, count in Counter(notes.values()).items():
        console.print(f"[yellow]{count} held-out samples:[/] {note}", highlight=False)
    rows += [{"id": item.id, "source": item.source, "part": "excluded", "reason": item.reason} for item in job.excluded]
    write_jsonl(path, rows)


def _row(sample: Sample, part: str, length: Length, times: int) -> dict[str, object]:
    row = {
        "id": sample.id,
        "source": sample.source,
        "part": part,
        "group": sample.group,
        "tokens": length.tokens,
        "tiles": length.tiles,
        "supervised_tokens": length.supervised,
        "scale": round((length.tiled_pixels / length.pixels) ** 0.5, 3) if length.pixels else None,
    }
    return row if times == 1 else row | {"times": times}  # in an epoch


def foresee(model: OpenModel, method: Method, job: Job, lengths: Mapping[str, Length]) -> Forecast:
    """The forecast of this job on this machine."""
    recipe = job.recipe
    dtype = torch.bfloat16 if fast_bf16(model.device) else torch.float32
    costs = {part: [_cost(lengths[sample.id]) for sample in samples] for part, samples in job.parts().items()}
    longest_reply = max((lengths[sample.id].supervised for sample in job.train), default=1)
    return forecast(
        model_cost(model, method),
        costs["train"] + costs["aloud"] + costs.get("mixed", []),
        costs["held_out"],
        epochs=recipe.train.passes(len(job.train)),
        minutes=recipe.train.minutes,
        micro_batch=recipe.train.micro_batch or min(4, recipe.train.batch),
        reply_tokens=longest_reply,
        rate=matmul_rate(model.device, dtype),
    )


def _cost(length: Length) -> SampleCost:
    return SampleCost(length.tokens, length.tiles)


def model_cost(model: OpenModel, method: Method) -> ModelCost:
    """Shapes of a model that the forecast needs, read from its configuration and weights."""
    config = model.model.config
    text = getattr(config, "text_config", config)
    vision = getattr(config, "vision_config", None)
    prefixes = tuple(model.family.parts.get("vision", ()))
    weights = list(model.model.named_parameters())
    total = sum(weight.numel() for _, weight in weights)
    vision_total = sum(weight.numel() for name, weight in weights if prefixes and name.startswith(prefixes))
    image, patch = _side(getattr(vision, "image_size", 448)), _side(getattr(vision, "patch_size", 14))
    return ModelCost(
        weights=total,
        weight_bytes=sum(weight.numel() * weight.element_size() for _, weight in weights),
        trained=method.expected_weights(model),
        vision_weights=vision_total,
        patches_per_tile=(image // patch) ** 2,
        vision_width=getattr(vision, "hidden_size", 0),
        vision_layers=getattr(vision, "num_hidden_layers", 0),
        width=text.hidden_size,
        layers=text.num_hidden_layers,
        vision_trained=bool({"vision", "projector"} & set(method.parts)),
    )


def _side(value: object) -> int:
    return int(value[0]) if isinstance(value, (list, tuple)) else int(value)  # type: ignore[call-overload]
