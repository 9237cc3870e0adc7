"""The number format of the arithmetic: bf16 by autocast where the hardware has it, unless float32 was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mllm_tailor.models import LoadedModel
from mllm_tailor.training.trainable import trained_weights


def computing(device: torch.device, bf16: bool) -> torch.autocast:
    """Context in which the model computes; weights keep their own format."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


@contextmanager
def frozen_in_bf16(model: LoadedModel, bf16: bool) -> Iterator[None]:
    """Within, linear layers of the language model that never move are held in bf16, which saves casting them each time.

    Autocast makes the same of them in every pass. Weights that bf16 cannot hold exactly (a merged adapter's, say) stay
    as they are, so nothing is lost, and all is given back at the end. Towers are left alone: some families ask a linear
    layer there which format pictures come in, and the memory of features knows a tower by its bytes.
    """
    held = [weight for weight in _linear_weights(model) if _exact(weight)] if bf16 else []
    for weight in held:
        weight.data = weight.data.bfloat16()
    try:
        yield
    finally:
        for weight in held:
            weight.data = weight.data.float()


def _linear_weights(model: LoadedModel) -> list[nn.Parameter]:
    """Weights and biases of plain linear layers, but for those that move at some time or are an embedding's too."""
    prefixes = tuple(f"{one}." for part in ("language", "head") for one in model.family.parts.get(part, ()))
    modules = dict(model.model.named_modules())
    left = {id(one.weight) for one in modules.values() if isinstance(one, nn.Embedding)}
    left |= set(map(id, trained_weights(model).values()))
    found = {
        id(weight): weight
        for name, module in modules.items()
        if type(module) is nn.Linear and f"{name}.".startswith(prefixes)
        for weight in module.parameters(recurse=False)
    }
    return [weight for own, weight in found.items() if own not in left and not weight.requires_grad]


def _exact(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and torch.equal(weight.bfloat16().float(), weight)
