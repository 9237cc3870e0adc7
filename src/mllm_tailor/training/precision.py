"""The number format of the arithmetic: bf16 by autocast where the hardware has it, unless float32 was asked for."""

from __future__ import annotations

import torch

from mllm_tailor.core.device import fast_bf16
from mllm_tailor.recipe import Recipe


def computes_in_bf16(recipe: Recipe, device: torch.device) -> bool:
    """`model.dtype: float32` keeps every product in float32; otherwise bf16 is used where it is fast."""
    return recipe.model.dtype != "float32" and fast_bf16(device)


def computing(device: torch.device, bf16: bool) -> torch.autocast:
    """Context in which the model computes; weights keep their own format."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
