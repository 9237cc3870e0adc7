"""Estimate the cost of a run beforehand: a few micro-batches of the real model are profiled and extrapolated.

Micro-batches are scaled by their arithmetic: a transformer does about 2 operations per weight and token in the forward
pass and 4 in the backward pass where gradients flow (Kaplan et al. 2020, section 2.1), plus attention.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from mllm_tailor.core.device import free_memory, pick_device
from mllm_tailor.models import Length, LoadedModel
from mllm_tailor.recipe import Train
from mllm_tailor.recipe.optimizer_table import TABLE
from mllm_tailor.run.dataset import Splits
from mllm_tailor.run.ledger import measure
from mllm_tailor.run.predict import open_for_training
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.rollouts import make_sampler
from mllm_tailor.training import StepProfile, TrainingConfig, is_data_parallel, profile_step

MIN_SHARED_SECONDS = 120.0  # of training, from which further processes pay: each imports and loads a model
MEMORY_SHARE = 0.8  # of the free memory, for all processes
FORWARD = 1 / 3  # of a training pass: the backward pass takes twice as long
TIMED_GROUPS = 2  # samples to which replies are sampled to estimate how long that takes
MIN_LENGTH_RATIO = 1.3  # in operations, from which the longest sample says more about slope than about noise


@dataclass(frozen=True)
class CostEstimate:
    """Estimated bytes and seconds."""

    peak_bytes: int
    training_seconds: float  # of all steps, sampling included, or the recipe's limit where that is less
    vision_seconds: float  # of the vision side over the training images, where it runs once
    scoring_seconds: float  # of base and tuned model, in every decoding mode
    micro_batch_samples: int  # samples in the largest micro-batch
    processes: int = 1  # worker processes that train, each with its own model; `peak_bytes` is of all
    trainings: int = 1  # of a whole run: in cross-validation one for each fold, and the final one

    def row(self) -> dict[str, Any]:
        """Plain values for cost_estimate.json."""
        return asdict(self)


@dataclass(frozen=True)
class Shape:
    """What the arithmetic of a micro-batch depends on."""

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

    def operations(self, length: Length, *, vision: bool) -> float:
        """Forward operations of a sample; `vision`: the vision side included."""
        text = length.tokens * (2 * self.weights + 2 * length.tokens * self.width * self.layers)
        patches = length.tiles * self.patches_per_tile if vision else 0
        attention = 4 * self.patches_per_tile * self.vision_width * self.vision_layers
        return float(text + patches * (2 * self.vision_weights + attention))


def estimate_cost(
    run: ResolvedRun, splits: Splits, scoring_seconds: float, lengths: Mapping[str, Length] | None = None
) -> CostEstimate:
    """The costs of a run on this machine; `lengths` of its samples by id, where they are known already.

    Raises:
        torch.OutOfMemoryError: when not even one sample fits.
    """
    model, method, recipe = open_for_training(run), run.method, run.recipe
    method.apply(model)
    lengths = measure(model, run.task, splits) if lengths is None else lengths
    samples = list(splits.learned)
    sizes = [lengths[sample.id] for sample in samples]
    profile = profile_step(model, samples, sizes, TrainingConfig.from_recipe(recipe))
    sampling = sampling_seconds(run, model, splits)
    estimate = extrapolate(profile, Shape.of(model), sizes, recipe.train, len(splits.train), sampling)
    tiles = {sample.media: size.tiles for sample, size in zip(samples, sizes, strict=True)}  # each image counts once
    estimate = replace(
        estimate, vision_seconds=profile.vision_seconds * sum(tiles.values()), scoring_seconds=scoring_seconds
    )
    processes = count_processes(run, estimate)
    sharing = processes if pick_device(run.model.device).type == "cpu" else 1  # of one memory; a GPU has its own
    return replace(estimate, processes=processes, peak_bytes=sharing * estimate.peak_bytes)


def count_processes(run: ResolvedRun, estimate: CostEstimate) -> int:
    """How many processes train: as the recipe says; or on a CPU, as cores, micro-batches and memory allow.

    `estimate` is of a single process; several are a little faster than its threads.
    """
    wanted = run.recipe.train.processes
    if wanted != "auto":
        return wanted
    on_cpu = pick_device(run.model.device).type == "cpu"
    if not on_cpu or single_process_reason(run) or estimate.training_seconds < MIN_SHARED_SECONDS:
        return 1
    micro_batches = run.recipe.train.batch_size // max(1, estimate.micro_batch_samples)
    fitting = int(MEMORY_SHARE * free_memory(torch.device("cpu"))) // max(1, estimate.peak_bytes)
    return max(1, min(torch.get_num_threads(), micro_batches, fitting))


def single_process_reason(run: ResolvedRun) -> str:
    """Why this training needs a single process here; empty where it does not."""
    train = run.recipe.train
    optimizer = run.method.optimizer or train.optimizer
    if TABLE[optimizer].gradients != "all":
        return f"{optimizer} keeps no gradients that could be summed"
    if not is_data_parallel(run.method, train, run.recipe.task_name):
        return "its objective needs a single process"
    return ""


def answers_per_sample(train: Train) -> int:
    """How many answers to a sample an objective reads side by side in a training step."""
    if train.reward is not None:
        return train.reward.group_size
    if train.prefer is not None:
        return 3 if train.prefer.loss == "kto" else 2  # right, wrong, and of kto a mismatched one
    return 1


def forward_share(train: Train) -> float:
    """Forward passes without gradients in a step, as a share of a training pass over the same answers."""
    twice = (train.reward is not None and train.reward.kl_weight > 0) or (
        train.prefer is not None and train.prefer.loss == "kto"
    )
    return FORWARD if twice else 0.0


def sampling_seconds(run: ResolvedRun, model: LoadedModel, splits: Splits) -> float:
    """To sample and score the replies to one training sample, timed on a few; 0 where the objective samples none."""
    sampling = run.recipe.train.sampling
    timed = splits.phrased[:TIMED_GROUPS]
    if sampling is None or not timed:
        return 0.0
    was_training = model.model.training
    model.model.eval()
    started = time.perf_counter()
    make_sampler(run, sampling, model, None)(timed, run.recipe.seed)
    seconds = time.perf_counter() - started
    model.model.train(was_training)
    return seconds / len(timed)


def extrapolate(
    profile: StepProfile,
    shape: Shape,
    sizes: Sequence[Length],
    train: Train,
    num_samples: int,
    sampling_seconds: float = 0.0,
) -> CostEstimate:
    """From the profiled micro-batches to all; `num_samples` make up an epoch's number of steps.

    `sampling_seconds` are those of the replies to one sample; replies are taken to be as long as the labels.
    """
    costs = [shape.operations(size, vision=not profile.cached) for size in sizes]
    answers = answers_per_sample(train)
    updates = train.reward.updates if train.reward is not None else 1
    rounds = train.passes(num_samples) / (updates if train.steps is not None else 1)
    passes = rounds * updates * sum(_sample_seconds(cost, costs, profile) for cost in costs)
    drawn = rounds * num_samples * sampling_seconds
    training = answers * passes * (1 + forward_share(train)) + drawn + profile.steps * profile.update_seconds
    if train.max_minutes is not None:
        training = min(training, 60 * train.max_minutes)
    if train.max_cpu_minutes is not None:  # the fewest minutes that use up the CPU time
        training = min(training, 60 * train.max_cpu_minutes)
    largest = max(_padded_operations(indices, sizes, shape, profile) for indices in profile.micro_batches)
    together = answers * _padded_operations((profile.longest,), sizes, shape, profile)  # never in two micro-batches
    largest = max(largest, together) if answers > 1 else largest
    profiled = max(_padded_operations(indices, sizes, shape, profile) for indices in profile.profiled)
    added = profile.standing_bytes + profile.pass_bytes * max(1.0, largest / profiled)
    peak = profile.held_bytes + round(profile.slack * added)
    return CostEstimate(peak, training, 0.0, 0.0, max(map(len, profile.micro_batches)))


def _sample_seconds(cost: float, costs: Sequence[float], profile: StepProfile) -> float:
    """On the line through the median and the longest sample, whose shares of attention differ."""
    median_cost = sum(costs[index] for index in profile.timed) / len(profile.timed)
    seconds = profile.pass_seconds / len(profile.timed)
    longest_cost = costs[profile.longest]
    if not profile.longest_seconds or longest_cost < MIN_LENGTH_RATIO * median_cost:
        return seconds * cost / median_cost
    slope = max(0.0, profile.longest_seconds - seconds) / (longest_cost - median_cost)
    return max(seconds + slope * (cost - median_cost), 0.0)


def _padded_operations(indices: Sequence[int], sizes: Sequence[Length], shape: Shape, profile: StepProfile) -> float:
    """Operations of a micro-batch whose samples are padded to the longest of them."""
    longest = max(sizes[index].tokens for index in indices)
    padded = (replace(sizes[index], tokens=longest) for index in indices)
    return sum(shape.operations(size, vision=not profile.cached) for size in padded)


def _side(value: object) -> int:
    return int(value[0]) if isinstance(value, (list, tuple)) else int(value)  # type: ignore[call-overload]
