"""Rank texts for pictures and pictures for texts, with a model that compares."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.progress import track
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.models import LoadedModel, collate, embed_pictures, embed_texts, encode
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import Task

SHOWN = 10  # of each ranking


@torch.no_grad()
def match(model: LoadedModel, task: Task, samples: Sequence[Sample], settings: Predict) -> list[Prediction]:
    """For each sample the nearest texts of all samples to its picture, and the pictures (by id) nearest to its text.

    All samples are compared with all, so the rankings depend on which are given together; equal texts are one.

    Raises:
        ModelError: for a model that writes instead of comparing.
    """
    if not model.family.compares:
        raise ModelError(
            f"`task.match`: {model.family.title} writes and compares nothing — open a CLIP or SigLIP, or use caption"
        )
    was_training, began = model.model.training, time.perf_counter()
    model.model.eval()
    phrased = [task.phrase(sample) for sample in samples]
    problems: dict[int, str] = {}
    vectors = _embed(model, phrased, settings.batch_size, problems)
    model.model.train(was_training)
    readable = [place for place in range(len(samples)) if place not in problems]
    near = vectors[0] @ vectors[1].T  # (pictures, texts) of the readable ones
    seconds = (time.perf_counter() - began) / max(1, len(samples))
    found = {place: _ranked(phrased, readable, near[row], near[:, row]) for row, place in enumerate(readable)}
    return [
        Prediction(sample.id, "", found.get(place, {}), seconds=seconds, problem=problems.get(place))
        for place, sample in enumerate(samples)
    ]


def _embed(model: LoadedModel, samples: Sequence[Conversation], batch: int, problems: dict[int, str]) -> Tensor:
    """(2, readable samples, width) float32 unit vectors of pictures and texts."""
    parts: list[Tensor] = [torch.empty(2, 0, 0)]
    for start in track(range(0, len(samples), batch), "Comparing"):
        items = []
        for place in range(start, min(start + batch, len(samples))):
            try:
                items.append(encode(samples[place], model))
            except DataError as error:
                problems[place] = str(error)
        if items:
            inputs = collate(items, model)
            both = torch.stack([embed_pictures(model, inputs), embed_texts(model, inputs)]).float().cpu()
            parts.append(both)
    whole = [part for part in parts if part.shape[1]]
    return torch.cat(whole, dim=1) if whole else parts[0]


def _ranked(
    samples: Sequence[Conversation], readable: Sequence[int], to_texts: Tensor, to_pictures: Tensor
) -> dict[str, list[str]]:
    texts = [samples[readable[row]].answer or "" for row in to_texts.argsort(descending=True, stable=True).tolist()]
    pictures = [samples[readable[row]].id for row in to_pictures.argsort(descending=True, stable=True).tolist()]
    return {"text": list(dict.fromkeys(texts))[:SHOWN], "picture": pictures[:SHOWN]}
