"""The trained weights, their learning rates, and the modules in training mode."""

from __future__ import annotations

from torch import nn

from mllm_tailor.core.errors import RunError
from mllm_tailor.methods import MethodSet
from mllm_tailor.models import LoadedModel


def tuning_method_of(model: LoadedModel) -> MethodSet:
    """The method that was applied to a model.

    Raises:
        RunError: when none was.
    """
    if model.applied is None:
        raise RunError("no method was applied to this model — call `make_method(recipe).apply(model)` before training")
    method: MethodSet = model.applied.method
    return method


def trained_weights(model: LoadedModel) -> dict[str, nn.Parameter]:
    """Every weight that is trained in some step, by name."""
    names = tuning_method_of(model).learning_rates(model, 1.0)
    return {name: weight for name, weight in model.model.named_parameters() if name in names}


def learning_rates(model: LoadedModel, stated: float | None) -> dict[str, float]:
    """The peak learning rate of every trained weight; `stated` is the recipe's `train.learning_rate`."""
    return tuning_method_of(model).learning_rates(model, stated)


def set_train_mode(model: LoadedModel) -> None:
    """Set training mode, except in frozen encoders, where dropout and running statistics would only add noise."""
    model.model.train()
    trained, modules = tuple(trained_weights(model)), dict(model.model.named_modules())
    for part in ("vision", "audio", "projector"):
        for prefix in model.family.parts.get(part, ()):
            if prefix in modules and not any(name.startswith(f"{prefix}.") for name in trained):
                modules[prefix].eval()
