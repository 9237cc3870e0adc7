"""Optimizers by name. Each entry builds a `Stepper`: whatever turns one step's losses into new weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from mllm_tailor.core.registry import Entry, Registry

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adamw": Entry("mllm_tailor.training.gradient:adamw", "Adam with decoupled decay; 8 bytes of state a weight"),
        "adamw_8bit": Entry("mllm_tailor.training.gradient:adamw_8bit", "AdamW with 8-bit state (bitsandbytes)"),
        "paged_adamw_32bit": Entry(
            "mllm_tailor.training.gradient:paged_adamw_32bit", "AdamW whose state moves to main memory under pressure"
        ),
        "paged_adamw_8bit": Entry("mllm_tailor.training.gradient:paged_adamw_8bit", "both of these"),
        "sgd": Entry("mllm_tailor.training.gradient:sgd", "plain gradient descent; no state"),
    },
)


@dataclass(frozen=True)
class Group:
    """Weights that share a peak learning rate and a decay."""

    weights: Mapping[str, nn.Parameter]
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Taken:
    """What a step did."""

    loss: float  # mean over the step's supervised tokens, of all processes
    gradient_norm: float | None  # before clipping


# Runs the forward passes of a step; hands each pass's share of the mean loss to the argument and returns their sum.
# It can be run several times in a step and then gives the same numbers for the same weights, dropout included.
Passes = Callable[[Callable[[Tensor], None]], float]


class Stepper(Protocol):
    """Turns the passes of one step into an update."""

    accumulates: bool  # whether a step may have several passes

    def take(self, passes: Passes, factor: float, seed: int) -> Taken:
        """One update; `factor` is the share of each group's peak rate, `seed` the step's own."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on: tensors by name, and plain values."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        ...


def make_stepper(name: str, groups: Sequence[Group], clip: float | None) -> Stepper:
    """The optimizer called `name`."""
    stepper: Stepper = OPTIMIZERS.load(name)(groups, clip)
    return stepper


def make_groups(weights: Mapping[str, nn.Parameter], rates: Mapping[str, float], weight_decay: float) -> list[Group]:
    """Weights grouped by peak rate and decay; scales and shifts (one-dimensional) never decay."""
    grouped: dict[tuple[float, float], dict[str, nn.Parameter]] = {}
    for name, weight in weights.items():
        decay = weight_decay if weight.ndim > 1 else 0.0
        grouped.setdefault((rates[name], decay), {})[name] = weight
    return [Group(found, rate, decay) for (rate, decay), found in grouped.items()]
