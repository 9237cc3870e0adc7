"""Knowledge distillation from a larger model: from its logits, or from its vision tower.

Logits (Hinton et al. 2015, 1503.02531): `(1 - w) CE + w T^2 KL(teacher || student)` at temperature T. The teacher
computes every answer once; its `top_k` most likely tokens and the mass of all others are kept on disk. The others count
as one event, so the divergence is a lower bound of the full one, and zero only where the student agrees on them too.

Vision (as InternViT-300M was made, Gao et al. 2024, 2410.16261): the mean of `1 - cos` between the hidden states of
the last layers, the student's through a learned projection. Both towers see the student's images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mllm_tailor.core.device import upload
from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.io import fingerprint
from mllm_tailor.core.progress import track
from mllm_tailor.models import InputSettings, Length, LoadedModel, collate, encode, load_model
from mllm_tailor.models.vision_cache import CacheEntry, VisionFeatureCache
from mllm_tailor.recipe import Distill
from mllm_tailor.training.batches import Batch, BatchSource, to_device
from mllm_tailor.training.objectives.base import Objective, ObjectiveContext
from mllm_tailor.training.objectives.cross_entropy import answer_logits, labelled_tokens

NAMES = ("ids", "log_probabilities")  # of the tensors of a sample in a teacher's file
LAYER = re.compile(r"\.(?:layers?|blocks)\.\d+$")


def top_log_probabilities(logits: Tensor, top_k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """(tokens, top_k) ids and (tokens, top_k) log-probabilities of the most likely tokens."""
    top = torch.log_softmax(logits.float() / temperature, dim=-1).topk(min(top_k, logits.shape[-1]))
    return top.indices, top.values


def kept_divergence(logits: Tensor, ids: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL, summed over tokens, of the teacher's kept log-probabilities and the rest from a student's logits."""
    student = torch.log_softmax(logits.float() / temperature, dim=-1).gather(1, ids)
    return functional.kl_div(_with_rest(student), _with_rest(teacher), reduction="sum", log_target=True)


def _with_rest(log_probabilities: Tensor) -> Tensor:
    """(tokens, top_k + 1): the log-probability of all other tokens is appended."""
    rest = (1 - log_probabilities.exp().sum(dim=-1, keepdim=True)).clamp(min=1e-7)
    return torch.cat([log_probabilities, torch.log(rest)], dim=-1)


