"""GaLore and APOLLO: Adam whose moments live in a few directions of each weight's gradient.

For a gradient G (m, n) with m <= n (transposed otherwise) and a projection P (rank, m), Adam runs on R = P G and keeps
2 * rank * n numbers in place of 2 * m * n. From Adam's answer N = M / (sqrt(V) + e):

- GaLore (Zhao et al. 2024, 2403.03507, algorithm 2) takes the largest left singular vectors as P, found anew every so
  many steps, and steps along `scale * P^T N`.
- APOLLO (Zhu et al. 2024, 2412.05270, algorithm 1) draws P ~ N(0, 1/rank), never stored but drawn again from its seed,
  and steps along G itself, each column scaled by |N_j| / |R_j|; a step grows by at most 1 % over the one before.

What is narrower than the rank, or one-dimensional, is trained by plain Adam.
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

Step = Callable[["Projected", dict[str, Any], Tensor, int], Tensor]  # state, G (m, n), place -> direction (m, n)


class Projected(Optimizer):
    """AdamW with decoupled decay; wide weights step by `rule`."""

    def __init__(
        self, groups: list[dict[str, Any]], rule: Step, *, rank: int, scale: float, interval: int, by_row: bool = True
    ) -> None:
        super().__init__(groups, {})
        self.rule, self.rank, self.scale, self.interval, self.by_row = rule, rank, scale, interval, by_row
        weights = [weight for group in self.param_groups for weight in group["params"]]
        self.places = {
            weight: place for place, weight in enumerate(weights)
        }  # the same in every process and resumption
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
            turned = flat.shape[0] > flat.shape[1]
            found = self.rule(self, state, flat.T if turned else flat, self.places[weight])
            direction = self.scale * (found.T if turned else found).reshape(weight.shape)
        else:
            direction = adam(state, gradient)
        whole = weight.float() * (1 - rate * decay)
        weight.copy_(whole - rate * direction)

    def due(self, state: dict[str, Any]) -> bool:
        """Whether this step changes the projection."""
        return (state["step"] - 1) % self.interval == 0


def adam(state: dict[str, Any], gradient: Tensor) -> Tensor:
    """M / (sqrt(V) + e), both moments corrected for their start at zero (1412.6980)."""
    for key, power, beta in (("mean", 1, BETAS[0]), ("square", 2, BETAS[1])):
        before = state.get(key)
        state[key] = (torch.zeros_like(gradient) if before is None else before).lerp(gradient**power, 1 - beta)
    mean, square = (
        state[key] / (1 - beta ** state["step"]) for key, beta in zip(("mean", "square"), BETAS, strict=True)
    )
    return mean / (square.sqrt() + EPSILON)


def galore_step(optimizer: Projected, state: dict[str, Any], gradient: Tensor, place: int) -> Tensor:
    """Back from the largest singular vectors."""
    if optimizer.due(state):
        left = torch.linalg.svd(gradient, full_matrices=False).U
        state["basis"] = left[:, : optimizer.rank].contiguous()  # (m, rank)
    basis: Tensor = state["basis"]
    return basis @ adam(state, basis.T @ gradient)


def apollo_step(optimizer: Projected, state: dict[str, Any], gradient: Tensor, place: int) -> Tensor:
    """The gradient itself, its columns scaled as Adam would scale them."""
    span = (state["step"] - 1) // optimizer.interval
    generator = torch.Generator(gradient.device).manual_seed((span << 32) + place)
    projection = torch.randn(optimizer.rank, gradient.shape[0], generator=generator, device=gradient.device)
    reduced = projection / optimizer.rank**0.5 @ gradient  # (rank, n)
    answer = adam(state, reduced)
    axis = 0 if optimizer.by_row else None
    step = gradient * (_norm(answer, axis) / (_norm(reduced, axis) + EPSILON))
    size, before = float(_norm(step)), state.get("size")
    if before is not None and size > GROWTH * before > 0:
        step = step * (GROWTH * before / size)
    state["size"] = size if before is None or before == 0 else min(size, GROWTH * before)
    return step


def _norm(tensor: Tensor, axis: int | None = None) -> Tensor:
    return torch.linalg.vector_norm(tensor, dim=axis, keepdim=axis is not None)


def galore(setup: OptimizerConfig) -> GradientStep:
    """Settings: rank, interval (steps between decompositions), scale."""
    said = {"rank": 128, "interval": 200, "scale": 0.25} | dict(setup.options)
    return GradientStep(setup, lambda groups: Projected(groups, galore_step, **said))


def apollo(setup: OptimizerConfig) -> GradientStep:
    """Settings: rank, interval (steps between draws), scale. Rank 1 scales the whole tensor at once (APOLLO-Mini)."""
    said = {"rank": 128, "interval": 200, "scale": 1.0} | dict(setup.options)
    return GradientStep(setup, lambda groups: Projected(groups, apollo_step, by_row=said["rank"] > 1, **said))
