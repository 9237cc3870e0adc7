"""Train the model's own weights: whole parts, the top layers, the norms, or nothing."""

from __future__ import annotations

import random
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from mllm_tailor.core.errors import ModelError, RecipeError
from mllm_tailor.methods.base import InjectedAdapter, TuningMethod, TuningMethodSettings
from mllm_tailor.methods.target_modules import Targets, layer_number


class Full(TuningMethod):
    """Every weight of the chosen parts (and layers). Trained weights are float32; 16 bytes each with AdamW."""

    default_parts: ClassVar[tuple[str, ...]] = ("vision", "projector", "language", "head")
    rate: ClassVar[float] = 2e-5
    keeps_float32: ClassVar[bool] = True  # an Adam step on bf16 weights would mostly round away

    def chosen(self, targets: Targets) -> dict[str, nn.Parameter]:
        """Name and tensor of what will move."""
        packed = [name for name, weight in targets.weights().items() if not weight.is_floating_point()]
        if packed:
            raise ModelError(f"{packed[0]} is packed into few bits and cannot be trained itself — use lora there")
        return targets.weights()

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Nothing is added; the chosen weights become float32."""
        chosen = self.chosen(targets)
        for weight in chosen.values():
            if self.keeps_float32:
                weight.data = weight.data.float()
            weight.requires_grad_(True)
        return InjectedAdapter(targets.model, tuple(chosen))

    def num_trainable_parameters(self, targets: Targets) -> int:
        """Their count."""
        return sum(weight.numel() for weight in self.chosen(targets).values())


class Norms(Full):
    """Only scales and shifts of LayerNorm and RMSNorm (LN tuning, Zhao et al. 2023, 2312.11420)."""

    default_parts: ClassVar[tuple[str, ...]] = ("vision", "projector", "language")
    rate: ClassVar[float] = 1e-3

    def chosen(self, targets: Targets) -> dict[str, nn.Parameter]:
        """Weights of modules whose class is some norm."""
        norms = {name for name, module in targets.model.named_modules() if type(module).__name__.endswith("Norm")}
        return {name: weight for name, weight in targets.weights().items() if name.rpartition(".")[0] in norms}


class Freeze(Full):
    """Nothing moves."""

    def chosen(self, targets: Targets) -> dict[str, nn.Parameter]:
        """No weight."""
        return {}


class Lomo(Full):
    """Every weight by gradient descent inside the backward pass (Lv et al. 2023, 2306.09782): training/lomo.py."""

    optimizer: ClassVar[str | None] = "lomo"
    rate: ClassVar[float] = 3e-2  # gradient descent without moments
    keeps_float32: ClassVar[bool] = False  # saving memory is its purpose; updates are computed in float32


class AdaLomo(Lomo):
    """The same with adaptive rates (Lv et al. 2023, 2310.10195)."""

    optimizer: ClassVar[str | None] = "adalomo"
    rate: ClassVar[float] = 5e-4  # relative to the size of each weight


class MezoSettings(TuningMethodSettings):
    """Training without gradients."""

    epsilon: float = Field(1e-3, gt=0, le=1, description="size of the two trial steps, in units of the weights")
    objective: Literal["loss", "metric"] = Field(
        "loss", description="what the two passes compare; metric: the first of `score`, on replies to training samples"
    )
    exact: bool | Literal["auto"] = Field(
        "auto", description="put weights back bit for bit, one layer at a time; auto: where they are not float32"
    )


class Mezo(Full):
    """Every weight by two forward passes a step (Malladi et al. 2023, 2305.17333): see training/mezo.py."""

    Settings: ClassVar[type[TuningMethodSettings]] = MezoSettings
    rate: ClassVar[float] = 1e-6  # of 2305.17333, for full tuning
    optimizer: ClassVar[str | None] = "mezo"
    keeps_float32: ClassVar[bool] = False

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """Its own settings."""
        return self.settings.model_dump(include={"epsilon", "exact", "objective"})


class GaloreSettings(TuningMethodSettings):
    """Moments in few directions."""

    rank: int = Field(128, ge=1, le=8192, description="directions kept of each weight's gradient")
    interval: int = Field(200, ge=1, description="optimizer steps until the directions are found anew")
    scale: float = Field(0.25, gt=0, le=1000, description="factor on the step of every projected weight")


class Galore(Full):
    """Every weight, Adam's moments held in the gradient's largest directions (Zhao et al. 2024, 2403.03507).

    Equations in training/projected.py. Weights narrower than the rank are trained by plain Adam.
    """

    Settings: ClassVar[type[TuningMethodSettings]] = GaloreSettings
    rate: ClassVar[float] = 1e-4  # a quarter of it is stepped (`scale`)
    optimizer: ClassVar[str | None] = "galore"

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """Its own settings."""
        return self.settings.model_dump(include={"rank", "interval", "scale"})

    def num_trainable_parameters(self, targets: Targets) -> int:
        """Their count, if the rank makes any of them smaller."""
        wide = [weight for weight in self.chosen(targets).values() if weight.ndim > 1]
        widest = max((min(weight.flatten(1).shape) for weight in wide), default=0)
        if widest <= self.settings.rank:
            raise RecipeError(
                f"`method.rank` {self.settings.rank}: the widest trained weight has {widest} directions — choose a "
                "lower rank, or method full"
            )
        return super().num_trainable_parameters(targets)


class ApolloSettings(GaloreSettings):
    """Rates from random projections."""

    rank: int = Field(128, ge=1, le=8192, description="random directions; 1: one rate a tensor (APOLLO-Mini)")
    scale: float = Field(
        1.0, gt=0, le=1000, description="factor on the step of every projected weight; 11.3 with rank 1"
    )


class Apollo(Galore):
    """Every weight; each channel's rate is Adam's, estimated in random directions (Zhu et al. 2024, 2412.05270)."""

    Settings: ClassVar[type[TuningMethodSettings]] = ApolloSettings
    rate: ClassVar[float] = 2e-5
    optimizer: ClassVar[str | None] = "apollo"


class LisaSettings(TuningMethodSettings):
    """A few layers at a time."""

    layers: int = Field(2, ge=1, description="layers awake at a time")
    interval: int = Field(20, ge=1, description="optimizer steps until others are drawn")


class Lisa(Full):
    """Embeddings, head and a few random layers at a time (Pan et al. 2024, 2403.17919); those asleep keep no state."""

    Settings: ClassVar[type[TuningMethodSettings]] = LisaSettings
    rate: ClassVar[float] = 5e-5  # of 2403.17919
    default_parts: ClassVar[tuple[str, ...]] = ("language", "head")

    def begin_step(self, attached: InjectedAdapter, step: int, seed: int) -> None:
        """Wake the layers of this interval, drawn anew at its start."""
        numbers = sorted({layer_number(name) for name in attached.trainable} - {None})
        if step % self.settings.interval == 0:
            count = min(self.settings.layers, len(numbers))
            attached.state["awake"] = sorted(random.Random(seed).sample(numbers, count))
        awake = {None, *attached.state["awake"]}
        weights = dict(attached.model.named_parameters())
        for name in attached.trainable:
            weights[name].requires_grad_(layer_number(name) in awake)

    def end_step(self, attached: InjectedAdapter, step: int, steps: int) -> None:
        """All awake between steps, so that nothing else needs to know."""
        weights = dict(attached.model.named_parameters())
        for name in attached.trainable:
            weights[name].requires_grad_(True)
