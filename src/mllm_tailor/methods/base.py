"""What a method provides. Each handles some parts of a model; `tuning.MethodSet` puts several of them together."""

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
    """Settings every method has."""

    learning_rate: float | None = Field(None, gt=0, le=10, description="peak rate here; default: train.learning_rate")
    last_layers: int | None = Field(None, ge=1, description="only this many layers at the top of each part")


class TuningMethod:
    """A way of changing the weights of some parts.

    `attach` prepares the model and names what is to move; everything it does not name stays frozen. The other members
    have defaults that fit most methods.
    """

    Settings: ClassVar[type[TuningMethodSettings]] = TuningMethodSettings
    default_parts: ClassVar[tuple[str, ...]] = ("language",)
    rate: ClassVar[float] = 5e-4  # peak learning rate where the recipe names none: what its authors or users take
    preferred: Sequence[str] = ()  # last names of linear layers aimed at where the recipe names none; empty: all
    quantize: ClassVar[str | None] = None  # number format of the base under it
    optimizer: ClassVar[str | None] = None  # when the method is an optimizer of its own
    mergeable: ClassVar[bool] = True  # whether what it learns can be folded into the model's own weights
    only_parts: ClassVar[tuple[str, ...]] = PARTS  # where it can work

    def __init__(self, name: str, settings: Any) -> None:
        self.name = name
        self.settings = settings

    @property
    def leaves(self) -> tuple[str, ...]:
        """Last names of the linear layers aimed at; empty: all."""
        return tuple(getattr(self.settings, "targets", None) or ())

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """Settings for `optimizer`."""
        return {}

    def check(self, train: Train) -> None:
        """Refuse settings of the training that do not go with the method, before any model is opened.

        Raises:
            RecipeError: with the reason and an alternative.
        """

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Change the model where needed; return what belongs to the method."""
        raise NotImplementedError

    def create_empty(self, targets: Targets) -> None:
        """Make the places of weights that `attach` adds without PEFT, so that a file can fill them."""

    def num_trainable_parameters(self, targets: Targets) -> int:
        """How many weights will be trained, by formula, without touching the model."""
        raise NotImplementedError

    def rate_factor(self, name: str) -> float:
        """Factor on the learning rate of one weight."""
        return 1.0

    def begin_step(self, attached: InjectedAdapter, step: int, seed: int) -> None:
        """Called before the forward passes of optimizer step `step` (from 0)."""

    def end_step(self, attached: InjectedAdapter, step: int, steps: int) -> None:
        """Called after the update; `step` is the place on the schedule, which minutes may move on faster than steps."""

    def export(
        self, attached: InjectedAdapter, state: Mapping[str, Tensor]
    ) -> tuple[PeftConfig | None, dict[str, Tensor]]:
        """What is written to the adapter folder: PEFT configuration and weights under PEFT's names."""
        return attached.config, dict(state)


class InjectedAdapter:
    """One method at work in one model: its own weights by name and, for adapters, PEFT's configuration."""

    def __init__(
        self, model: nn.Module, trainable: tuple[str, ...], config: PeftConfig | None = None, tuner: Any = None
    ) -> None:
        self.model = model
        self.trainable = trainable  # names of the weights that move
        self.config = config
        self.tuner = tuner  # peft's BaseTuner round the same model
        self.state: dict[str, Any] = {}  # plain values the method keeps between steps
        self.start: dict[str, Tensor] = {}  # weights as they began, where the method needs them in the end
