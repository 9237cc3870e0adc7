"""PEFT methods that scale, share or rotate instead of adding a low-rank update: (IA)3, VeRA, OFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from peft import IA3Config, OFTConfig, VeraConfig
from pydantic import Field

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.methods.adapters import inject
from mllm_tailor.methods.base import InjectedAdapter, TuningMethod, TuningMethodSettings
from mllm_tailor.methods.target_modules import Targets

FEEDFORWARD = ("down_proj", "fc2", "linear_2")  # the input of these layers is scaled; of others the output


class Ia3Settings(TuningMethodSettings):
    """Learned vectors."""

    targets: list[str] | None = Field(
        None, description="last names of linear layers; default: keys, values and the second layer of each MLP"
    )


class Ia3(TuningMethod):
    """Keys, values and the inner MLP activations are multiplied by learned vectors (Liu et al. 2022, 2205.05638)."""

    Settings: ClassVar[type[TuningMethodSettings]] = Ia3Settings
    rate: ClassVar[float] = 3e-3  # T-Few's (2205.05638)
    preferred: Sequence[str] = ("k_proj", "v_proj", *FEEDFORWARD)

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Inject vectors of ones."""
        feedforward = [name for name in targets.linears if name.rpartition(".")[2] in FEEDFORWARD]
        return inject(targets.model, IA3Config(target_modules=targets.pattern, feedforward_modules=feedforward))

    def num_trainable_parameters(self, targets: Targets) -> int:
        """A weight per output or, for the second layer of an MLP, per input."""
        return sum(
            layer.in_features if name.rpartition(".")[2] in FEEDFORWARD else layer.out_features
            for name, layer in targets.linears.items()
        )


class VeraSettings(TuningMethodSettings):
    """Vectors between shared random matrices."""

    rank: int = Field(256, ge=1, le=8192, description="rank of the shared random matrices")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the inputs dropped before the update")
    targets: list[str] | None = Field(None, description="last names of linear layers; default: all")
    projection_seed: int = Field(0, ge=0, description="seed of the random matrices")


class Vera(TuningMethod):
    """y = W x + b * B (d * A x) with A, B random, frozen, shared by all layers (Kopiczko et al. 2023, 2310.11454)."""

    Settings: ClassVar[type[TuningMethodSettings]] = VeraSettings
    rate: ClassVar[float] = 5e-3

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Inject; the shared matrices are drawn from their seed and not written to disk."""
        settings = self.settings
        config = VeraConfig(
            r=settings.rank,
            target_modules=targets.pattern,
            vera_dropout=settings.dropout,
            projection_prng_key=settings.projection_seed,
            save_projection=False,
        )
        return inject(targets.model, config)

    def num_trainable_parameters(self, targets: Targets) -> int:
        """rank + out per layer."""
        return sum(self.settings.rank + layer.out_features for layer in targets.linears.values())


class OftSettings(TuningMethodSettings):
    """Rotations."""

    block: int = Field(32, ge=2, le=4096, description="channels rotated together; divides every layer's input width")
    targets: list[str] | None = Field(None, description="last names of linear layers; default: all")


class Oft(TuningMethod):
    """A learned rotation of each block of inputs, which preserves angles between neurons (2306.07280)."""

    Settings: ClassVar[type[TuningMethodSettings]] = OftSettings
    rate: ClassVar[float] = 1e-3

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Inject identity rotations."""
        self._check(targets)
        # The exact Cayley map, not PEFT's default series: only the exact map is orthogonal to the last bit.
        config = OFTConfig(
            r=0, oft_block_size=self.settings.block, target_modules=targets.pattern, use_cayley_neumann=False
        )
        return inject(targets.model, config)

    def num_trainable_parameters(self, targets: Targets) -> int:
        """block (block - 1) / 2 for each block of inputs."""
        self._check(targets)
        block = self.settings.block
        return sum(layer.in_features // block * (block * (block - 1) // 2) for layer in targets.linears.values())

    def _check(self, targets: Targets) -> None:
        for name, layer in targets.linears.items():
            if layer.in_features % self.settings.block:
                raise RecipeError(
                    f"`method.block` {self.settings.block} does not divide the {layer.in_features} inputs of {name} — "
                    "choose a divisor, such as 16"
                )
