"""A recipe's method: how each part is trained; applied to a model, saved to a folder, loaded back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mllm_tailor.core.errors import ModelError, nearest
from mllm_tailor.core.model import ModelModules, TunableModel
from mllm_tailor.methods.adapter_metadata import check_base, describe_base, read_metadata, write_metadata
from mllm_tailor.methods.adapters import adapter_state, read_adapter, tuner_layers, write_adapter
from mllm_tailor.methods.base import InjectedAdapter, TuningMethod
from mllm_tailor.methods.target_modules import Targets, folded, part_of, under
from mllm_tailor.recipe.schema import PARTS

WEIGHTS_FILE = "trained.safetensors"  # weights of the model itself that were trained, under their own names

NOTHING = "`method.parts`: nothing is left to train — a tied head belongs to `language`; choose other parts"


@dataclass(frozen=True)
class TrainableSummary:
    """The trained weights: their names, their number in each part, and the number of all weights of the model."""

    trainable: tuple[str, ...]
    counts: dict[str, int]  # part -> weights
    total: int
    modules: dict[str, int]  # part -> modules that carry trained weights
    module_names: dict[str, tuple[str, ...]]  # part -> their names, numbers of layers joined to ranges

    def lines(self, most: int = 12) -> list[str]:
        """A line for each part: the number of trained weights, and their modules."""
        lines = []
        for part, count in self.counts.items():
            if count:
                names = self.module_names[part]
                left = f", and {len(names) - most} more" if len(names) > most else ""
                lines.append(f"{part}: {count:,} weights in {', '.join(names[:most])}{left}")
        return lines


@dataclass(frozen=True)
class MethodAssignment:
    """A tuning method and the parts it trains."""

    parts: tuple[str, ...]
    tuning_method: TuningMethod


@dataclass(frozen=True)
class AppliedMethod:
    """A method applied to a model: see `core.model.AppliedMethod`."""

    method: MethodSet
    adapters: tuple[InjectedAdapter, ...]  # in the order of the method's assignments


class MethodSet:
    """The tuning methods of a recipe, each on its own parts."""

    def __init__(self, name: str, assignments: tuple[MethodAssignment, ...]) -> None:
        self.name = name
        self.assignments = assignments

    @property
    def parts(self) -> tuple[str, ...]:
        """Every part that is trained."""
        trained = (item for item in self.assignments if item.tuning_method.name != "freeze")
        return tuple(part for assignment in trained for part in assignment.parts)

    @property
    def settings(self) -> Any:
        """Settings of the first tuning method."""
        return self.assignments[0].tuning_method.settings

    @property
    def quantize(self) -> str | None:
        """Quantisation of the base model, needed before it is loaded."""
        formats = (assignment.tuning_method.quantize for assignment in self.assignments)
        return next((quantize for quantize in formats if quantize), None)

    @property
    def quantize_skip(self) -> tuple[str, ...]:
        """Parts that stay unquantised: all that no quantising method trains."""
        packed = {part for item in self.assignments if item.tuning_method.quantize for part in item.parts}
        return tuple(part for part in PARTS if part not in packed) if packed else ()

    @property
    def optimizer(self) -> str | None:
        """The optimizer that a tuning method requires, if any."""
        optimizers = (assignment.tuning_method.optimizer for assignment in self.assignments)
        return next((optimizer for optimizer in optimizers if optimizer), None)

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """The settings of that optimizer."""
        options = [assignment.tuning_method.optimizer_options for assignment in self.assignments]
        return {name: value for each in options for name, value in each.items()}

    def apply(self, model: TunableModel) -> TrainableSummary:
        """Freeze everything, attach every tuning method, and count the weights that are trained.

        Raises:
            ModelError, RecipeError: when the model lacks a part or a setting does not fit it.
        """
        network: nn.Module = model.model
        total = sum(_size(weight) for weight in network.parameters())
        network.requires_grad_(requires_grad=False)
        adapters = tuple(item.tuning_method.attach(self._targets(item, model)) for item in self.assignments)
        trainable = {name for adapter in adapters for name in adapter.trainable}
        for name, weight in network.named_parameters():
            weight.requires_grad_(name in trainable)
        model.applied = AppliedMethod(self, adapters)
        return self._count(model, total)

    def num_trainable_parameters(self, model: ModelModules) -> int:
        """Number of trained weights, computed by formula without changing the model; a meta model suffices.

        Raises:
            ModelError, RecipeError: when the model lacks a part, a setting does not fit it, or nothing is trained.
        """
        count = sum(
            item.tuning_method.num_trainable_parameters(self._targets(item, model)) for item in self.assignments
        )
        if not count:
            raise ModelError(NOTHING)
        return count

    def save(self, model: TunableModel, folder: Path) -> None:
        """Save what was trained: PEFT folders for adapters, plain safetensors for weights of the model itself.

        A single adapter is written to `folder` itself, several to subfolders named by their parts.
        """
        folder.mkdir(parents=True, exist_ok=True)
        pairs = list(zip(self.assignments, injected_adapters(model), strict=True))
        in_peft = [(assignment, adapter) for assignment, adapter in pairs if adapter.config is not None]
        written = {}
        for assignment, adapter in in_peft:
            name = "." if len(in_peft) == 1 else "-".join(assignment.parts)
            config, state = assignment.tuning_method.export(adapter, adapter_state(adapter))
            assert config is not None
            config.base_model_name_or_path = model.path
            write_adapter(folder / name, config, state)
            written[name] = assignment.tuning_method.name
        own = {name for _, adapter in pairs if adapter.config is None for name in adapter.trainable}
        if own:
            weights = dict(model.model.named_parameters())
            save_file({name: weights[name].detach().cpu().contiguous() for name in own}, folder / WEIGHTS_FILE)
        contents = {"method": self.name, "adapters": written, "weights": bool(own)}
        write_metadata(folder, describe_base(model), contents)

    def load(self, model: TunableModel, folder: Path, *, unquantised: bool = False) -> None:
        """Load what `save` wrote into an untouched base model.

        Raises:
            ModelError: when the base differs, or a file is missing, damaged or changed.
        """
        metadata = read_metadata(folder)
        check_base(folder, metadata["base"], model, unquantised=unquantised)
        for assignment in self.assignments:
            assignment.tuning_method.create_empty(self._targets(assignment, model))
        if metadata["weights"]:
            _load_weights(model.model, folder / WEIGHTS_FILE)
        adapters = tuple(read_adapter(model.model, folder / name) for name in metadata["adapters"])
        model.applied = AppliedMethod(self, adapters)
        model.model.requires_grad_(requires_grad=False)
        model.model.eval()

    def peak_learning_rate(self, stated: float | None) -> float:
        """The peak learning rate of the first tuning method; `stated` is the recipe's `train.learning_rate`."""
        return _peak_rate(self.assignments[0].tuning_method, stated)

    def learning_rates(self, model: TunableModel, stated: float | None) -> dict[str, float]:
        """The peak learning rate of every trained weight, by name."""
        return {
            name: _peak_rate(assignment.tuning_method, stated) * assignment.tuning_method.rate_factor(name)
            for assignment, adapter in zip(self.assignments, injected_adapters(model), strict=True)
            for name in adapter.trainable
        }

    def begin_step(self, model: TunableModel, step: int, seed: int) -> None:
        """Before the forward passes of optimizer step `step` (from 0)."""
        for assignment, adapter in zip(self.assignments, injected_adapters(model), strict=True):
            assignment.tuning_method.begin_step(adapter, step, seed)

    def end_step(self, model: TunableModel, step: int, steps: int) -> None:
        """After the update of a step."""
        for assignment, adapter in zip(self.assignments, injected_adapters(model), strict=True):
            assignment.tuning_method.end_step(adapter, step, steps)

    def state_dict(self, model: TunableModel) -> list[dict[str, Any]]:
        """The state of each tuning method between steps, as plain values."""
        return [dict(adapter.state) for adapter in injected_adapters(model)]

    def load_state_dict(self, model: TunableModel, states: Sequence[Mapping[str, Any]]) -> None:
        """The inverse of `state_dict`."""
        for adapter, values in zip(injected_adapters(model), states, strict=True):
            adapter.state.update(values)

    def _targets(self, assignment: MethodAssignment, model: ModelModules) -> Targets:
        known = model.family.parts
        tuning_method = assignment.tuning_method
        for part in assignment.parts:
            if part not in known and tuning_method.name != "freeze":
                raise ModelError(f"`method.parts`: this model has no {part} — {nearest(part, known)}")
        parts = {part: tuple(known[part]) for part in assignment.parts if part in known}
        return Targets(
            model.model,
            parts,
            leaves=tuning_method.leaves,
            preferred=tuple(tuning_method.preferred),
            last_layers=tuning_method.settings.last_layers,
        )

    def _count(self, model: TunableModel, total: int) -> TrainableSummary:
        parts = model.family.parts
        counts: dict[str, int] = dict.fromkeys(parts, 0)
        modules: dict[str, dict[str, None]] = {part: {} for part in parts}  # names in order
        trainable, layers = [], tuner_layers(model.model)
        for name, weight in model.model.named_parameters():
            if weight.requires_grad:
                part = part_of(name, parts)
                trainable.append(name)
                counts[part] = counts.get(part, 0) + weight.numel()
                modules.setdefault(part, {})[_module_of(name, layers)] = None
        if not trainable:
            raise ModelError(NOTHING)
        return TrainableSummary(
            trainable=tuple(trainable),
            counts=counts,
            total=total,
            modules={part: len(names) for part, names in modules.items()},
            module_names={part: folded(names) for part, names in modules.items()},
        )


