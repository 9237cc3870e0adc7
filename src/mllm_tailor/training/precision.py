"""The number format of the arithmetic: bf16 by autocast where the hardware has it, unless float32 was asked for."""

from __future__ import annotations

import torch


def computing(device: torch.device, bf16: bool) -> torch.autocast:
    """Context in which the model computes; weights keep their own format."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
