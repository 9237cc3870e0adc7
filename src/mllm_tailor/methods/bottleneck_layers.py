"""Bottleneck adapters as PEFT layers, and their registration with PEFT.

`f(h) = W_up act(W_down h)`. Before a layer: `y = W (x + s f(x))`; after it: `y = W x + s f(W x)`; parallel to it:
`y = W x + s f(x)` (LLM-Adapters, Hu et al. 2023, 2304.01933). W_up starts at zero, so the untrained adapter changes
nothing (the authors' initialisation is not neutral).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from mllm_tailor.core.handle import Handle

PEFT_TYPE = "BOTTLENECK"  # in adapter_config.json
PREFIX = "bottleneck_"  # of the names of its weights
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


@dataclass
class BottleneckConfig(PeftConfig):
    """The contents of `adapter_config.json`."""

    target_modules: str | list[str] | None = field(default=None)  # layers with adapters
    front: str | None = field(default=None)  # last names of those with the adapter before them
    behind: str | None = field(default=None)  # last names of those with the adapter after them
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
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PEFT_TYPE  # compares and hashes as a member of PEFT's enumeration


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A linear layer with its adapter."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names: tuple[str, ...] = ()

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig, position: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.position = position
        self.scale = config.scale
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.activation, self.dropout = ACTIVATIONS[config.activation](), nn.Dropout(config.dropout)
        self._disable_adapters, self.merged_adapters = False, []
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Create the two matrices; the second is zero."""
        base: Any = self.get_base_layer()
        width_in = base.out_features if self.position == "behind" else base.in_features
        width_out = base.in_features if self.position == "front" else base.out_features
        down = nn.Linear(width_in, config.width, bias=False)
        up = nn.Linear(config.width, width_out, bias=False)
        nn.init.kaiming_uniform_(down.weight, a=5**0.5)
        nn.init.zeros_(up.weight)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down, up
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(adapter_name)

    def adapt(self, hidden: Tensor) -> Tensor:
        """s f(h), computed in the dtype of the adapter."""
        name = self.active_adapters[0]
        down, up = self.bottleneck_down[name], self.bottleneck_up[name]
        dtype = down.get_parameter("weight").dtype
        inner = self.activation(down(self.dropout(hidden.to(dtype))))
        update: Tensor = (self.scale * up(inner)).to(hidden.dtype)
        return update

    def forward(self, hidden: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """The layer with its adapter, or without it while adapters are disabled."""
        inputs = hidden
        if self.position == "front" and not self.disable_adapters:
            inputs = hidden + self.adapt(hidden)
        result: Tensor = self.base_layer(inputs, *arguments, **named)
        if self.disable_adapters or self.position == "front":
            return result
        return result + self.adapt(result if self.position == "behind" else hidden)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: FBT001, FBT002 - PEFT's
        """Impossible: there is an activation between the two matrices."""
        raise ValueError("a bottleneck adapter has an activation inside, which no single weight matrix can express")

    def unmerge(self) -> None:
        """Never merged."""
        raise ValueError("a bottleneck adapter is never merged")


class BottleneckModel(BaseTuner):
    """Puts `BottleneckLayer`s into a model."""

    prefix: str = PREFIX
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, Any] = {}  # noqa: RUF012 - as PEFT declares it

    def _create_and_replace(  # type: ignore[override]  # PEFT passes further keywords
        self, peft_config: Any, adapter_name: str, target: Any, target_name: str, parent: nn.Module, current_key: str,
        **_: Any,
    ) -> None:  # fmt: skip
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        leaf = target_name.rpartition(".")[2]
        positions = {"front": peft_config.front, "behind": peft_config.behind}
        position = next((name for name, leaves in positions.items() if leaf in (leaves or "").split(",")), "beside")
        self._replace_module(parent, target_name, BottleneckLayer(target, adapter_name, peft_config, position), target)

    def _check_merge_allowed(self) -> None:
        raise ValueError("a bottleneck adapter has an activation inside, which no single weight matrix can express")


def register() -> Handle:
    """Make PEFT load and save these adapters (`PeftModel.from_pretrained` and others) until the handle is removed.

    PEFT's maps are keyed by an enumeration of strings, so a string is a valid key and the enumeration stays as it is.
    """
    maps: tuple[tuple[dict[Any, Any], Any], ...] = (
        (PEFT_TYPE_TO_CONFIG_MAPPING, BottleneckConfig),
        (PEFT_TYPE_TO_TUNER_MAPPING, BottleneckModel),
        (PEFT_TYPE_TO_PREFIX_MAPPING, PREFIX),
    )
    added = [mapping for mapping, _ in maps if PEFT_TYPE not in mapping]
    for mapping, value in maps:
        mapping.setdefault(PEFT_TYPE, value)

    def undo() -> None:
        for mapping in added:
            mapping.pop(PEFT_TYPE, None)

    return Handle(undo)
