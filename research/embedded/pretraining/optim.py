"""Muon for hidden matrices, AdamW for the rest; the rate follows the clock, so a stage fits its minutes."""

from __future__ import annotations

import math

import torch
from mllm_tailor.core.device import fast_bf16
from mllm_tailor.training.optim.muon import Muon
from torch import nn


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
        optimizers.append(Muon([{"params": hidden, "lr": rate, "weight_decay": 0.02}], hidden))
    if other:
        optimizers.append(torch.optim.AdamW(other, lr=rate, betas=(0.9, 0.98), weight_decay=0.01))
    return optimizers


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


def trained(optimizers: list[torch.optim.Optimizer]) -> list[nn.Parameter]:
    """Everything the optimizers move, in their order."""
    return [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]


def step(optimizers: list[torch.optim.Optimizer], rate: float, clip: float = 1.0) -> float:
    """Clip the gradient, set the rate, update; returns the gradient's norm before clipping."""
    norm = float(torch.nn.utils.clip_grad_norm_(trained(optimizers), clip))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm
