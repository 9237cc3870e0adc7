"""Contrastive training of dual encoders: each image against every text of the batch.

CLIP (Radford et al. 2021, 2103.00020, figure 3): with unit vectors I, T and logits s = exp(t) I T^T, the mean of the
cross-entropies of rows and columns against the diagonal, exp(t) at most 100. SigLIP (Zhai et al. 2023, 2303.15343,
algorithm 1): -sum log sigmoid(z s) / n over all pairs, with s = exp(t) I T^T + b and z = 1 on the diagonal, else -1.

The loss needs the embeddings of a whole step, the memory only those of a micro-batch (GradCache, Gao et al. 2021,
2101.06983): all micro-batches are embedded without gradients first, the gradient of the loss with respect to every
embedding is taken, and each micro-batch then backpropagates its part of it. The result equals one large batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mllm_tailor.core.errors import RunError
from mllm_tailor.models import Length, embed_images, embed_texts
from mllm_tailor.training.batches import Batch
from mllm_tailor.training.distributed import world_size
from mllm_tailor.training.objectives.base import Objective, ObjectiveContext

MAX_LOG_SCALE = math.log(100.0)


def clip_loss(images: Tensor, texts: Tensor, scale: Tensor, _bias: Tensor | None = None) -> Tensor:
    """The loss of unit vectors (pairs, width); the i-th image and the i-th text belong together."""
    logits = scale.clamp(max=MAX_LOG_SCALE).exp() * images @ texts.T
    targets = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2


def siglip_loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The same as a binary classification of every pair."""
    logits = scale.exp() * images @ texts.T + bias
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -functional.logsigmoid(signs * logits).sum() / len(logits)


class ContrastiveObjective(Objective):
    """The loss of a step, distributed over its micro-batches."""

    needs_two_passes = True

    def __init__(self, context: ObjectiveContext) -> None:
        super().__init__(context.model, context.samples)
        if world_size() > 1:
            raise RunError("contrastive training compares within one process — run it in a single process")
        self.bias = getattr(self.model.model, "logit_bias", None)
        self.formula: Any = clip_loss if self.bias is None else siglip_loss
        self.embedded: list[tuple[tuple[int, ...], Tensor, Tensor]] = []  # indices, embeddings, RNG state before them
        self.gradients: dict[tuple[int, ...], Tensor] = {}  # of the step's loss, with respect to the embeddings
        self.total = torch.zeros(())

    def loss_weight(self, index: int, lengths: Sequence[Length]) -> float:
        """Every pair weighs the same."""
        return 1.0

    def start_step(self, step: int, indices: Sequence[int], seed: int) -> None:
        """Forget the embeddings of the step before."""
        self.embedded, self.gradients = [], {}

    def precompute(self, batch: Batch, indices: tuple[int, ...]) -> None:
        """Keep the embeddings of a micro-batch, and the RNG state from which its dropout is drawn again."""
        state = _rng_state(self.model.device)
        self.embedded.append((indices, self._embed(batch), state))

    def loss(self, batch: Batch, indices: tuple[int, ...]) -> Tensor:
        """The step's loss times the micro-batch's share of pairs; its gradient is that of its own embeddings."""
        first = not self.gradients
        if first:
            self._differentiate()
        state = next(state for known, _, state in self.embedded if known == indices)
        count = sum(len(known) for known, *_ in self.embedded)
        _set_rng_state(self.model.device, state)
        embeddings = self._embed(batch)
        surrogate = count * (embeddings.float() * self.gradients[indices]).sum()
        if first:  # scale and bias depend on no embedding: their gradient is added once
            surrogate = surrogate + count * (self.total - self.total.detach())
        return surrogate - surrogate.detach() + self.total.detach() * len(indices)

    def _embed(self, batch: Batch) -> Tensor:
        """(2, pairs, width): images, texts."""
        return torch.stack([embed_images(self.model, batch), embed_texts(self.model, batch)])

    def _differentiate(self) -> None:
        """The loss of all embeddings together, and its gradient with respect to each."""
        embeddings = torch.cat([part for _, part, _ in self.embedded], dim=1).float().detach()
        with_gradients = torch.is_grad_enabled()
        with torch.enable_grad():
            embeddings.requires_grad_()
            self.total = self._loss(embeddings)
            gradient = torch.autograd.grad(self.total, embeddings, retain_graph=True)[0]
            self.total = self._loss(embeddings.detach()) if with_gradients else self.total.detach()
        parts = gradient.split([len(indices) for indices, *_ in self.embedded], dim=1)
        self.gradients = {indices: part for (indices, *_), part in zip(self.embedded, parts, strict=True)}

    def _loss(self, embeddings: Tensor) -> Tensor:
        scale = self.model.model.logit_scale.float()
        loss: Tensor = self.formula(embeddings[0], embeddings[1], scale, self.bias)
        return loss


def _rng_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_rng_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
