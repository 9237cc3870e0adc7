"""Muon for hidden matrices, AdamW for the rest; the rate follows the clock, so a stage fits its minutes."""

from __future__ import annotations

import math

import torch
from torch import nn

from mllm_tailor.core.device import fast_bf16


def make_optimizers(modules: list[nn.Module], rate: float, muon: bool = True) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) on matrices of hidden layers, AdamW on embeddings, heads, norms and biases."""
    hidden, other = [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            is_hidden = parameter.ndim == 2 and not any(
                part in name for part in ("embed", "lm_head", "slot_", "linear.weight")
            )
            (hidden if muon and is_hidden else other).append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if hidden:
        optimizers.append(Muon(hidden, rate))
    optimizers.append(torch.optim.AdamW(other, lr=rate, betas=(0.9, 0.98), weight_decay=0.01))
    return optimizers


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by five Newton-Schulz iterations (Jordan et al., 2024), as torch.optim.Muon does.

    torch's own multiplies in bf16 one matrix at a time, which took five times as long as forward and backward pass
    on a processor that emulates bf16; here matrices of one shape go together, in float32 where bf16 is slow. An update
    is scaled by 0.2 sqrt(longer side), so that AdamW's rates fit (Liu et al., 2502.16982, eq. 4).
    """

    def __init__(self, weights: list[nn.Parameter], lr: float, weight_decay: float = 0.02, momentum: float = 0.95):
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes.setdefault(weight.shape, []).append(weight)
            for shape, weights in shapes.items():
                update = orthogonalise(torch.stack([self._nesterov(weight, group["momentum"]) for weight in weights]))
                size = group["lr"] * 0.2 * max(shape) ** 0.5
                for weight, change in zip(weights, update, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=-size)

    def _nesterov(self, weight: nn.Parameter, momentum: float) -> torch.Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(state["momentum_buffer"], momentum)


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """[n, rows, columns] to matrices of the same singular vectors whose singular values all lie near one."""
    x = matrices.bfloat16() if fast_bf16(matrices.device) else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return (x.mT if tall else x).to(matrices.dtype)


def computing(device: torch.device | str) -> torch.autocast:
    """bf16 products where the hardware has them; elsewhere they are emulated, six times slower than float32."""
    device = torch.device(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=fast_bf16(device))


def rate_at(progress: float, warm: float = 0.02, floor: float = 0.03, flat: float = 0.3) -> float:
    """Factor on the learning rate at `progress` (0..1): a short ramp, a flat part, a cosine to `floor`."""
    if progress < warm:
        return max(0.02, progress / warm)
    if progress < flat:
        return 1.0
    done = min(1.0, (progress - flat) / (1 - flat))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def step(optimizers: list[torch.optim.Optimizer], rate: float, clip: float = 1.0) -> float:
    """Clip the gradient, set the rate, update; returns the gradient's norm before clipping."""
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm
