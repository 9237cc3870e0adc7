"""Rank texts for images and images for texts with a dual encoder."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.progress import track
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.models import LoadedModel, collate, embed_images, embed_texts, encode
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import Task

TOP_K = 10  # of each ranking


@torch.no_grad()
def match(model: LoadedModel, task: Task, samples: Sequence[Sample], settings: Predict) -> list[Prediction]:
    """For each sample the texts of all samples nearest to its image, and the images (by id) nearest to its text.

    Samples are compared with each other, so rankings depend on which are given together; equal texts count once.

    Raises:
        ModelError: for a model that generates text instead.
    """
    if not model.family.compares:
        raise ModelError(
            f"`task.match`: {model.family.title} generates text and embeds nothing — use a CLIP or SigLIP "
            "model, or the task `caption`"
        )
    was_training, started = model.model.training, time.perf_counter()
    model.model.eval()
    phrased = [task.phrase(sample) for sample in samples]
    problems: dict[int, str] = {}
    vectors = _embed(model, phrased, settings.batch_size, problems)
    model.model.train(was_training)
    readable = [index for index in range(len(samples)) if index not in problems]
    similarity = vectors[0] @ vectors[1].T  # (images, texts) of the readable samples
    seconds = (time.perf_counter() - started) / max(1, len(samples))
    rankings = {
        index: _rank(phrased, readable, similarity[row], similarity[:, row]) for row, index in enumerate(readable)
    }
    return [
        Prediction(sample.id, "", rankings.get(index, {}), seconds=seconds, problem=problems.get(index))
        for index, sample in enumerate(samples)
    ]


def _embed(model: LoadedModel, samples: Sequence[Conversation], batch: int, problems: dict[int, str]) -> Tensor:
    """(2, readable samples, width) float32 unit vectors of images and texts."""
    parts: list[Tensor] = [torch.empty(2, 0, 0)]
    for start in track(range(0, len(samples), batch), "Embedding"):
        items = []
        for index in range(start, min(start + batch, len(samples))):
            try:
                items.append(encode(samples[index], model))
            except DataError as error:
                problems[index] = str(error)
        if items:
            inputs = collate(items, model)
            parts.append(torch.stack([embed_images(model, inputs), embed_texts(model, inputs)]).float().cpu())
    filled = [part for part in parts if part.shape[1]]
    return torch.cat(filled, dim=1) if filled else parts[0]


def _rank(
    samples: Sequence[Conversation], readable: Sequence[int], to_texts: Tensor, to_images: Tensor
) -> dict[str, list[str]]:
    texts = [samples[readable[row]].answer or "" for row in to_texts.argsort(descending=True, stable=True).tolist()]
    images = [samples[readable[row]].id for row in to_images.argsort(descending=True, stable=True).tolist()]
    return {"text": list(dict.fromkeys(texts))[:TOP_K], "picture": images[:TOP_K]}
