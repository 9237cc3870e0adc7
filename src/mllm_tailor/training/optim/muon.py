"""Muon: orthogonalised momentum, for training from scratch.

A small untrained model first learns the form of replies and not what the image shows: gradients through the images lie
in a few weak directions. Adam scales each weight separately and leaves them weak; Muon gives all singular values of an
update one size (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mllm_tailor.core.device import fast_bf16
from mllm_tailor.training.optim.galore_apollo import adam
from mllm_tailor.training.optim.registry import OptimizerConfig
from mllm_tailor.training.optim.torch_bnb import GradientStep

MOMENTUM = 0.95
SIZE = 0.2  # root mean square of an update, about that of Adam, so that learning rates and decay carry over
TOGETHER = 1 << 20  # numbers in the matrices of one batch, of which there are half a dozen copies in between
OUTER = ("embed", "lm_head")  # a row per token or position, most of which get no gradient: trained by Adam


class Muon(Optimizer):
    """Muon on the matrices in `hidden`, Adam on everything else; decay is decoupled.

    `torch.optim.Muon` multiplies one matrix at a time in bf16, which took five times as long as forward and backward
    pass together on a CPU that emulates bf16. Here matrices of one shape are batched, in float32 where bf16 is slow. An
    update is scaled by SIZE sqrt(longer side) (Liu et al. 2025, 2502.16982, equation 4).
    """

    def __init__(self, groups: list[dict[str, Any]], hidden: Collection[nn.Parameter]) -> None:
        super().__init__(groups, {})
        self.hidden = frozenset(map(id, hidden))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                if id(weight) in self.hidden:
                    shapes[weight.shape].append(weight)
                else:
                    state = self.state[weight]
                    state["step"] = state.get("step", 0) + 1
                    weight.add_(adam(state, weight.grad.float()).to(weight.dtype), alpha=-group["lr"])
            for shape, same in shapes.items():
                size = max(1, TOGETHER // shape.numel())
                for start in range(0, len(same), size):
                    weights = same[start : start + size]
                    updates = orthogonalise(torch.stack([self._nesterov(weight) for weight in weights]))
                    for weight, update in zip(weights, updates, strict=True):
                        weight.add_(update.to(weight.dtype), alpha=-group["lr"] * SIZE * max(shape) ** 0.5)

    def _nesterov(self, weight: nn.Parameter) -> Tensor:
        state, gradient = self.state[weight], weight.grad.float()  # type: ignore[union-attr]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices (count, rows, columns) with the same singular vectors and all singular values near one.

    Newton-Schulz iterations; their coefficients trade exactness (singular values end within 0.7 to 1.2) for speed.
    """
    x = matrices.bfloat16() if fast_bf16(matrices.device) else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return (x.mT if tall else x).to(matrices.dtype)


def muon(config: OptimizerConfig) -> GradientStep:
    """Hidden matrices by Muon; embeddings, the output head, kernels, scales and biases by Adam."""
    hidden = [weight for name, weight in config.weights.items() if weight.ndim == 2 and not _outer(name)]
    return GradientStep(config, lambda groups: Muon(groups, hidden))


def _outer(name: str) -> bool:
    return any(part in name for part in OUTER)
