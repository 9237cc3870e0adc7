"""A recipe's method: for each part the way it is trained, put into a model, written to a folder, read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mllm_tailor.core.errors import ModelError, nearest
from mllm_tailor.methods.adapter_metadata import read_fit, write_fit
from mllm_tailor.methods.adapters import adapter_state, read_adapter, tuner_layers, write_adapter
from mllm_tailor.methods.base import InjectedAdapter, TuningMethod
from mllm_tailor.methods.target_modules import Targets, folded, part_of, under
from mllm_tailor.recipe.schema import PARTS

WEIGHTS_FILE = "trained.safetensors"  # weights of the model itself that were trained, under their own names

NOTHING = "`method.parts`: nothing is left to train — a tied head belongs to `language`, or choose other parts"


@dataclass(frozen=True)
class TrainableSummary:
    """What will move: the names of the weights, how many in each part, and how many the model has in all."""

    trainable: tuple[str, ...]
    counts: dict[str, int]  # part -> weights
    total: int
    modules: dict[str, int]  # part -> modules that carry trained weights
    places: dict[str, tuple[str, ...]]  # part -> their names, layers folded together

    def lines(self, most: int = 12) -> list[str]:
        """What a person is shown: how much moves in each part, and where."""
        shown = []
        for part, count in self.counts.items():
            if count:
                names = self.places[part]
                left = f", and {len(names) - most} more" if len(names) > most else ""
                shown.append(f"{part}: {count:,} weights in {', '.join(names[:most])}{left}")
        return shown


@dataclass(frozen=True)
class MethodAssignment:
    """One technique and the parts it trains."""

    parts: tuple[str, ...]
    tuning_method: TuningMethod


class MethodSet:
    """The techniques of a recipe, each on its own parts."""

    def __init__(self, name: str, assignments: tuple[MethodAssignment, ...]) -> None:
        self.name = name
        self.assignments = assignments

    @property
    def parts(self) -> tuple[str, ...]:
        """Every part that is trained."""
        return tuple(
            part
            for assignment in self.assignments
            if assignment.tuning_method.name != "freeze"
            for part in assignment.parts
        )

    @property
    def settings(self) -> Any:
        """Settings of the first technique."""
        return self.assignments[0].tuning_method.settings

    @property
    def quantize(self) -> str | None:
        """How the base is to be packed; needed before it is opened."""
        return next(
            (assignment.tuning_method.quantize for assignment in self.assignments if assignment.tuning_method.quantize),
            None,
        )

    @property
    def quantize_skip(self) -> tuple[str, ...]:
        """Parts to be left unpacked: all that no quantising technique works on."""
        packed = {
            part for assignment in self.assignments if assignment.tuning_method.quantize for part in assignment.parts
        }
        return tuple(part for part in PARTS if part not in packed) if packed else ()

    @property
    def optimizer(self) -> str | None:
        """The optimizer a technique insists on, if one does."""
        return next(
            (
                assignment.tuning_method.optimizer
                for assignment in self.assignments
                if assignment.tuning_method.optimizer
            ),
            None,
        )

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """The settings that optimizer takes."""
        return {
            name: value
            for assignment in self.assignments
            for name, value in assignment.tuning_method.optimizer_options.items()
        }

    def apply(self, model: Any) -> TrainableSummary:
        """Freeze everything, attach every technique, and count what is left to move.

        Raises:
            ModelError, RecipeError: when the model lacks a part or a setting does not fit it.
        """
        network: nn.Module = model.model
        total = sum(_size(weight) for weight in network.parameters())
        network.requires_grad_(False)
        attached = [
            assignment.tuning_method.attach(self._targets(assignment, model)) for assignment in self.assignments
        ]
        moving = {name for one in attached for name in one.trainable}
        for name, weight in network.named_parameters():
            weight.requires_grad_(name in moving)
        set_method(model, self, attached)
        return self._count(model, total)

    def num_trainable_parameters(self, model: Any) -> int:
        """How many weights will be trained, by formula, without touching the model; a skeleton will do.

        Raises:
            ModelError, RecipeError: when the model lacks a part, a setting does not fit it, or nothing would move.
        """
        found = sum(
            assignment.tuning_method.num_trainable_parameters(self._targets(assignment, model))
            for assignment in self.assignments
        )
        if not found:
            raise ModelError(NOTHING)
        return found

    def save(self, model: Any, folder: Path) -> None:
        """Write what was trained: PEFT folders for adapters, plain safetensors for weights of the model itself.

        One adapter lies at the top of `folder`; several lie in subfolders named by their parts.
        """
        folder.mkdir(parents=True, exist_ok=True)
        attached = injected_adapters(model)
        adapters = [
            (assignment, one)
            for assignment, one in zip(self.assignments, attached, strict=True)
            if one.config is not None
        ]
        places = {}
        for assignment, one in adapters:
            place = "." if len(adapters) == 1 else "-".join(assignment.parts)
            config, state = assignment.tuning_method.export(one, adapter_state(one))
            assert config is not None
            config.base_model_name_or_path = model.path
            write_adapter(folder / place, config, state)
            places[place] = assignment.tuning_method.name
        own = {name for one in attached if one.config is None for name in one.trainable}
        if own:
            present = dict(model.model.named_parameters())
            save_file({name: present[name].detach().cpu().contiguous() for name in own}, folder / WEIGHTS_FILE)
        write_fit(folder, model, {"method": self.name, "adapters": places, "weights": bool(own)})

    def load(self, model: Any, folder: Path, *, unquantised: bool = False) -> None:
        """Put what `save` wrote into an untouched base.

        Raises:
            ModelError: when the base is another one, or a file is missing or damaged.
        """
        noted = read_fit(folder, model, unquantised=unquantised)
        for assignment in self.assignments:
            assignment.tuning_method.create_empty(self._targets(assignment, model))
        if noted["weights"]:
            _load_weights(model.model, folder / WEIGHTS_FILE)
        set_method(model, self, [read_adapter(model.model, folder / place) for place in noted["adapters"]])
        model.model.requires_grad_(False)
        model.model.eval()

    def peak_learning_rate(self, stated: float | None) -> float:
        """The peak learning rate of the first technique; `stated` is the recipe's common one."""
        return _peak_rate(self.assignments[0].tuning_method, stated)

    def learning_rates(self, model: Any, stated: float | None) -> dict[str, float]:
        """The peak learning rate of every trained weight, by name."""
        return {
            name: _peak_rate(assignment.tuning_method, stated) * assignment.tuning_method.rate_factor(name)
            for assignment, one in zip(self.assignments, injected_adapters(model), strict=True)
            for name in one.trainable
        }

    def begin_step(self, model: Any, step: int, seed: int) -> None:
        """Before the forward passes of optimizer step `step` (from 0)."""
        for assignment, one in zip(self.assignments, injected_adapters(model), strict=True):
            assignment.tuning_method.begin_step(one, step, seed)

    def end_step(self, model: Any, step: int, steps: int) -> None:
        """After its update."""
        for assignment, one in zip(self.assignments, injected_adapters(model), strict=True):
            assignment.tuning_method.end_step(one, step, steps)

    def state_dict(self, model: Any) -> list[dict[str, Any]]:
        """Plain values the techniques remember between steps."""
        return [dict(one.memory) for one in injected_adapters(model)]

    def load_state_dict(self, model: Any, memory: Sequence[Mapping[str, Any]]) -> None:
        """The inverse of `memory`."""
        for one, values in zip(injected_adapters(model), memory, strict=True):
            one.memory.update(values)

    def _targets(self, assignment: MethodAssignment, model: Any) -> Targets:
        known = model.family.parts
        for part in assignment.parts:
            if part not in known and assignment.tuning_method.name != "freeze":
                raise ModelError(f"`method.parts`: this model has no {part} — {nearest(part, known)}")
        parts = {part: tuple(known[part]) for part in assignment.parts if part in known}
        tuning_method = assignment.tuning_method
        return Targets(
            model.model, parts, tuning_method.leaves, tuple(tuning_method.preferred), tuning_method.settings.last_layers
        )

    def _count(self, model: Any, total: int) -> TrainableSummary:
        parts = model.family.parts
        counts, modules = dict.fromkeys(parts, 0), {part: {} for part in parts}
        trainable, layers = [], tuner_layers(model.model)
        for name, weight in model.model.named_parameters():
            if weight.requires_grad:
                part = part_of(name, parts)
                trainable.append(name)
                counts[part] = counts.get(part, 0) + weight.numel()
                modules.setdefault(part, {})[_module_of(name, layers)] = None  # in order
        if not trainable:
            raise ModelError(NOTHING)
        sizes = {part: len(names) for part, names in modules.items()}
        return TrainableSummary(
            tuple(trainable), counts, total, sizes, {part: folded(names) for part, names in modules.items()}
        )


