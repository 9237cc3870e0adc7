"""Mixed precision: bf16 by autocast where the hardware supports it, unless the recipe asks for float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mllm_tailor.models import LoadedModel
from mllm_tailor.training.sharding import is_sharded
from mllm_tailor.training.trainable import trained_weights


def autocast(device: torch.device, *, bf16: bool) -> torch.autocast:
    """Context in which products are computed in bf16, if wanted; weights keep their format."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


@contextmanager
def frozen_in_bf16(model: LoadedModel, *, bf16: bool) -> Iterator[None]:
    """Within, frozen linear layers of the language model are stored in bf16, which saves casting them in every pass.

    Autocast would cast them to the same values. Weights that bf16 cannot represent exactly (a merged adapter's, say)
    stay as they are, so nothing is lost; all are restored at the end. Vision and audio towers are left alone: some
    families read the input format off a linear layer there, and cached features are keyed by a tower's bytes. A model
    that is sharded meanwhile keeps bf16.
    """
    network = model.model
    names = [name for name, weight in _linear_weights(model).items() if _is_exact_in_bf16(weight)] if bf16 else []
    for name in names:
        weight = network.get_parameter(name)
        weight.data = weight.data.bfloat16()
    try:
        yield
    finally:
        for name in names if not is_sharded(network) else ():
            weight = network.get_parameter(name)
            weight.data = weight.data.float()


def _linear_weights(model: LoadedModel) -> dict[str, nn.Parameter]:
    """Weights and biases of plain linear layers that are neither trained nor shared with an embedding."""
    prefixes = tuple(f"{name}." for part in ("language", "head") for name in model.family.parts.get(part, ()))
    modules = dict(model.model.named_modules())
    excluded = {id(module.weight) for module in modules.values() if isinstance(module, nn.Embedding)}
    excluded |= set(map(id, trained_weights(model).values()))
    weights = {
        f"{name}.{own}": weight
        for name, module in modules.items()
        if type(module) is nn.Linear and f"{name}.".startswith(prefixes)
        for own, weight in module.named_parameters(recurse=False)
    }
    return {name: weight for name, weight in weights.items() if id(weight) not in excluded and not weight.requires_grad}


def _is_exact_in_bf16(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and torch.equal(weight.bfloat16().float(), weight)
