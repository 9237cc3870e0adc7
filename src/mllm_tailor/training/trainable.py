"""Which weights move at which rate, and which parts are in training mode."""

from __future__ import annotations

from torch import nn

from mllm_tailor.methods import applied_method
from mllm_tailor.models import LoadedModel


def trained_weights(model: LoadedModel) -> dict[str, nn.Parameter]:
    """Every weight that moves at some time, by name."""
    method = applied_method(model)
    assert method is not None, "a method is applied before training"
    moving = method.learning_rates(model, 1.0)
    return {name: weight for name, weight in model.model.named_parameters() if name in moving}


def learning_rates(model: LoadedModel, stated: float | None) -> dict[str, float]:
    """The peak learning rate of every trained weight; `stated` is the recipe's common one."""
    method = applied_method(model)
    assert method is not None, "a method is applied before training"
    return method.learning_rates(model, stated)


def set_train_mode(model: LoadedModel) -> None:
    """Training mode, except in frozen encoders: dropout or running statistics there would only add noise."""
    model.model.train()
    moving, modules = tuple(trained_weights(model)), dict(model.model.named_modules())
    for part in ("vision", "audio", "projector"):
        for prefix in model.family.parts.get(part, ()):
            if prefix in modules and not any(name.startswith(f"{prefix}.") for name in moving):
                modules[prefix].eval()