def _peak_rate(tuning_method: TuningMethod, stated: float | None) -> float:
    """What is said of the part, else of the whole training, else the method's own."""
    return float(tuning_method.settings.learning_rate or stated or tuning_method.rate)


def _module_of(name: str, layers: Mapping[str, Any]) -> str:
    """The module of the base model a weight belongs to or, for an adapter's weight, sits beside."""
    parent = name
    while parent := parent.rpartition(".")[0]:
        if parent in layers:
            return parent
    return name.rpartition(".")[0]


def set_method(model: Any, method: MethodSet, attached: list[InjectedAdapter]) -> None:
    """Note on the transformers model who tuned it, as PEFT does with `peft_config`."""
    model.model.applied_method = (method, attached)


def applied_method(model: Any) -> MethodSet | None:
    """The method whose weights are in this model, if any."""
    found = getattr(model.model, "applied_method", None)
    return found[0] if found else None


def injected_adapters(model: Any) -> list[InjectedAdapter]:
    """What the method put into this model, in the order of its plans."""
    return list(model.model.applied_method[1])


def trainable_state_dict(model: Any) -> dict[str, Tensor]:
    """Everything a method may change while training, by name: trained weights and all of the adapters' own tensors."""
    network: nn.Module = model.model
    layers = tuple(tuner_layers(network))
    moving = {name for one in injected_adapters(model) for name in one.trainable}
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name in moving or (under(name, layers) and ".base_layer." not in name)
    }


def _size(weight: nn.Parameter) -> int:
    """How many weights a tensor stands for; NF4 keeps two in a byte."""
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
