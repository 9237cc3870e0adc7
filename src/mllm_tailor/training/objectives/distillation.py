"""Learning from a larger model: from its logits, or from its vision tower.

Logits (Hinton et al. 2015, 1503.02531): `(1 - w) CE + w T^2 KL(teacher || student)` at temperature T. The teacher reads
every answer once; its `top_k` most likely tokens and the mass of all others are kept on disk. The others count as one
event, so that the divergence is a lower bound of the whole one and is zero only where the student agrees on them too.

Vision (as InternViT-300M was made, Gao et al. 2024, 2410.16261): the mean of `1 - cos` between the hidden states of
the last layers, the student's through a learned projection. The student's pictures go through both towers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError, ModelError
from mllm_tailor.core.io import atomic_file, fingerprint
from mllm_tailor.core.progress import track
from mllm_tailor.models import InputSettings, Length, LoadedModel, collate, encode, load_model
from mllm_tailor.recipe import Recipe
from mllm_tailor.training.batches import Batch, BatchSource, to_device
from mllm_tailor.training.objectives.base import Objective
from mllm_tailor.training.objectives.cross_entropy import answer_logits

LAYER = re.compile(r"\.(?:layers?|blocks)\.\d+$")


def top_log_probabilities(logits: Tensor, top_k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """(tokens, top_k) ids and (tokens, top_k) log-probabilities of the most likely tokens."""
    found = torch.log_softmax(logits.float() / temperature, dim=-1).topk(min(top_k, logits.shape[-1]))
    return found.indices, found.values


def kept_divergence(logits: Tensor, ids: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Summed KL over tokens of the teacher's kept log-probabilities and the rest, from a student's logits."""
    student = torch.log_softmax(logits.float() / temperature, dim=-1).gather(1, ids)
    rest = [torch.log((1 - found.exp().sum(dim=-1, keepdim=True)).clamp(min=1e-7)) for found in (teacher, student)]
    wanted, found = torch.cat([teacher, rest[0]], dim=-1), torch.cat([student, rest[1]], dim=-1)
    return functional.kl_div(found, wanted, reduction="sum", log_target=True)


class LogitDistillation(Objective):
    """Labels and a teacher's logits together."""

    def __init__(self, model: LoadedModel, samples: Sequence[Conversation], recipe: Recipe) -> None:
        super().__init__(model, samples, recipe)
        assert recipe.train.distill is not None
        self.settings = recipe.train.distill
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def prepare(self, feed: BatchSource, folder: Path, groups: Sequence[tuple[int, ...]]) -> None:
        """The teacher's part: a file a pass, made once; those there already are read."""
        folder.mkdir(parents=True, exist_ok=True)
        teacher: LoadedModel | None = None
        for members in track(groups, "The teacher reads the answers once"):
            key = fingerprint(self.settings.model_dump(), *(self._key(number) for number in members))
            file = folder / f"teacher-{key[:20]}.safetensors"
            if not file.exists():
                teacher = teacher or open_teacher(self.model, self.recipe)
                self._ask(teacher, members, file)
            with safe_open(file, "pt") as kept:
                for number in members:
                    self.kept[number] = (kept.get_tensor(f"{number}.ids"), kept.get_tensor(f"{number}.kept"))

    def _key(self, number: int) -> list[Any]:
        sample = self.samples[number]
        return [number, sample.id, sample.prompt, sample.answer, sample.system]

    def _ask(self, teacher: LoadedModel, members: tuple[int, ...], file: Path) -> None:
        found: dict[str, Tensor] = {}
        for number in members:
            sample = self.samples[number]
            mine, its = (encode(sample, model) for model in (self.model, teacher))
            if mine.ids[mine.answer_start :].tolist() != its.ids[its.answer_start :].tolist():
                raise DataError(
                    f"{sample.source or sample.id}: the teacher cuts the answer into other tokens — take a teacher "
                    "with the student's tokenizer"
                )
            batch = to_device(collate([its], teacher, side="right"), teacher.device)
            with torch.no_grad():
                logits, _, _ = answer_logits(teacher.model, batch)
            ids, kept = top_log_probabilities(logits, self.settings.top_k, self.settings.temperature)
            found |= {f"{number}.ids": ids.cpu().contiguous(), f"{number}.kept": kept.cpu().contiguous()}
        with atomic_file(file) as partial:
            save_file(found, partial)

    def loss(self, batch: Batch, members: tuple[int, ...]) -> Tensor:
        """Of a pass's labelled tokens."""
        logits, targets, _ = answer_logits(self.model.model, batch)
        ids, teacher = (torch.cat([self.kept[number][side] for number in members]).to(logits.device) for side in (0, 1))
        weight, temperature = self.settings.weight, self.settings.temperature
        divergence = temperature**2 * kept_divergence(logits, ids, teacher, temperature)
        return (1 - weight) * functional.cross_entropy(logits, targets, reduction="sum") + weight * divergence