class LogitDistillation(Objective):
    """Labels and a teacher's logits together."""

    def __init__(self, context: ObjectiveContext) -> None:
        super().__init__(context.model, context.samples)
        assert context.settings.distill is not None
        self.settings = context.settings.distill
        self.tokens = context.settings.loss
        self.dtype = context.dtype
        self.teacher_logits: dict[int, tuple[Tensor, Tensor]] = {}  # sample index -> token ids, log-probabilities

    def loss_weight(self, index: int, lengths: Sequence[Length]) -> float:
        """The number of labelled tokens."""
        return labelled_tokens(lengths[index], self.tokens)

    def prepare(self, source: BatchSource, folder: Path, chunks: Sequence[tuple[int, ...]]) -> None:
        """Compute the teacher's logits, a file per chunk; existing files are read."""
        kept = VisionFeatureCache(limit=0, folder=folder)  # with checksums
        teacher: LoadedModel | None = None
        for indices in track(chunks, "Computing the teacher's logits"):
            key = fingerprint(self.settings.model_dump(), *(self._key(index) for index in indices))
            name = f"teacher-{key[:20]}"
            entry = kept.get(name)
            if entry is None:
                teacher = teacher or load_teacher(self.model, self.settings, self.dtype)
                entry = CacheEntry(self._compute_logits(teacher, indices))
                kept.put(name, entry)
            for index in indices:
                ids, log_probabilities = (entry.tensors[f"{index}.{part}"] for part in NAMES)
                self.teacher_logits[index] = (ids, log_probabilities)

    def _key(self, index: int) -> list[Any]:
        sample = self.samples[index]
        return [index, sample.id, sample.prompt, sample.answer, sample.system]

    def _compute_logits(self, teacher: LoadedModel, indices: tuple[int, ...]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for index in indices:
            ids, log_probabilities = self._top_tokens(teacher, index)
            tensors |= {f"{index}.{NAMES[0]}": ids, f"{index}.{NAMES[1]}": log_probabilities}
        return tensors

    @torch.no_grad()
    def _top_tokens(self, teacher: LoadedModel, index: int) -> tuple[Tensor, Tensor]:
        """Token ids and log-probabilities (labelled tokens, top_k) on the CPU.

        Raises:
            DataError: when teacher and student tokenize the answer differently.
        """
        sample = self.samples[index]
        own, encoded = encode(sample, self.model), encode(sample, teacher)
        if own.ids[own.answer_start :].tolist() != encoded.ids[encoded.answer_start :].tolist():
            raise DataError(
                f"{sample.name}: the teacher tokenizes the answer differently — use a teacher with the "
                "student's tokenizer"
            )
        batch = to_device(collate([encoded], teacher, side="right"), teacher.device)
        logits, _, _ = answer_logits(teacher.model, batch)
        ids, log_probabilities = top_log_probabilities(logits, self.settings.top_k, self.settings.softmax_temperature)
        return ids.cpu().contiguous(), log_probabilities.cpu().contiguous()

    def loss(self, batch: Batch, indices: tuple[int, ...]) -> Tensor:
        """Summed over the labelled tokens."""
        logits, targets, _ = answer_logits(self.model.model, batch)
        ids, teacher = (
            upload(torch.cat([self.teacher_logits[index][side] for index in indices]), logits.device) for side in (0, 1)
        )
        weight, temperature = self.settings.weight, self.settings.softmax_temperature
        divergence = temperature**2 * kept_divergence(logits, ids, teacher, temperature)
        return (1 - weight) * functional.cross_entropy(logits, targets, reduction="sum") + weight * divergence


class VisionDistillation(Objective):
    """Hidden states of a teacher's vision tower; only the vision tower is trained."""

    def __init__(self, context: ObjectiveContext) -> None:
        super().__init__(context.model, context.samples)
        assert context.settings.distill is not None
        settings = context.settings.distill
        self.teacher = load_teacher(self.model, settings, context.dtype)
        _check_preprocessing(self.model, self.teacher)
        both = (self.model, self.teacher)
        self.layers = [last_layers(model, settings.layers) for model in both]
        own, target = (hidden_width(model) for model in both)
        self.projections = [_projection(own, target, self.model.device) for _ in range(settings.layers)]

    def loss_weight(self, index: int, lengths: Sequence[Length]) -> float:
        """The number of tiles."""
        return float(lengths[index].tiles)

    def extra_parameters(self) -> dict[str, nn.Parameter]:
        """The projections."""
        return {f"distill.projections.{index}": weight for index, weight in enumerate(self.projections)}

    def loss(self, batch: Batch, indices: tuple[int, ...]) -> Tensor:
        """The mean of 1 - cos over layers and positions, summed over tiles."""
        if "pixel_values" not in batch:
            raise DataError("`train.distill`: samples without images cannot train a vision tower — leave them out")
        pixels: Tensor = batch["pixel_values"]
        student = hidden_states(self.model, self.layers[0], pixels)
        with torch.no_grad():
            teacher = hidden_states(self.teacher, self.layers[1], pixels)
        distances = [
            1 - functional.cosine_similarity((own @ projection.T).float(), target.float(), dim=-1)
            for own, target, projection in zip(student, teacher, self.projections, strict=True)
        ]
        return torch.stack(distances).mean(dim=(0, *range(2, distances[0].ndim + 1))).sum()


def load_teacher(student: LoadedModel, settings: Distill, dtype: str) -> LoadedModel:
    """The teacher, frozen, with the student's system text and tiles.

    Raises:
        ModelError: when it cannot be loaded, or its vocabulary differs from the student's.
    """
    teacher = load_model(
        settings.teacher,
        revision=settings.revision,
        dtype=dtype,
        device=student.device,
        inputs=InputSettings(tiles=student.tiles, system=student.system, frames=student.frames),
    )
    if settings.of != "vision" and teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise ModelError(
            f"`train.distill.teacher` {settings.teacher}: its vocabulary is not the student's, so their logits cannot "
            "be compared — use a teacher of the same family, or `of: vision`"
        )
    teacher.model.requires_grad_(requires_grad=False).eval()
    return teacher


def last_layers(model: LoadedModel, count: int) -> list[nn.Module]:
    """The topmost layers of a vision tower, bottom first.

    Raises:
        ModelError: when there are fewer.
    """
    prefixes = tuple(model.family.parts["vision"])
    layers = [
        module
        for name, module in model.model.named_modules()
        if name.startswith(prefixes) and LAYER.search(name) and "." in name
    ]
    if len(layers) < count:
        raise ModelError(
            f"`train.distill.layers` {count}: the vision tower of {model.path} has {len(layers)} layers — choose fewer"
        )
    return layers[-count:]


def hidden_width(model: LoadedModel) -> int:
    """Channels of a vision tower."""
    return int(model.model.config.vision_config.hidden_size)


def hidden_states(model: LoadedModel, layers: Sequence[nn.Module], pixels: Tensor) -> list[Tensor]:
    """(tiles, positions, width) after each of `layers`."""
    states: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        model.model.get_image_features(pixel_values=pixels.to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    return states


def _projection(student: int, teacher: int, device: torch.device) -> nn.Parameter:
    """(teacher, student) with orthonormal rows or columns; the identity where both are as wide."""
    weight = torch.empty(teacher, student)
    start = torch.eye(student) if student == teacher else nn.init.orthogonal_(weight)
    return nn.Parameter(start.to(device))


def _check_preprocessing(student: LoadedModel, teacher: LoadedModel) -> None:
    for what in ("size", "image_mean", "image_std"):
        own, other = (getattr(model.processor.image_processor, what) for model in (student, teacher))
        if own != other:
            raise ModelError(
                f"`train.distill.teacher` {teacher.path}: its images have another {what} ({other}, the student's "
                f"{own}) — use a teacher with the same preprocessing"
            )
