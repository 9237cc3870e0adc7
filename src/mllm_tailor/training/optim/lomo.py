"""LOMO and AdaLOMO: each weight is updated during the backward pass, as soon as its gradient is complete.

A gradient is freed once its weight is updated, so nothing can be accumulated, and LOMO keeps no state between steps. A
clipped step needs an extra backward pass for the norm. (Lv et al. 2023, 2306.09782; 2310.10195. The authors' package
is unmaintained, and its AdaLOMO runs on GPUs only.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mllm_tailor.core.errors import RunError
from mllm_tailor.training.distributed import world_size
from mllm_tailor.training.optim.registry import OptimizerConfig, RunMicroBatches, StepResult

# name, weight (float32), gradient (float32), rate -> new weight (float32)
Update = Callable[[str, Tensor, Tensor, float], Tensor]


class FusedBackwardStep:
    """Applies an update rule from hooks that fire when a weight's gradient is complete, tied weights included."""

    accumulates = False

    def __init__(self, config: OptimizerConfig, update: Update, max_grad_norm: float | None) -> None:
        if world_size() > 1:
            raise RunError(
                "lomo and adalomo have only the gradient of their own process — run them in a single process"
            )
        self.update, self.max_grad_norm = update, max_grad_norm
        self.rates = {name: group.learning_rate for group in config.groups for name in group.weights}
        self.decays = {name: group.weight_decay for group in config.groups for name in group.weights}
        self.weights = config.weights
        self.factor, self.shrink = 0.0, 1.0
        self.norms: dict[str, Tensor] | None = None  # filled by the backward pass that only measures
        for name, weight in self.weights.items():
            weight.register_post_accumulate_grad_hook(lambda weight, name=name: self._on_gradient(name, weight))

    def step(self, micro_batches: RunMicroBatches, factor: float, seed: int) -> StepResult:
        """One or, when clipping, two backward passes."""
        norm = None
        self.factor, self.shrink = factor, 1.0
        if self.max_grad_norm is not None:
            self.norms = {}
            micro_batches(lambda share: share.backward())
            norms = [self.norms[name] for name in self.weights if name in self.norms]
            norm, self.norms = torch.linalg.vector_norm(torch.stack(norms)), None
            self.shrink = min(1.0, float(self.max_grad_norm / (norm + 1e-6)))
        loss = micro_batches(lambda share: share.backward())
        return StepResult(loss, None if norm is None else float(norm))

    @torch.no_grad()
    def _on_gradient(self, name: str, weight: nn.Parameter) -> None:
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
        """LOMO keeps no state."""
        return {}, {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """LOMO keeps no state."""


def lomo(config: OptimizerConfig) -> FusedBackwardStep:
    """w - rate * g: the same numbers as plain gradient descent."""
    return FusedBackwardStep(
        config, lambda _, weight, gradient, rate: weight.add(gradient, alpha=-rate), config.max_grad_norm
    )


class AdaLomo(FusedBackwardStep):
    """Second moments as the outer product of a row and a column: (m + n) numbers for m x n weights (1804.04235)."""

    def __init__(self, config: OptimizerConfig) -> None:
        super().__init__(config, self._adapted, max_grad_norm=None)
        self.moments: dict[str, Tensor] = {}
        self.steps = 0

    def step(self, micro_batches: RunMicroBatches, factor: float, seed: int) -> StepResult:
        """One backward pass."""
        self.steps += 1
        return super().step(micro_batches, factor, seed)

    def _adapted(self, name: str, weight: Tensor, gradient: Tensor, rate: float) -> Tensor:
        """Algorithm 1 of 2310.10195: a step of bounded size, relative to the size of the weight."""
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
        step = step / max(1.0, float(_root_mean_square(step)))
        return weight - rate * max(1e-3, float(_root_mean_square(weight))) * step

    def _average(self, key: str, value: Tensor, decay: float) -> Tensor:
        moment = self.moments.get(key)
        self.moments[key] = value if moment is None else moment.mul_(decay).add_(value, alpha=1 - decay)
        return self.moments[key]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The moments and the number of steps."""
        return dict(self.moments), {"steps": self.steps}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Load the moments and the number of steps."""
        self.moments = {key: value.to(self.weights[key.rpartition("|")[0]].device) for key, value in tensors.items()}
        self.steps = values["steps"]


def adalomo(config: OptimizerConfig) -> AdaLomo:
    """LOMO with adaptive rates."""
    return AdaLomo(config)


def _root_mean_square(tensor: Tensor) -> Tensor:
    """Root of the mean square."""
    return tensor.square().mean().sqrt()
