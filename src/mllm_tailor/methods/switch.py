"""Switch adapters off for a while: the model as it was before training, without a second copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def is_switchable(model: nn.Module) -> bool:
    """Whether all trained weights lie in adapter layers, so that switching these off restores the start."""
    tuned = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    inside = {id(weight) for module in tuned for weight in module.parameters()}
    return all(id(weight) in inside for weight in model.parameters() if weight.requires_grad)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within, the model computes what it did before any adapter was trained."""
    tuned = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    layers = [layer for layer in tuned if not layer.disable_adapters]
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)
        for weight in frozen:  # PEFT makes all adapters of a layer trainable again
            weight.requires_grad = False
