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
from mllm_tailor.methods.base import Attached, Technique
from mllm_tailor.methods.target_modules import Targets, folded, part_of, under
from mllm_tailor.recipe.schema import PARTS

WEIGHTS_FILE = "trained.safetensors"  # weights of the model itself that were trained, under their own names

NOTHING = "`method.parts`: nothing is left to train — a tied head belongs to `language`, or choose other parts"


@dataclass(frozen=True)
class Applied:
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
class Plan:
    """One technique and the parts it trains."""

    parts: tuple[str, ...]
    technique: Technique


class Method:
    """The techniques of a recipe, each on its own parts."""

    def __init__(self, name: str, plans: tuple[Plan, ...]) -> None:
        self.name = name
        self.plans = plans

    @property
    def parts(self) -> tuple[str, ...]:
        """Every part that is trained."""
        return tuple(part for plan in self.plans if plan.technique.name != "freeze" for part in plan.parts)

    @property
    def settings(self) -> Any:
        """Settings of the first technique."""
        return self.plans[0].technique.settings

    @property
    def quantize(self) -> str | None:
        """How the base is to be packed; needed before it is opened."""
        return next((plan.technique.quantize for plan in self.plans if plan.technique.quantize), None)

    @property
    def quantize_skip(self) -> tuple[str, ...]:
        """Parts to be left unpacked: all that no quantising technique works on."""
        packed = {part for plan in self.plans if plan.technique.quantize for part in plan.parts}
        return tuple(part for part in PARTS if part not in packed) if packed else ()

    @property
    def optimizer(self) -> str | None:
        """The optimizer a technique insists on, if one does."""
        return next((plan.technique.optimizer for plan in self.plans if plan.technique.optimizer), None)

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """The settings that optimizer takes."""
        return {name: value for plan in self.plans for name, value in plan.technique.optimizer_options.items()}

    def apply(self, model: Any) -> Applied:
        """Freeze everything, attach every technique, and count what is left to move.

        Raises:
            ModelError, RecipeError: when the model lacks a part or a setting does not fit it.
        """
        network: nn.Module = model.model
        total = sum(_size(weight) for weight in network.parameters())
        network.requires_grad_(False)
        attached = [plan.technique.attach(self._targets(plan, model)) for plan in self.plans]
        moving = {name for one in attached for name in one.trainable}
        for name, weight in network.named_parameters():
            weight.requires_grad_(name in moving)
        remember(model, self, attached)
        return self._count(model, total)

    def expected_weights(self, model: Any) -> int:
        """How many weights will be trained, by formula, without touching the model; a skeleton will do.

        Raises:
            ModelError, RecipeError: when the model lacks a part, a setting does not fit it, or nothing would move.
        """
        found = sum(plan.technique.expected_weights(self._targets(plan, model)) for plan in self.plans)
        if not found:
            raise ModelError(NOTHING)
        return found

    def save(self, model: Any, folder: Path) -> None:
        """Write what was trained: PEFT folders for adapters, plain safetensors for weights of the model itself.

        One adapter lies at the top of `folder`; several lie in subfolders named by their parts.
        """
        folder.mkdir(parents=True, exist_ok=True)
        attached = attachments(model)
        adapters = [(plan, one) for plan, one in zip(self.plans, attached, strict=True) if one.config is not None]
        places = {}
        for plan, one in adapters:
            place = "." if len(adapters) == 1 else "-".join(plan.parts)
            config, state = plan.technique.export(one, adapter_state(one))
            assert config is not None
            config.base_model_name_or_path = model.path
            write_adapter(folder / place, config, state)
            places[place] = plan.technique.name
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
        for plan in self.plans:
            plan.technique.rebuild(self._targets(plan, model))
        if noted["weights"]:
            _load_weights(model.model, folder / WEIGHTS_FILE)
        remember(model, self, [read_adapter(model.model, folder / place) for place in noted["adapters"]])
        model.model.requires_grad_(False)
        model.model.eval()

    def peak_rate(self, stated: float | None) -> float:
        """The peak learning rate of the first technique; `stated` is the recipe's common one."""
        return _peak_rate(self.plans[0].technique, stated)

    def learning_rates(self, model: Any, stated: float | None) -> dict[str, float]:
        """The peak learning rate of every trained weight, by name."""
        return {
            name: _peak_rate(plan.technique, stated) * plan.technique.rate_factor(name)
            for plan, one in zip(self.plans, attachments(model), strict=True)
            for name in one.trainable
        }

    def begin_step(self, model: Any, step: int, seed: int) -> None:
        """Before the forward passes of optimizer step `step` (from 0)."""
        for plan, one in zip(self.plans, attachments(model), strict=True):
            plan.technique.begin_step(one, step, seed)

    def end_step(self, model: Any, step: int, steps: int) -> None:
        """After its update."""
        for plan, one in zip(self.plans, attachments(model), strict=True):
            plan.technique.end_step(one, step, steps)

    def memory(self, model: Any) -> list[dict[str, Any]]:
        """Plain values the techniques remember between steps."""
        return [dict(one.memory) for one in attachments(model)]

    def recall(self, model: Any, memory: Sequence[Mapping[str, Any]]) -> None:
        """The inverse of `memory`."""
        for one, values in zip(attachments(model), memory, strict=True):
            one.memory.update(values)

    def _targets(self, plan: Plan, model: Any) -> Targets:
        known = model.family.parts
        for part in plan.parts:
            if part not in known and plan.technique.name != "freeze":
                raise ModelError(f"`method.parts`: this model has no {part} — {nearest(part, known)}")
        parts = {part: tuple(known[part]) for part in plan.parts if part in known}
        technique = plan.technique
        return Targets(model.model, parts, technique.leaves, tuple(technique.preferred), technique.settings.last_layers)

    def _count(self, model: Any, total: int) -> Applied:
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
        return Applied(tuple(trainable), counts, total, sizes, {part: folded(names) for part, names in modules.items()})


def _peak_rate(technique: Technique, stated: float | None) -> float:
    """What is said of the part, else of the whole training, else the method's own."""
    return float(technique.settings.learning_rate or stated or technique.rate)


def _module_of(name: str, layers: Mapping[str, Any]) -> str:
    """The module of the base model a weight belongs to or, for an adapter's weight, sits beside."""
    parent = name
    while parent := parent.rpartition(".")[0]:
        if parent in layers:
            return parent
    return name.rpartition(".")[0]


def remember(model: Any, method: Method, attached: list[Attached]) -> None:
    """Note on the transformers model who tuned it, as PEFT does with `peft_config`."""
    model.model.tuned_by = (method, attached)


def tuned_by(model: Any) -> Method | None:
    """The method whose weights are in this model, if any."""
    found = getattr(model.model, "tuned_by", None)
    return found[0] if found else None


def attachments(model: Any) -> list[Attached]:
    """What the method put into this model, in the order of its plans."""
    return list(model.model.tuned_by[1])


def moving_tensors(model: Any) -> dict[str, Tensor]:
    """Everything a method may change while training, by name: trained weights and all of the adapters' own tensors."""
    network: nn.Module = model.model
    layers = tuple(tuner_layers(network))
    moving = {name for one in attachments(model) for name in one.trainable}
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
