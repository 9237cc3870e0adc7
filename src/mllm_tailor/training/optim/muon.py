"""Muon: orthogonalised momentum, for training from scratch.

A small untrained model first learns the form of replies and not what the image shows: gradients through the images lie
in a few weak directions. Adam scales each weight separately and leaves them weak; Muon gives all singular values of an
update one size (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mllm_tailor.core.device import fast_bf16
from mllm_tailor.training.distributed import broadcast, rank, world_size
from mllm_tailor.training.optim.galore_apollo import adam
from mllm_tailor.training.optim.registry import OptimizerConfig
from mllm_tailor.training.optim.torch_bnb import GradientStep

MOMENTUM = 0.95
SIZE = 0.2  # root mean square of an update, about that of Adam, so that learning rates and decay carry over
TOGETHER = 1 << 20  # numbers in the matrices of one batch, of which there are half a dozen copies in between
ITERATIONS = 5
A, B, C = 3.4445, -4.775, 2.0315  # of a Newton-Schulz iteration X <- (A + B X X^T + C (X X^T)^2) X
OBLONG = 1.5  # ratio of sides from which iterating on the Gram matrix takes fewer operations
OUTER = ("embed", "lm_head")  # a row per token or position, most of which get no gradient: trained by Adam


class Muon(Optimizer):
    """Muon on the matrices in `hidden`, Adam on everything else; decay is decoupled.

    `torch.optim.Muon` multiplies one matrix at a time in bf16, which took five times as long as forward and backward
    pass together on a CPU that emulates bf16. Here matrices of one shape are batched, in float32 where bf16 is slow. An
    update is scaled by SIZE sqrt(longer side) (Liu et al. 2025, 2502.16982, equation 4).

    Processes that train together each orthogonalise a share of the matrices and send the updates to the others. All
    keep every momentum, so that a checkpoint of one holds the state of any number of processes.
    """

    def __init__(self, groups: list[dict[str, Any]], hidden: Collection[nn.Parameter]) -> None:
        super().__init__(groups, {})
        self.hidden = frozenset(map(id, hidden))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            hidden: list[nn.Parameter] = []
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                if id(weight) in self.hidden:
                    hidden.append(weight)
                else:
                    state = self.state[weight]
                    state["step"] = state.get("step", 0) + 1
                    weight.add_(adam(state, weight.grad.float()).to(weight.dtype), alpha=-group["lr"])
            batches = sorted(batches_by_shape(hidden), key=_operations, reverse=True)
            for start in range(0, len(batches), world_size()):  # one each, of about the same cost
                self._update_together(batches[start : start + world_size()], group["lr"])

    def _update_together(self, batches: Sequence[Sequence[nn.Parameter]], learning_rate: float) -> None:
        """Update the matrices of as many batches as there are processes, of which each computes one."""
        updates = [torch.stack([self._nesterov(weight) for weight in weights]) for weights in batches]
        if rank() < len(batches):
            updates[rank()] = orthogonalise(updates[rank()]).contiguous()
        for owner, (weights, update) in enumerate(zip(batches, updates, strict=True)):
            broadcast(update, owner)
            scale = learning_rate * SIZE * max(weights[0].shape) ** 0.5
            for weight, change in zip(weights, update, strict=True):
                weight.add_(change.to(weight.dtype), alpha=-scale)

    def _nesterov(self, weight: nn.Parameter) -> Tensor:
        state, gradient = self.state[weight], weight.grad.float()  # type: ignore[union-attr]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


def batches_by_shape(weights: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Matrices that are orthogonalised together: of one shape, and of at most TOGETHER numbers unless alone."""
    shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
    for weight in weights:
        shapes[weight.shape].append(weight)
    batches = []
    for shape, same in shapes.items():
        size = max(1, TOGETHER // shape.numel())
        batches += [same[start : start + size] for start in range(0, len(same), size)]
    return batches


def _operations(batch: Sequence[Tensor]) -> int:
    """Operations of orthogonalising matrices of one shape, in float32."""
    short, long = sorted(batch[0].shape)
    return len(batch) * short**2 * (4 * long + 34 * short if long > OBLONG * short else 20 * long + 10 * short)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices (count, rows, columns) with the same singular vectors and all singular values near one.

    Newton-Schulz iterations; their coefficients trade exactness (singular values end within 0.7 to 1.2) for speed.
    Every iteration multiplies X from the left by a polynomial of the Gram matrix X X^T, and so changes that matrix by
    the same polynomial: where X is oblong, only the small square matrices are iterated, in float32, and their product
    is applied to X once.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if fast_bf16(matrices.device):
        x = _iterate(x.bfloat16())
    elif x.shape[2] > OBLONG * x.shape[1]:
        x = _iterate_gram(x @ x.mT) @ x
    else:
        x = _iterate(x)
    return (x.mT if tall else x).to(matrices.dtype)


def _iterate(x: Tensor) -> Tensor:
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x


def _iterate_gram(gram: Tensor) -> Tensor:
    """The product (count, rows, rows) of all iterations' polynomials, from the Gram matrices before the first one."""
    identity = torch.eye(gram.shape[1], device=gram.device, dtype=gram.dtype)
    product = identity.expand_as(gram)
    for iteration in range(ITERATIONS):
        polynomial = torch.baddbmm(gram, gram, gram, beta=B, alpha=C) + A * identity
        product = polynomial @ product if iteration else polynomial
        if iteration < ITERATIONS - 1:
            gram = polynomial @ gram @ polynomial
    return product


def muon(config: OptimizerConfig) -> GradientStep:
    """Hidden matrices by Muon; embeddings, the output head, kernels, scales and biases by Adam."""
    hidden = [weight for name, weight in config.weights.items() if weight.ndim == 2 and not _outer(name)]
    return GradientStep(config, lambda groups: Muon(groups, hidden))


def _outer(name: str) -> bool:
    return any(part in name for part in OUTER)
