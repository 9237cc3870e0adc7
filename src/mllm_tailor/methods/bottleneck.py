"""Bottleneck adapters in series and in parallel (LLM-Adapters, Hu et al. 2023, 2304.01933), registered with PEFT.

`f(h) = W_up tanh(W_down h)`. In front of a layer: `y = W (x + s f(x))`; behind it: `y = W x + s f(W x)`; beside it:
`y = W x + s f(x)`. W_up starts at zero, so that nothing changes at first (the authors' start is not neutral).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method
from pydantic import Field
from torch import Tensor, nn

from mllm_tailor.methods.adapters import inject
from mllm_tailor.methods.base import InjectedAdapter, TuningMethod, TuningMethodSettings
from mllm_tailor.methods.target_modules import Targets

NAME = "bottleneck"
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


def _new_peft_type(name: str) -> PeftType:
    """PEFT knows its methods by an enumeration that cannot be extended from outside; a test watches over this."""
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)
    type.__setattr__(PeftType, name, member)
    return member


BOTTLENECK = getattr(PeftType, NAME.upper(), None) or _new_peft_type(NAME.upper())


@dataclass
class BottleneckConfig(PeftConfig):
    """What `adapter_config.json` says."""

    target_modules: str | list[str] | None = field(default=None)  # adapters beside these
    front: str | None = field(default=None)  # in front of those of them that match
    behind: str | None = field(default=None)  # behind those of them that match
    width: int = field(default=256)
    activation: str = field(default="tanh")
    scale: float = field(default=1.0)
    dropout: float = field(default=0.0)
    exclude_modules: str | list[str] | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: str | None = field(default=None)
    bias: str = field(default="none")
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BOTTLENECK


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """One linear layer with its adapter."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names: tuple[str, ...] = ()

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig, place: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.place = place
        self.scale = config.scale
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.activation, self.dropout = ACTIVATIONS[config.activation](), nn.Dropout(config.dropout)
        self._disable_adapters, self.merged_adapters = False, []
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Make the two matrices, the second of them zero."""
        base: Any = self.get_base_layer()
        width_in = base.out_features if self.place == "behind" else base.in_features
        width_out = base.in_features if self.place == "front" else base.out_features
        self.bottleneck_down[adapter_name] = nn.Linear(width_in, config.width, bias=False)
        self.bottleneck_up[adapter_name] = nn.Linear(config.width, width_out, bias=False)
        nn.init.kaiming_uniform_(self.bottleneck_down[adapter_name].weight, a=5**0.5)
        nn.init.zeros_(self.bottleneck_up[adapter_name].weight)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(adapter_name)

    def adapt(self, hidden: Tensor) -> Tensor:
        """s f(h), computed in the adapter's own number format."""
        name = self.active_adapters[0]
        down, up = self.bottleneck_down[name], self.bottleneck_up[name]
        inner = self.activation(down(self.dropout(hidden.to(down.weight.dtype))))
        return (self.scale * up(inner)).to(hidden.dtype)

    def forward(self, hidden: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """The layer with its adapter, or without while adapters are switched off."""
        if self.disable_adapters:
            return self.base_layer(hidden, *arguments, **named)
        if self.place == "front":
            return self.base_layer(hidden + self.adapt(hidden), *arguments, **named)
        result = self.base_layer(hidden, *arguments, **named)
        return result + self.adapt(result if self.place == "behind" else hidden)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Impossible: between its two matrices stands an activation."""
        raise ValueError("a bottleneck adapter has an activation inside, which no single weight matrix can express")

    def unmerge(self) -> None:
        """Never merged."""
        raise ValueError("a bottleneck adapter is never merged")


class BottleneckModel(BaseTuner):
    """Puts `BottleneckLayer`s into a model."""

    prefix: str = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: ClassVar[dict[str, Any]] = {}

    def _create_and_replace(
        self, peft_config: Any, adapter_name: str, target: Any, target_name: str, parent: nn.Module, current_key: str,
        **_: Any,
    ) -> None:  # fmt: skip
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        leaf = target_name.rpartition(".")[2]
        places = {"front": peft_config.front, "behind": peft_config.behind}
        place = next((place for place, leaves in places.items() if leaf in (leaves or "").split(",")), "beside")
        self._replace_module(parent, target_name, BottleneckLayer(target, adapter_name, peft_config, place), target)

    def _check_merge_allowed(self) -> None:
        raise ValueError("a bottleneck adapter has an activation inside, which no single weight matrix can express")


register_peft_method(name=NAME, config_cls=BottleneckConfig, model_cls=BottleneckModel, prefix="bottleneck_")

# Where the authors and their forerunners put adapters: last names of the layers each stands in front of or behind.
UP, DOWN = ("gate_proj", "up_proj", "fc1", "linear_1"), ("down_proj", "fc2", "linear_2")
PLACEMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "series": (UP, UP, ()),  # (targets, in front, behind)
    "parallel": ((*UP, *DOWN), (), ()),
    "houlsby": ((*UP, *DOWN), UP, DOWN),
    "pfeiffer": (DOWN, (), DOWN),
}


class BottleneckSettings(TuningMethodSettings):
    """Bottleneck adapters."""

    placement: Literal["series", "parallel", "houlsby", "pfeiffer"] = Field(
        "parallel", description="in front of, beside, around, or behind the MLP"
    )
    width: int = Field(256, ge=1, le=8192, description="channels inside the adapter")
    activation: Literal["tanh", "relu", "gelu", "silu"] = Field("tanh", description="between its two matrices")
    scale: float = Field(1.0, gt=0, description="factor on its output")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of its inputs dropped")
    targets: list[str] | None = Field(None, description="last names of linear layers; default: those of the placement")


class Bottleneck(TuningMethod):
    """width * (in + out) weights at every layer aimed at. Cannot be merged: it makes the model a little slower."""

    Settings: ClassVar[type[TuningMethodSettings]] = BottleneckSettings
    mergeable: ClassVar[bool] = False

    @property
    def preferred(self) -> tuple[str, ...]:  # type: ignore[override]
        """The layers of the placement."""
        return PLACEMENTS[self.settings.placement][0]

    def attach(self, targets: Targets) -> InjectedAdapter:
        """Inject."""
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
        """Two matrices; behind a layer both meet its outputs, in front of it both its inputs."""
        _, front, behind = PLACEMENTS[self.settings.placement]
        total = 0
        for name, layer in targets.linears.items():
            leaf = name.rpartition(".")[2]
            ends = 2 * layer.in_features if leaf in front else layer.in_features + layer.out_features
            total += self.settings.width * (2 * layer.out_features if leaf in behind else ends)
        return total
