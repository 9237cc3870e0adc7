"""Optimizers: an entry of their table builds an `OptimizerStep`, which turns the losses of a step into new weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.recipe import Train
from mllm_tailor.recipe.optimizer_table import ONE_PASS, OPTIMIZERS


@dataclass(frozen=True)
class ParamGroup:
    """Weights that share a peak learning rate and a decay."""

    weights: Mapping[str, nn.Parameter]
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step."""

    loss: float  # mean over the step's labelled tokens, of all processes
    gradient_norm: float | None  # before clipping


# Runs the micro-batches of a step, calls the argument with each one's share of the mean loss, and returns their sum.
# It can be called several times in a step and gives the same numbers for the same weights, dropout included.
RunMicroBatches = Callable[[Callable[[Tensor], None]], float]


class OptimizerStep(Protocol):
    """Turns the micro-batches of a step into an update."""

    accumulates: bool  # whether a step may have several micro-batches

    def step(self, micro_batches: RunMicroBatches, factor: float, seed: int) -> StepResult:
        """One update; `factor` is the share of each group's peak learning rate, `seed` belongs to the step."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to resume: tensors by name, and plain values."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        ...


@dataclass(frozen=True)
class OptimizerConfig:
    """Weights and settings of an optimizer."""

    groups: Sequence[ParamGroup]
    max_grad_norm: float | None
    network: nn.Module
    options: Mapping[str, Any] = field(default_factory=dict)  # settings of a method that brings its optimizer

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """Every weight, by name."""
        return {name: weight for group in self.groups for name, weight in group.weights.items()}


def make_optimizer_step(name: str, config: OptimizerConfig) -> OptimizerStep:
    """The optimizer called `name`."""
    optimizer: OptimizerStep = OPTIMIZERS.load(name)(config)
    return optimizer


def check_settings(train: Train, method_optimizer: str | None) -> None:
    """Refuse settings an optimizer cannot follow, before any model is loaded.

    Raises:
        RecipeError: with the reason and the fix.
    """
    name = method_optimizer or train.optimizer
    OPTIMIZERS.load(name)
    if method_optimizer and train.optimizer not in (method_optimizer, "adamw"):
        raise RecipeError(f"`train.optimizer` {train.optimizer}: the method brings its own optimizer — leave it out")
    if name in ONE_PASS and train.micro_batch_size is not None and train.micro_batch_size < train.batch_size:
        raise RecipeError(
            f"`train.micro_batch_size` {train.micro_batch_size}: {name} frees each gradient at once, so "
            "micro-batches cannot be accumulated — leave it out, or lower train.batch_size"
        )
    if name in ("adalomo", "mezo") and train.max_grad_norm not in (None, 1.0):
        raise RecipeError(
            f"`train.max_grad_norm` {train.max_grad_norm}: {name} has no gradient norm to clip — leave it out"
        )


def make_param_groups(
    weights: Mapping[str, nn.Parameter], rates: Mapping[str, float], weight_decay: float
) -> list[ParamGroup]:
    """Weights grouped by peak learning rate and decay; one-dimensional weights (scales, biases) never decay."""
    grouped: dict[tuple[float, float], dict[str, nn.Parameter]] = {}
    for name, weight in weights.items():
        decay = weight_decay if weight.ndim > 1 else 0.0
        grouped.setdefault((rates[name], decay), {})[name] = weight
    return [ParamGroup(members, rate, decay) for (rate, decay), members in grouped.items()]