def _peak_rate(tuning_method: TuningMethod, stated: float | None) -> float:
    """The learning rate of the part, else of the whole training, else the default of the method."""
    return float(tuning_method.settings.learning_rate or stated or tuning_method.rate)


def _module_of(name: str, layers: Mapping[str, Any]) -> str:
    """The module of the base model that holds a weight or that carries the adapter of the weight."""
    parent = name
    while parent := parent.rpartition(".")[0]:
        if parent in layers:
            return parent
    return name.rpartition(".")[0]


def injected_adapters(model: TunableModel) -> Sequence[InjectedAdapter]:
    """The adapters that the method injected into this model, in the order of its assignments."""
    assert model.applied is not None, "no method was applied or loaded"
    return model.applied.adapters


def trainable_state_dict(model: TunableModel) -> dict[str, Tensor]:
    """Every tensor that a method may change in training, by name: trained weights and all tensors of its adapters."""
    network: nn.Module = model.model
    layers = tuple(tuner_layers(network))
    trainable = {name for adapter in injected_adapters(model) for name in adapter.trainable}
    tensors: dict[str, Tensor] = dict(network.named_parameters()) | dict(network.named_buffers())
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name in trainable or (under(name, layers) and ".base_layer." not in name)
    }


def _size(weight: nn.Parameter) -> int:
    """Number of weights in a tensor; NF4 stores two in a byte."""
    state = getattr(weight, "quant_state", None)
    return int(state.shape.numel()) if state is not None else weight.numel()


def _load_weights(network: nn.Module, file: Path) -> None:
    try:
        tensors = load_file(file)
        present = dict(network.named_parameters())
        for name, tensor in tensors.items():
            weight = present[name]
            if weight.shape != tensor.shape:
                raise ValueError(name)
            weight.data = tensor.to(weight.device)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{file}: missing, damaged or made for another model ({error}) — train again") from None
