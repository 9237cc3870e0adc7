"""Contrastive tuning of models that compare: each picture with every text of the batch.

CLIP (Radford et al. 2021, 2103.00020, figure 3): with unit vectors I, T and logits s = exp(t) I T^T, the mean of the
cross-entropies of rows and columns against the diagonal, exp(t) at most 100. SigLIP (Zhai et al. 2023, 2303.15343,
algorithm 1): -sum log sigmoid(z s) / n over all pairs, with s = exp(t) I T^T + b and z = 1 on the diagonal, else -1.

The loss needs all vectors of a step at once, the memory only those of a pass (GradCache, Gao et al. 2021, 2101.06983):
all passes are seen without gradients first, the loss's gradient by every vector is taken, and each pass then goes
backward from its own vectors' part of it. The numbers are those of one large pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import RunError
from mllm_tailor.models import Length, LoadedModel, embed_pictures, embed_texts
from mllm_tailor.recipe import Recipe
from mllm_tailor.training.batches import Batch
from mllm_tailor.training.distributed import world_size
from mllm_tailor.training.objectives.base import Objective

LARGEST = math.log(100.0)  # of the logarithmic scale


def clip_loss(pictures: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Of unit vectors (pairs, width), the i-th of each belonging together."""
    logits = scale.clamp(max=LARGEST).exp() * pictures @ texts.T
    own = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def siglip_loss(pictures: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The same, every pair a question of its own."""
    logits = scale.exp() * pictures @ texts.T + bias
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -functional.logsigmoid(signs * logits).sum() / len(logits)


class ContrastiveObjective(Objective):
    """The loss of the step, shared out over its passes."""

    needs_two_passes = True

    def __init__(self, model: LoadedModel, samples: Sequence[Conversation], recipe: Recipe) -> None:
        super().__init__(model, samples, recipe)
        if world_size() > 1:
            raise RunError("contrastive tuning compares within one process — run it in a single process")
        self.bias = getattr(model.model, "logit_bias", None)
        self.formula: Any = clip_loss if self.bias is None else siglip_loss
        self.seen: list[tuple[tuple[int, ...], Tensor, Tensor]] = []  # members, vectors, state of chance before them
        self.slopes: dict[tuple[int, ...], Tensor] = {}
        self.total = torch.zeros(())

    def loss_weight(self, number: int, lengths: Sequence[Length]) -> float:
        """Every pair weighs the same."""
        return 1.0

    def start_step(self) -> None:
        """Nothing is seen yet."""
        self.seen, self.slopes = [], {}

    def precompute(self, batch: Batch, members: tuple[int, ...]) -> None:
        """Keep the vectors of a pass, and the state from which its dropout can be drawn again."""
        state = _chance(self.model.device)
        self.seen.append((members, self._vectors(batch), state))

    def loss(self, batch: Batch, members: tuple[int, ...]) -> Tensor:
        """The step's loss times the pass's share of pairs; its gradient is exactly that of the pass's vectors."""
        first = not self.slopes
        if first:
            self._share_out()
        place = next(number for number, (found, *_) in enumerate(self.seen) if found == members)
        count = sum(len(found) for found, *_ in self.seen)
        _set_chance(self.model.device, self.seen[place][2])
        vectors = self._vectors(batch)
        surrogate = count * (vectors.float() * self.slopes[members]).sum()
        if first:  # scale and bias are reached by no vector: their gradient is taken in one place
            surrogate = surrogate + count * (self.total - self.total.detach())
        return surrogate - surrogate.detach() + self.total.detach() * len(members)

    def _vectors(self, batch: Batch) -> Tensor:
        """(2, pairs, width): pictures, texts."""
        return torch.stack([embed_pictures(self.model, batch), embed_texts(self.model, batch)])

    def _share_out(self) -> None:
        """The loss of all vectors together, and its gradient by each."""
        vectors = torch.cat([found for _, found, _ in self.seen], dim=1).float().detach()
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            vectors.requires_grad_(True)
            self.total = self._loss(vectors)
            slope = torch.autograd.grad(self.total, vectors, retain_graph=True)[0]
            self.total = self._loss(vectors.detach()) if wanted else self.total.detach()
        parts = slope.split([len(found) for found, *_ in self.seen], dim=1)
        self.slopes = {found: part for (found, *_), part in zip(self.seen, parts, strict=True)}

    def _loss(self, vectors: Tensor) -> Tensor:
        found: Tensor = self.formula(vectors[0], vectors[1], self.model.model.logit_scale.float(), self.bias)
        return found


def _chance(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_chance(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
