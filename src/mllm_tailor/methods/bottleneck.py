"""Bottleneck adapters in series and in parallel (LLM-Adapters, Hu et al. 2023, 2304.01933)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mllm_tailor.methods.adapters import inject
from mllm_tailor.methods.base import InjectedAdapter, TuningMethod, TuningMethodSettings
from mllm_tailor.methods.bottleneck_layers import BottleneckConfig
from mllm_tailor.methods.target_modules import Targets

# Placements of the authors and of earlier papers: last names of the layers before or after which an adapter is put.
UP, DOWN = ("gate_proj", "up_proj", "fc1", "linear_1"), ("down_proj", "fc2", "linear_2")
PLACEMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "series": (UP, UP, ()),  # (targets, before, after)
    "parallel": ((*UP, *DOWN), (), ()),
    "houlsby": ((*UP, *DOWN), UP, DOWN),
    "pfeiffer": (DOWN, (), DOWN),
}


class BottleneckSettings(TuningMethodSettings):
    """Bottleneck adapters."""

    placement: Literal["series", "parallel", "houlsby", "pfeiffer"] = Field(
        "parallel", description="before, parallel to, around, or after the MLP"
    )
    width: int = Field(256, ge=1, le=8192, description="channels inside the adapter")
    activation: Literal["tanh", "relu", "gelu", "silu"] = Field(
        "tanh", description="activation between the two matrices"
    )
    scale: float = Field(1.0, gt=0, description="factor on the output of the adapter")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the inputs dropped")
    targets: list[str] | None = Field(None, description="last names of linear layers; default: those of the placement")


class Bottleneck(TuningMethod):
    """width * (in + out) weights at every targeted layer. Cannot be merged, so the model becomes a little slower."""

    Settings: ClassVar[type[TuningMethodSettings]] = BottleneckSettings
    mergeable: ClassVar[bool] = False

    @property
    def preferred(self) -> tuple[str, ...]:  # type: ignore[override]
        """The layers of the placement."""
        return PLACEMENTS[self.settings.placement][0]

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Inject the adapter."""
        settings = self.settings
        _, front, behind = PLACEMENTS[settings.placement]
        config = BottleneckConfig(
            target_modules=targets.pattern,
            front=",".join(front) or None,
            behind=",".join(behind) or None,
            width=settings.width,
            activation=settings.activation,
            scale=settings.scale,
            dropout=settings.dropout,
        )
        return inject(targets.model, config)

    def num_trainable_parameters(self, targets: Targets) -> int:
        """Two matrices; both have the output width after a layer, and the input width before it."""
        _, front, behind = PLACEMENTS[self.settings.placement]
        total = 0
        for name, layer in targets.linears.items():
            leaf = name.rpartition(".")[2]
            ends = 2 * layer.in_features if leaf in front else layer.in_features + layer.out_features
            total += self.settings.width * (2 * layer.out_features if leaf in behind else ends)
        return total
