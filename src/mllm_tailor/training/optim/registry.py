"""Optimizers by name. Each entry builds an `OptimizerStep`, which turns the losses of a step into new weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.registry import Entry, Registry
from mllm_tailor.recipe import Train


@dataclass(frozen=True)
class OptimizerEntry(Entry):
    """A registered optimizer and its costs."""

    state_bytes: int = 0  # per trained weight
    # How many gradients are in memory at a time; `one`: each is applied and freed before the next is complete.
    gradients: Literal["all", "one", "none"] = "all"
    shardable: bool = False  # whether its update is computed weight by weight, as slices of weights can be
    norm_first: bool = False  # clipping needs an extra backward pass for the gradient norm

    def evaluations(self, max_grad_norm: float | None) -> int:
        """How often a step computes its micro-batches; without gradients, once in either direction."""
        return 2 if self.gradients == "none" or (self.norm_first and max_grad_norm is not None) else 1


HERE = "mllm_tailor.training.optim"
TABLE = {
    "adamw": OptimizerEntry(
        f"{HERE}.torch_bnb:adamw", "Adam with decoupled decay; 8 bytes of state per weight", 8, shardable=True
    ),
    "adamw_8bit": OptimizerEntry(f"{HERE}.torch_bnb:adamw_8bit", "AdamW with 8-bit state (bitsandbytes)", 2),
    "paged_adamw_32bit": OptimizerEntry(
        f"{HERE}.torch_bnb:paged_adamw_32bit", "AdamW whose state moves to main memory under pressure", 8
    ),
    "paged_adamw_8bit": OptimizerEntry(
        f"{HERE}.torch_bnb:paged_adamw_8bit", "AdamW with 8-bit state in pageable memory", 2
    ),
    "lomo": OptimizerEntry(
        f"{HERE}.lomo:lomo",
        "gradient descent inside the backward pass; no state",
        gradients="one",
        norm_first=True,
    ),
    "adalomo": OptimizerEntry(
        f"{HERE}.lomo:adalomo", "LOMO with factored second moments, as in Adafactor", gradients="one"
    ),
    "galore": OptimizerEntry(f"{HERE}.galore_apollo:galore", "Adam in the largest singular directions; less state", 2),
    "apollo": OptimizerEntry(f"{HERE}.galore_apollo:apollo", "rates of Adam from random projections; least state", 1),
    "muon": OptimizerEntry(f"{HERE}.muon:muon", "orthogonalised momentum, for training from scratch", 5),
    "mezo": OptimizerEntry(
        f"{HERE}.mezo:mezo", "two forward passes, no backward: the memory of inference", gradients="none"
    ),
    "sgd": OptimizerEntry(f"{HERE}.torch_bnb:sgd", "plain gradient descent; no state", shardable=True),
}
OPTIMIZERS = Registry("optimizer", TABLE)
# Optimizers whose step is a single micro-batch, since no gradient is kept that another could be added to.
ONE_PASS = tuple(name for name, entry in TABLE.items() if entry.gradients == "one")


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
