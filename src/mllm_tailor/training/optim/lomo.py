"""LOMO and AdaLOMO: every weight is updated inside the backward pass as soon as its gradient is there.

No gradient outlives its weight's turn and, with LOMO, nothing is remembered between steps. Hence no accumulation. A
clipped step needs a first backward pass for the norm. (Lv et al. 2023, 2306.09782; 2310.10195. Written anew: the
authors' package is unmaintained, and its AdaLOMO runs on GPUs only.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mllm_tailor.core.errors import RunError
from mllm_tailor.training.distributed import world_size
from mllm_tailor.training.optim.registry import MicroBatches, OptimizerConfig, StepResult

Update = Callable[
    [str, Tensor, Tensor, float], Tensor
]  # name, weight, gradient (float32), rate -> new weight (float32)


class FusedBackwardStep:
    """Runs an update rule from hooks that fire when a weight's gradient is complete, tied weights included."""

    accumulates = False

    def __init__(self, setup: OptimizerConfig, update: Update, clip: float | None) -> None:
        if world_size() > 1:
            raise RunError("lomo and adalomo see only their own process's gradient — run them in a single process")
        self.update, self.clip = update, clip
        self.rates = {name: group.learning_rate for group in setup.groups for name in group.weights}
        self.decays = {name: group.weight_decay for group in setup.groups for name in group.weights}
        self.weights = setup.weights
        self.factor, self.shrink = 0.0, 1.0
        self.norms: dict[str, Tensor] | None = None  # filled while only norms are wanted
        for name, weight in self.weights.items():
            weight.register_post_accumulate_grad_hook(lambda weight, name=name: self._arrived(name, weight))

    def step(self, passes: MicroBatches, factor: float, seed: int) -> StepResult:
        """One or, when clipping, two backward passes."""
        norm = None
        self.factor, self.shrink = factor, 1.0
        if self.clip is not None:
            self.norms = {}
            passes(lambda share: share.backward())
            found = [self.norms[name] for name in self.weights if name in self.norms]
            norm, self.norms = torch.linalg.vector_norm(torch.stack(found)), None
            self.shrink = min(1.0, float(self.clip / (norm + 1e-6)))
        loss = passes(lambda share: share.backward())
        return StepResult(loss, None if norm is None else float(norm))

    @torch.no_grad()
    def _arrived(self, name: str, weight: nn.Parameter) -> None:
        gradient = weight.grad
        assert gradient is not None
        weight.grad = None
        if self.norms is not None:
            self.norms[name] = torch.linalg.vector_norm(gradient)
            return
        rate = self.rates[name] * self.factor
        whole = weight.data.float() * (1 - rate * self.decays[name]) if self.decays[name] else weight.data.float()
        weight.data.copy_(self.update(name, whole, gradient.float() * self.shrink, rate))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Nothing."""
        return {}, {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Nothing to put back."""


def lomo(setup: OptimizerConfig) -> FusedBackwardStep:
    """w - rate * g: the same numbers as plain gradient descent."""
    return FusedBackwardStep(
        setup, lambda _, weight, gradient, rate: weight.add(gradient, alpha=-rate), setup.max_grad_norm
    )


class AdaLomo(FusedBackwardStep):
    """Second moments as the outer product of a row and a column: (m + n) numbers for m x n weights (1804.04235)."""

    def __init__(self, setup: OptimizerConfig) -> None:
        super().__init__(setup, self._adapted, clip=None)
        self.moments: dict[str, Tensor] = {}
        self.steps = 0

    def step(self, passes: MicroBatches, factor: float, seed: int) -> StepResult:
        """One backward pass."""
        self.steps += 1
        return super().step(passes, factor, seed)

    def _adapted(self, name: str, weight: Tensor, gradient: Tensor, rate: float) -> Tensor:
        """Algorithm 1 of 2310.10195: a step of bounded size, relative to the weight's own."""
        decay = 1 - self.steps**-0.8  # of the moving averages
        squares = gradient.square() + 1e-30
        if gradient.ndim > 1:
            flat = squares.flatten(1)  # (out, in) of a convolution too
            rows = self._average(f"{name}|rows", flat.mean(dim=1), decay)
            columns = self._average(f"{name}|columns", flat.mean(dim=0), decay)
            scale = (rows / rows.mean()).rsqrt()[:, None] * columns.rsqrt()
            step = gradient * scale.view_as(gradient)
        else:
            step = gradient * self._average(f"{name}|all", squares, decay).rsqrt()
        step = step / max(1.0, float(_size(step)))
        return weight - rate * max(1e-3, float(_size(weight))) * step

    def _average(self, key: str, value: Tensor, decay: float) -> Tensor:
        before = self.moments.get(key)
        self.moments[key] = value if before is None else before.mul_(decay).add_(value, alpha=1 - decay)
        return self.moments[key]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The moments and the number of steps."""
        return dict(self.moments), {"steps": self.steps}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put them back."""
        self.moments = {key: value.to(self.weights[key.rpartition("|")[0]].device) for key, value in tensors.items()}
        self.steps = values["steps"]


def adalomo(setup: OptimizerConfig) -> AdaLomo:
    """LOMO with adaptive rates."""
    return AdaLomo(setup)


def _size(tensor: Tensor) -> Tensor:
    """Root of the mean square."""
    return tensor.square().mean().sqrt()