class VisionDistillation(Objective):
    """Only the vision tower learns; nothing is written or read."""

    def __init__(self, model: LoadedModel, samples: Sequence[Conversation], recipe: Recipe) -> None:
        super().__init__(model, samples, recipe)
        assert recipe.train.distill is not None
        self.settings = recipe.train.distill
        self.teacher = open_teacher(model, recipe)
        _check_pictures(model, self.teacher)
        count = self.settings.layers
        self.layers = [last_layers(one, count) for one in (model, self.teacher)]
        widths = [hidden_width(one) for one in (model, self.teacher)]
        self.projections = [_projection(*widths).to(model.device) for _ in range(count)]

    def loss_weight(self, number: int, lengths: Sequence[Length]) -> float:
        """Tiles."""
        return float(lengths[number].tiles)

    def weights(self) -> dict[str, nn.Parameter]:
        """The projections."""
        return {f"distill.projections.{place}": weight for place, weight in enumerate(self.projections)}

    def loss(self, batch: Batch, members: tuple[int, ...]) -> Tensor:
        """The mean of 1 - cos over layers and places, summed over tiles."""
        if "pixel_values" not in batch:
            raise DataError("`train.distill`: samples without pictures teach a vision tower nothing — leave them out")
        pixels: Tensor = batch["pixel_values"]
        student = hidden_states(self.model, self.layers[0], pixels)
        with torch.no_grad():
            teacher = hidden_states(self.teacher, self.layers[1], pixels)
        apart = [
            1 - functional.cosine_similarity((mine @ projection.T).float(), its.float(), dim=-1)
            for mine, its, projection in zip(student, teacher, self.projections, strict=True)
        ]
        return torch.stack(apart).mean(dim=(0, *range(2, apart[0].ndim + 1))).sum()


def open_teacher(student: LoadedModel, recipe: Recipe) -> LoadedModel:
    """The recipe's teacher, frozen, with the student's system text and tiles.

    Raises:
        ModelError: when it cannot be opened, or speaks other tokens than the student.
    """
    settings = recipe.train.distill
    assert settings is not None
    teacher = load_model(
        settings.teacher,
        revision=settings.revision,
        dtype=recipe.model.dtype,
        device=recipe.model.device,
        inputs=InputSettings(tiles=student.tiles, system=student.system, frames=student.frames),
    )
    if settings.of == "logits" and teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise ModelError(
            f"`train.distill.teacher` {settings.teacher}: its vocabulary is not the student's, so their logits cannot "
            "be compared — take a teacher of the same family, or `of: vision`"
        )
    teacher.model.requires_grad_(False).eval()
    return teacher


def last_layers(model: LoadedModel, count: int) -> list[nn.Module]:
    """The topmost layers of a vision tower, bottom first.

    Raises:
        ModelError: when there are fewer.
    """
    prefixes = tuple(model.family.parts["vision"])
    found = [
        module
        for name, module in model.model.named_modules()
        if name.startswith(prefixes) and LAYER.search(name) and "." in name
    ]
    if len(found) < count:
        raise ModelError(
            f"`train.distill.layers` {count}: the vision tower of {model.path} has {len(found)} layers — choose fewer"
        )
    return found[-count:]


def hidden_width(model: LoadedModel) -> int:
    """Channels of a vision tower."""
    return int(model.model.config.vision_config.hidden_size)


def hidden_states(model: LoadedModel, layers: Sequence[nn.Module], pixels: Tensor) -> list[Tensor]:
    """(tiles, places, width) behind each of `layers`."""
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        model.model.get_image_features(pixel_values=pixels.to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _projection(student: int, teacher: int) -> nn.Parameter:
    """(teacher, student) with orthonormal rows or columns; the identity where both are as wide."""
    weight = torch.empty(teacher, student)
    return nn.Parameter(torch.eye(student) if student == teacher else nn.init.orthogonal_(weight))


def _check_pictures(student: LoadedModel, teacher: LoadedModel) -> None:
    for what in ("size", "image_mean", "image_std"):
        mine, its = (getattr(one.processor.image_processor, what) for one in (student, teacher))
        if mine != its:
            raise ModelError(
                f"`train.distill.teacher` {teacher.path}: its pictures have another {what} ({its}, the student's "
                f"{mine}) — take a teacher that sees the same pictures"
            )
