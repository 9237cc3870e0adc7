"""GaLore and APOLLO: Adam with its moments in a low-rank projection of each weight's gradient.

For a gradient G (m, n) with m <= n (transposed otherwise) and a projection P (rank, m), Adam runs on R = P G and keeps
2 * rank * n numbers instead of 2 * m * n. From Adam's direction N = M / (sqrt(V) + e):

- GaLore (Zhao et al. 2024, 2403.03507, algorithm 2) takes the largest left singular vectors as P, recomputed every
  `interval` steps, and steps along `scale * P^T N`.
- APOLLO (Zhu et al. 2024, 2412.05270, algorithm 1) draws P ~ N(0, 1/rank) again from its seed instead of storing it,
  and steps along G itself, each column scaled by |N_j| / |R_j|; a step grows by at most 1 % over the one before.

Weights narrower than the rank, or one-dimensional, are trained by plain Adam.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.training.optim.registry import OptimizerConfig
from mllm_tailor.training.optim.torch_bnb import GradientStep

BETAS, EPSILON = (0.9, 0.999), 1e-8
GROWTH = 1.01  # of the norm of APOLLO's step, from one to the next

Step = Callable[
    ["Projected", dict[str, Any], Tensor, int], Tensor
]  # state, G (m, n), index of the weight -> direction (m, n)


class Projected(Optimizer):
    """AdamW with decoupled decay; wide weights step by `rule`."""

    def __init__(
        self, groups: list[dict[str, Any]], rule: Step, *, rank: int, scale: float, interval: int, by_row: bool = True
    ) -> None:
        super().__init__(groups, {})
        self.rule, self.rank, self.scale, self.interval, self.by_row = rule, rank, scale, interval, by_row
        weights = [weight for group in self.param_groups for weight in group["params"]]
        self.indices = {weight: index for index, weight in enumerate(weights)}  # seeds APOLLO's projections
        if not any(self._wide(weight) for weight in weights):
            raise RecipeError(f"`method.rank` {rank}: no trained weight is wider — choose a lower rank, or adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group["lr"], group["weight_decay"])

    def _wide(self, weight: Tensor) -> bool:
        return weight.ndim > 1 and min(weight.flatten(1).shape) > self.rank

    def _update(self, weight: Tensor, rate: float, decay: float) -> None:
        state, gradient = self.state[weight], weight.grad.float()  # type: ignore[union-attr]
        state["step"] = state.get("step", 0) + 1
        if self._wide(weight):
            flat = gradient.flatten(1)
            transposed = flat.shape[0] > flat.shape[1]
            step = self.rule(self, state, flat.T if transposed else flat, self.indices[weight])
            direction = self.scale * (step.T if transposed else step).reshape(weight.shape)
        else:
            direction = adam(state, gradient)
        decayed = weight.float() * (1 - rate * decay)
        weight.copy_(decayed - rate * direction)

    def due(self, state: dict[str, Any]) -> bool:
        """Whether this step changes the projection."""
        return bool((state["step"] - 1) % self.interval == 0)


def adam(state: dict[str, Any], gradient: Tensor) -> Tensor:
    """M / (sqrt(V) + e), both moments corrected for their start at zero (1412.6980)."""
    for key, power, beta in (("mean", 1, BETAS[0]), ("square", 2, BETAS[1])):
        moment = state.get(key)
        state[key] = (torch.zeros_like(gradient) if moment is None else moment).lerp(gradient**power, 1 - beta)
    mean: Tensor = state["mean"] / (1 - BETAS[0] ** state["step"])
    square: Tensor = state["square"] / (1 - BETAS[1] ** state["step"])
    return mean / (square.sqrt() + EPSILON)


def galore_step(optimizer: Projected, state: dict[str, Any], gradient: Tensor, _index: int) -> Tensor:
    """Adam in the largest singular directions."""
    if optimizer.due(state):
        left = torch.linalg.svd(gradient, full_matrices=False).U
        state["basis"] = left[:, : optimizer.rank].contiguous()  # (m, rank)
    basis: Tensor = state["basis"]
    return basis @ adam(state, basis.T @ gradient)


def apollo_step(optimizer: Projected, state: dict[str, Any], gradient: Tensor, index: int) -> Tensor:
    """The gradient, its columns scaled as Adam would scale them."""
    span = (state["step"] - 1) // optimizer.interval
    generator = torch.Generator(gradient.device).manual_seed((span << 32) + index)
    projection = torch.randn(optimizer.rank, gradient.shape[0], generator=generator, device=gradient.device)
    reduced = projection / optimizer.rank**0.5 @ gradient  # (rank, n)
    direction = adam(state, reduced)
    axis = 0 if optimizer.by_row else None
    step = gradient * (_norm(direction, axis) / (_norm(reduced, axis) + EPSILON))
    size, before = float(_norm(step)), state.get("size")
    if before is not None and size > GROWTH * before > 0:
        step = step * (GROWTH * before / size)
    state["size"] = size if before is None or before == 0 else min(size, GROWTH * before)
    return step


def _norm(tensor: Tensor, axis: int | None = None) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dim=axis, keepdim=axis is not None)
    return norm


def galore(config: OptimizerConfig) -> GradientStep:
    """Settings: rank, interval (steps between decompositions), scale."""
    options = {"rank": 128, "interval": 200, "scale": 0.25} | dict(config.options)
    return GradientStep(config, lambda groups: Projected(groups, galore_step, **options))


def apollo(config: OptimizerConfig) -> GradientStep:
    """Settings: rank, interval (steps between draws), scale. Rank 1 scales the whole tensor at once (APOLLO-Mini)."""
    options = {"rank": 128, "interval": 200, "scale": 1.0} | dict(config.options)
    return GradientStep(config, lambda groups: Projected(groups, apollo_step, by_row=options["rank"] > 1, **options))
