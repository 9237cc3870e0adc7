"""What a run will cost, before it costs it: one pass is rehearsed on the real model, and scaled to all of them.

Passes are scaled by their arithmetic: a transformer does about 2 operations per weight and token forward and 4 backward
where gradients flow (Kaplan et al. 2020, section 2.1), plus attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from mllm_tailor.core.device import free_memory, pick_device
from mllm_tailor.methods import MethodSet
from mllm_tailor.models import Length, LoadedModel
from mllm_tailor.recipe import Recipe
from mllm_tailor.run.dataset import Splits
from mllm_tailor.run.ledger import measure
from mllm_tailor.run.predict import open_for_training
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.training import StepProfile, profile_step
from mllm_tailor.training.optim.registry import TABLE

WORTH = 120.0  # seconds of training from which on starting others pays: each imports and opens a model for itself
SHARE = 0.8  # of the free memory, for all of them
FAR = 1.3  # times the operations of the usual sample, from which on the longest tells more than noise


@dataclass(frozen=True)
class CostEstimate:
    """Bytes and seconds foreseen."""

    peak_bytes: int
    training_seconds: float  # of all steps; what a budget of minutes cuts off is not in it
    seeing_seconds: float  # of the vision side over the training pictures, where it runs once
    scoring_seconds: float  # of base and tuned, each held to the schema and free
    together: int  # samples in one pass, at most
    processes: int = 1  # that train, each with a model of its own; `peak_bytes` is of all

    def row(self) -> dict[str, Any]:
        """Plain values for forecast.json."""
        return asdict(self)


@dataclass(frozen=True)
class Shape:
    """What the arithmetic of a pass depends on."""

    weights: int  # without the vision tower
    vision_weights: int
    patches_per_tile: int
    vision_width: int
    vision_layers: int
    width: int
    layers: int

    @classmethod
    def of(cls, model: LoadedModel) -> Shape:
        """Read from a model's configuration and weights."""
        config = model.model.config
        text, vision = getattr(config, "text_config", config), getattr(config, "vision_config", None)
        prefixes = tuple(model.family.parts.get("vision", ()))
        named = list(model.model.named_parameters())
        tower = sum(weight.numel() for name, weight in named if prefixes and name.startswith(prefixes))
        image, patch = _side(getattr(vision, "image_size", 448)), _side(getattr(vision, "patch_size", 14))
        return cls(
            weights=sum(weight.numel() for _, weight in named) - tower,
            vision_weights=tower,
            patches_per_tile=(image // patch) ** 2,
            vision_width=getattr(vision, "hidden_size", 0),
            vision_layers=getattr(vision, "num_hidden_layers", 0),
            width=text.hidden_size,
            layers=text.num_hidden_layers,
        )

    def operations(self, length: Length, *, pictures: bool) -> float:
        """Forward operations of one sample; `pictures`: with the vision side."""
        text = length.tokens * (2 * self.weights + 2 * length.tokens * self.width * self.layers)
        patches = length.tiles * self.patches_per_tile if pictures else 0
        attention = 4 * self.patches_per_tile * self.vision_width * self.vision_layers
        return float(text + patches * (2 * self.vision_weights + attention))


def estimate_cost(
    run: ResolvedRun, splits: Splits, scoring_seconds: float, lengths: Mapping[str, Length] | None = None
) -> CostEstimate:
    """The costs of a run's training on this machine; `lengths` of its samples, where they are known already.

    Raises:
        torch.OutOfMemoryError: when not even one sample fits.
    """
    model, method = open_for_training(run), run.method
    method.apply(model)
    lengths = measure(model, run.task, splits) if lengths is None else lengths
    learned = list(splits.learned)
    sizes = [lengths[sample.id] for sample in learned]
    found = profile_step(model, method, learned, sizes, run.recipe)
    made = extrapolate(found, Shape.of(model), sizes, run.recipe, len(splits.train))
    tiles = {sample.media: size.tiles for sample, size in zip(learned, sizes, strict=True)}  # each picture is seen once
    made = replace(made, seeing_seconds=found.seeing_seconds * sum(tiles.values()), scoring_seconds=scoring_seconds)
    count = count_processes(run.recipe, method, made)
    return replace(made, processes=count, peak_bytes=count * made.peak_bytes)


def count_processes(recipe: Recipe, method: MethodSet, made: CostEstimate) -> int:
    """How many processes train on a processor: what the recipe says, or what cores, passes and memory allow.

    `made` is of one process. Seconds are foreseen for its threads; several processes are a little quicker.
    """
    wanted = recipe.train.processes
    if wanted != "auto":
        return wanted
    if single_process_reason(recipe, method) or made.training_seconds < WORTH:
        return 1
    passes = recipe.train.batch_size // max(1, made.together)
    fitting = int(SHARE * free_memory(torch.device("cpu"))) // max(1, made.peak_bytes)
    return max(1, min(torch.get_num_threads(), passes, fitting))


def single_process_reason(recipe: Recipe, method: MethodSet) -> str:
    """Why this training has to be one process here; empty: it has not."""
    optimizer = method.optimizer or recipe.train.optimizer
    if pick_device(recipe.model.device).type != "cpu":
        return "a GPU's processes are started by torchrun"
    if TABLE[optimizer].gradients != "all":
        return f"{optimizer} keeps no gradients that could be summed"
    special = recipe.train.prefer is not None or recipe.train.distill is not None or recipe.task_name == "match"
    if special or method.optimizer_options.get("objective") == "metric":
        return "its objective is made for one process"
    return ""


def extrapolate(
    found: StepProfile, shape: Shape, sizes: Sequence[Length], recipe: Recipe, counted: int
) -> CostEstimate:
    """From two passes to all: seconds by operations. `counted` samples make up an epoch's count of steps."""
    costs = [shape.operations(size, pictures=not found.cached) for size in sizes]
    passes = recipe.train.passes(counted) * sum(_seconds(cost, costs, found) for cost in costs)
    training = passes + found.steps * found.update_seconds
    if recipe.train.max_minutes is not None:
        training = min(training, 60 * recipe.train.max_minutes)
    largest = max(_padded(one, sizes, shape, found) for one in found.passes)
    tried = max(_padded(one, sizes, shape, found) for one in found.profiled)
    added = found.standing + found.pass_bytes * max(1.0, largest / tried)
    peak = found.held + round(found.slack * added)
    return CostEstimate(peak, training, 0.0, 0.0, max(map(len, found.passes)))


def _seconds(cost: float, costs: Sequence[float], found: StepProfile) -> float:
    """Of one sample in a pass: on the line through the usual sample and the longest, which differ in attention."""
    usual = sum(costs[number] for number in found.timed) / len(found.timed)
    seconds = found.pass_seconds / len(found.timed)
    longest = costs[found.longest]
    if not found.longest_seconds or longest < FAR * usual:
        return seconds * cost / usual
    slope = max(0.0, found.longest_seconds - seconds) / (longest - usual)
    return max(seconds + slope * (cost - usual), 0.0)


def _padded(one: Sequence[int], sizes: Sequence[Length], shape: Shape, found: StepProfile) -> float:
    """Operations of a pass whose samples are padded to the longest of them."""
    longest = max(sizes[number].tokens for number in one)
    padded = (replace(sizes[number], tokens=longest) for number in one)
    return sum(shape.operations(size, pictures=not found.cached) for size in padded)


def _side(value: object) -> int:
    return int(value[0]) if isinstance(value, (list, tuple)) else int(value)  # type: ignore[call-overload]
