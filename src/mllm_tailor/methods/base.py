"""Interface of tuning methods. Each trains some parts of a model; `method.MethodSet` combines several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peft import PeftConfig
from pydantic import Field
from torch import Tensor, nn

from mllm_tailor.methods.target_modules import Targets
from mllm_tailor.recipe import Settings, Train
from mllm_tailor.recipe.schema import PARTS


class TuningMethodSettings(Settings):
    """Settings that every method has."""

    learning_rate: float | None = Field(
        None, gt=0, le=10, description="peak learning rate of these parts; default: train.learning_rate"
    )
    last_layers: int | None = Field(None, ge=1, description="only this many layers at the top of each part")


class TuningMethod:
    """A way of training some parts of a model.

    `attach` prepares the model and returns the names of the trained weights; all others stay frozen. The other members
    have defaults that suit most methods.
    """

    Settings: ClassVar[type[TuningMethodSettings]] = TuningMethodSettings
    default_parts: ClassVar[tuple[str, ...]] = ("language",)
    rate: ClassVar[float] = 5e-4  # default peak learning rate, as its authors or users choose it
    preferred: Sequence[str] = ()  # default last names of the targeted linear layers; empty: all
    quantize: ClassVar[str | None] = None  # quantisation of the base model
    optimizer: ClassVar[str | None] = None  # when the method is itself an optimizer
    mergeable: ClassVar[bool] = True  # whether its update can be merged into the weights of the model
    only_parts: ClassVar[tuple[str, ...]] = PARTS  # the parts it can train

    def __init__(self, name: str, settings: Any) -> None:
        self.name = name
        self.settings = settings

    @property
    def leaves(self) -> tuple[str, ...]:
        """Last names of the targeted linear layers; empty: all."""
        return tuple(getattr(self.settings, "targets", None) or ())

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """Settings for `optimizer`."""
        return {}

    def check(self, train: Train) -> None:
        """Refuse training settings that are incompatible with the method, before any model is loaded.

        Raises:
            RecipeError: with the reason and an alternative.
        """

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Change the model where needed; return the adapter or the weights that the method trains."""
        raise NotImplementedError

    def create_empty(self, targets: Targets) -> None:
        """Create the parameters that `attach` adds without PEFT, to be filled from a file."""

    def num_trainable_parameters(self, targets: Targets) -> int:
        """Number of trained weights, computed by formula without changing the model."""
        raise NotImplementedError

    def rate_factor(self, name: str) -> float:
        """Factor on the learning rate of one weight."""
        return 1.0

    def begin_step(self, attached: InjectedAdapter, step: int, seed: int) -> None:
        """Called before the forward passes of optimizer step `step` (from 0)."""

    def end_step(self, attached: InjectedAdapter, step: int, steps: int) -> None:
        """Called after the update; `step` is the step of the schedule, which a time limit may advance faster."""

    def export(
        self, attached: InjectedAdapter, state: Mapping[str, Tensor]
    ) -> tuple[PeftConfig | None, dict[str, Tensor]]:
        """Contents of the adapter folder: PEFT configuration, and weights under PEFT's names."""
        return attached.config, dict(state)


class InjectedAdapter:
    """A method applied to a model: the names of the trained weights and, for adapters, PEFT's objects."""

    def __init__(
        self, model: nn.Module, trainable: tuple[str, ...], config: PeftConfig | None = None, tuner: Any = None
    ) -> None:
        self.model = model
        self.trainable = trainable  # names of the trained weights
        self.config = config
        self.tuner = tuner  # PEFT's BaseTuner around the same model
        self.state: dict[str, Any] = {}  # plain values the method keeps between steps
        self.start: dict[str, Tensor] = {}  # initial weights, where the method needs them when it saves
