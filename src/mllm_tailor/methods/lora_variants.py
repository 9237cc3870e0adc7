"""LoRA with another scale, initialisation or learning rates, or with a frozen half."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from peft import LoraConfig, PeftConfig
from pydantic import Field
from torch import Tensor

from mllm_tailor.methods.adapters import ADAPTER, adapter_state, tuner_layers
from mllm_tailor.methods.base import InjectedAdapter, TuningMethodSettings
from mllm_tailor.methods.lora import Lora, LoraSettings
from mllm_tailor.methods.target_modules import Targets


class RsloraSettings(LoraSettings):
    """LoRA scaled by alpha/sqrt(rank)."""

    rslora: Literal[True] = Field(True, description="fixed by the method")


class Rslora(Lora):
    """Scale by alpha/sqrt(rank): the update does not shrink as the rank grows (Kalajdzievski 2023, 2312.03732)."""

    Settings: ClassVar[type[TuningMethodSettings]] = RsloraSettings
    rate: ClassVar[float] = 1e-4  # its scale is sqrt(rank) times LoRA's


class DoraSettings(LoraSettings):
    """LoRA of the direction, with lengths learned separately."""

    dora: Literal[True] = Field(True, description="fixed by the method")


class Dora(Lora):
    """W' = m (W + sBA) / ||W + sBA||, the length m of every output learned separately (Liu et al. 2024, 2402.09353)."""

    Settings: ClassVar[type[TuningMethodSettings]] = DoraSettings


class PissaSettings(LoraSettings):
    """LoRA that starts from the largest singular vectors."""

    init: Literal["default"] = Field("default", description="fixed by the method")
    iterations: int | None = Field(
        16, ge=1, description="iterations of the fast decomposition; null: the exact decomposition"
    )


class Pissa(Lora):
    """A and B start as the principal part of W, which the frozen base then lacks (Meng et al. 2024, 2404.02948).

    Saved as a plain LoRA of twice the rank with the initial product subtracted, so that it works on the original base.
    """

    Settings: ClassVar[type[TuningMethodSettings]] = PissaSettings
    rate: ClassVar[float] = 1e-4  # the largest directions of W are trained at once

    def config(self, targets: Targets) -> LoraConfig:
        """LoRA with PiSSA's initialisation."""
        config = super().config(targets)
        iterations = self.settings.iterations
        config.init_lora_weights = f"pissa_niter_{iterations}" if iterations else "pissa"  # type: ignore[assignment]
        return config

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Inject, and keep the initial weights."""
        attached = super().attach(targets)
        attached.start = {name: tensor.detach().clone() for name, tensor in adapter_state(attached).items()}
        return attached

    def export(
        self, attached: InjectedAdapter, state: Mapping[str, Tensor]
    ) -> tuple[PeftConfig | None, dict[str, Tensor]]:
        """s(BA - B0 A0) = s [B, -B0] [A; A0]."""
        rank = self.settings.rank
        config = LoraConfig.from_peft_type(**attached.config.to_dict())  # type: ignore[union-attr]
        config.r, config.init_lora_weights = 2 * rank, True
        # The scale alpha/rank (or alpha/sqrt(rank)) must stay the same.
        config.lora_alpha = attached.config.lora_alpha * (2**0.5 if self.settings.rslora else 2)  # type: ignore[union-attr]
        joined = {}
        for name, tensor in state.items():
            start = attached.start[name]
            down = ".lora_A." in name
            joined[name] = torch.cat([tensor, start]) if down else torch.cat([tensor, -start], dim=1)
        return config, joined


class LoraPlusSettings(LoraSettings):
    """LoRA with two learning rates."""

    ratio: float = Field(16.0, ge=1, description="learning rate of B divided by that of A")


class LoraPlus(Lora):
    """B learns `ratio` times faster than A (Hayou et al. 2024, 2402.12354)."""

    Settings: ClassVar[type[TuningMethodSettings]] = LoraPlusSettings
    rate: ClassVar[float] = 1e-4  # of A

    def rate_factor(self, name: str) -> float:
        """`ratio` for B."""
        return float(self.settings.ratio) if ".lora_B." in name else 1.0


class LoraFaSettings(LoraSettings):
    """LoRA with a frozen A."""

    dora: Literal[False] = Field(False, description="incompatible with this method")
    projected: bool = Field(
        False, description="replace B's gradient by that of the best full update: g (A A^T)^-1 / s^2, as in PEFT"
    )


class LoraFa(Lora):
    """A stays random and only B is trained, so no layer keeps its wide input for the backward pass (2308.03303).

    Dropout would require such an input again; leave it at 0.
    """

    Settings: ClassVar[type[TuningMethodSettings]] = LoraFaSettings
    rate: ClassVar[float] = 1e-3  # half of the matrices are trained

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Inject, then freeze every A."""
        attached = super().attach(targets)
        attached.trainable = tuple(name for name in attached.trainable if ".lora_A." not in name)
        if self.settings.projected:
            for layer in tuner_layers(targets.model).values():
                if ADAPTER in getattr(layer, "lora_A", {}):
                    _project(layer)
        return attached

    def num_trainable_parameters(self, targets: Targets) -> int:
        """rank * out per layer."""
        super().num_trainable_parameters(targets)
        return sum(self.settings.rank * layer.out_features for layer in targets.linears.values())


def _project(layer: Any) -> None:
    """Hook the gradient of B. The map is linear, so it can be applied to each micro-batch before they are summed."""
    down, up, scale = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.scaling[ADAPTER]

    def hook(gradient: Tensor) -> Tensor:
        projected: Tensor = gradient @ torch.linalg.pinv(down.detach() @ down.detach().T) / scale**2
        return projected

    up.register_hook(hook)
