"""Train weights of the model itself: whole parts, the top layers, the norms, or none."""

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
        """The trained weights by name."""
        packed = [name for name, weight in targets.weights().items() if not weight.is_floating_point()]
        if packed:
            raise ModelError(f"{packed[0]} is quantised and cannot be trained itself — use lora for this part")
        return targets.weights()

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Add nothing; convert the chosen weights to float32."""
        chosen = self.chosen(targets)
        for weight in chosen.values():
            if self.keeps_float32:
                weight.data = weight.data.float()
            weight.requires_grad_()
        return InjectedAdapter(targets.model, tuple(chosen))

    def num_trainable_parameters(self, targets: Targets) -> int:
        """Number of the chosen weights."""
        return sum(weight.numel() for weight in self.chosen(targets).values())


class Norms(Full):
    """Only scales and shifts of LayerNorm and RMSNorm (LN tuning, Zhao et al. 2023, 2312.11420)."""

    default_parts: ClassVar[tuple[str, ...]] = ("vision", "projector", "language")
    rate: ClassVar[float] = 1e-3

    def chosen(self, targets: Targets) -> dict[str, nn.Parameter]:
        """The weights of modules whose class name ends in Norm."""
        norms = {name for name, module in targets.model.named_modules() if type(module).__name__.endswith("Norm")}
        return {name: weight for name, weight in targets.weights().items() if name.rpartition(".")[0] in norms}


class Freeze(Full):
    """Train nothing."""

    def chosen(self, targets: Targets) -> dict[str, nn.Parameter]:
        """No weight."""
        return {}


class Lomo(Full):
    """Every weight by gradient descent inside the backward pass (Lv et al. 2023, 2306.09782): training/optim."""

    optimizer: ClassVar[str | None] = "lomo"
    rate: ClassVar[float] = 3e-2  # gradient descent without moments
    keeps_float32: ClassVar[bool] = False  # saving memory is its purpose; updates are computed in float32


class AdaLomo(Lomo):
    """LOMO with adaptive learning rates (Lv et al. 2023, 2310.10195)."""

    optimizer: ClassVar[str | None] = "adalomo"
    rate: ClassVar[float] = 5e-4  # relative to the size of each weight


class MezoSettings(TuningMethodSettings):
    """Training without gradients."""

    epsilon: float = Field(1e-3, gt=0, le=1, description="size of the two trial steps, in units of the weights")
    objective: Literal["loss", "metric"] = Field(
        "loss",
        description="what the two passes compare; metric: the first of `score`, on replies to training samples",
    )
    exact: bool | Literal["auto"] = Field(
        "auto", description="restore weights bit for bit, one layer at a time; auto: where they are not float32"
    )


class Mezo(Full):
    """Every weight by two forward passes a step (Malladi et al. 2023, 2305.17333): training/optim."""

    Settings: ClassVar[type[TuningMethodSettings]] = MezoSettings
    rate: ClassVar[float] = 1e-6  # of 2305.17333, for full tuning
    optimizer: ClassVar[str | None] = "mezo"
    keeps_float32: ClassVar[bool] = False

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """The settings of the optimizer."""
        return dict(self.settings.model_dump(include={"epsilon", "exact", "objective"}))


class GaloreSettings(TuningMethodSettings):
    """Moments of projected gradients."""

    rank: int = Field(128, ge=1, le=8192, description="directions kept of each weight's gradient")
    interval: int = Field(200, ge=1, description="optimizer steps between updates of the directions")
    scale: float = Field(0.25, gt=0, le=1000, description="factor on the step of every projected weight")


class Galore(Full):
    """Every weight, Adam's moments kept in the gradient's largest directions (Zhao et al. 2024, 2403.03507).

    Equations in training/optim. Weights narrower than the rank are trained by plain Adam.
    """

    Settings: ClassVar[type[TuningMethodSettings]] = GaloreSettings
    rate: ClassVar[float] = 1e-4  # multiplied by `scale`
    optimizer: ClassVar[str | None] = "galore"

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """The settings of the optimizer."""
        return dict(self.settings.model_dump(include={"rank", "interval", "scale"}))

    def num_trainable_parameters(self, targets: Targets) -> int:
        """Number of the chosen weights; refuses a rank that makes no gradient smaller."""
        wide = [weight for weight in self.chosen(targets).values() if weight.ndim > 1]
        widest = max((min(weight.flatten(1).shape) for weight in wide), default=0)
        if widest <= self.settings.rank:
            raise RecipeError(
                f"`method.rank` {self.settings.rank}: the widest trained weight has {widest} directions — choose a "
                "lower rank, or method full"
            )
        return super().num_trainable_parameters(targets)


class ApolloSettings(GaloreSettings):
    """Learning rates from random projections."""

    rank: int = Field(128, ge=1, le=8192, description="random directions; 1: one rate per tensor (APOLLO-Mini)")
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

    layers: int = Field(2, ge=1, description="layers trained at a time")
    interval: int = Field(20, ge=1, description="optimizer steps before other layers are drawn")


class Lisa(Full):
    """Embeddings, head and a few random layers at a time (Pan et al. 2024, 2403.17919); the others keep no state."""

    Settings: ClassVar[type[TuningMethodSettings]] = LisaSettings
    rate: ClassVar[float] = 5e-5  # of 2403.17919
    default_parts: ClassVar[tuple[str, ...]] = ("language", "head")

    def begin_step(self, attached: InjectedAdapter, step: int, seed: int) -> None:
        """Unfreeze the layers of this interval, drawn at its first step."""
        numbers = sorted({number for name in attached.trainable if (number := layer_number(name)) is not None})
        if step % self.settings.interval == 0:
            count = min(self.settings.layers, len(numbers))
            attached.state["awake"] = sorted(random.Random(seed).sample(numbers, count))
        awake = {None, *attached.state["awake"]}
        weights = dict(attached.model.named_parameters())
        for name in attached.trainable:
            weights[name].requires_grad_(layer_number(name) in awake)

    def end_step(self, attached: InjectedAdapter, step: int, steps: int) -> None:
        """Unfreeze all layers between steps, so that other code sees every trained weight."""
        weights = dict(attached.model.named_parameters())
        for name in attached.trainable:
            weights[name].requires_grad_()
