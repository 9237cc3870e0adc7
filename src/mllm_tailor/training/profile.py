"""Profile training steps before the training: bytes and seconds of micro-batches of the real model and samples.

Shapes alone predict neither the copies an attention kernel makes nor what an allocator keeps: on the embedded model, a
count of saved tensors gave half of the memory by which the process really grew. A real micro-batch takes seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.device import watch_memory
from mllm_tailor.models import Length, LoadedModel, embed_images, embed_texts, encode
from mllm_tailor.models.patches.fused_layers import fused_layers
from mllm_tailor.models.vision_cache import image_features
from mllm_tailor.recipe.optimizer_table import ONE_PASS, TABLE
from mllm_tailor.training.batches import Batch, collate_right, to_device
from mllm_tailor.training.config import TrainingConfig
from mllm_tailor.training.memory import max_padding, prepare_memory
from mllm_tailor.training.objectives.cross_entropy import answer_loss
from mllm_tailor.training.optim.mezo import replay
from mllm_tailor.training.optim.registry import OptimizerConfig, ParamGroup, make_optimizer_step
from mllm_tailor.training.precision import autocast, frozen_in_bf16
from mllm_tailor.training.sampler import epoch_micro_batches, make_batch_schedule
from mllm_tailor.training.trainable import trained_weights, tuning_method_of
from mllm_tailor.training.vision_cache import as_inputs, can_cache

CPU_TIMED_SAMPLES = 2  # of the timed micro-batch; on a CPU more samples side by side cost as much each
CPU_SLACK = 1.3  # measured: 1.22 to 1.36 over five settings of benchmarks/cost_estimate.py, within the first steps
CPU_SHAPES = 4  # micro-batches profiled on a CPU, whose allocator keeps memory that other lengths cannot use
MAX_PROFILE_SECONDS = 10.0  # spent on them
MAX_COPIED_WEIGHTS = 8_000_000  # on which an update is timed


@dataclass(frozen=True)
class StepProfile:
    """Measured costs of a training's micro-batches. Samples are given by their indices."""

    held_bytes: int  # before the first micro-batch, weights included
    standing_bytes: int  # of gradients and optimizer state
    pass_bytes: int  # the most by which a profiled micro-batch rose above them
    profiled: tuple[tuple[int, ...], ...]  # the profiled micro-batches
    longest: int  # the longest sample
    micro_batches: tuple[tuple[int, ...], ...]  # of an epoch, as the training will make them
    pass_seconds: float  # of the micro-batch `timed`
    timed: tuple[int, ...]
    cached: bool  # whether the vision side runs only once, outside the steps
    vision_seconds: float = 0.0  # of the vision side per tile, where it does
    longest_seconds: float = 0.0  # of a micro-batch of the longest sample alone; 0: not measured
    update_seconds: float = 0.0  # of the optimizer per step
    steps: int = 0  # optimizer steps in all
    slack: float = 1.0  # factor on what the training adds, for memory the allocator keeps in unusable pieces


def profile_step(
    model: LoadedModel, samples: Sequence[Conversation], lengths: Sequence[Length], config: TrainingConfig
) -> StepProfile:
    """Run micro-batches as the training will, without an update; the weights are unchanged.

    Raises:
        torch.OutOfMemoryError: when not even the longest sample fits.
    """
    with frozen_in_bf16(model, bf16=config.uses_bf16(model.device)):
        return _profile(_StepProfiler(model, samples, config), lengths, config)


class _StepProfiler:
    """Runs and times micro-batches of some samples."""

    def __init__(self, model: LoadedModel, samples: Sequence[Conversation], config: TrainingConfig) -> None:
        self.model, self.samples, self.config = model, samples, config
        self.tiled = replace(model, tiles=config.train.tiles or model.tiles)
        self.bf16 = config.uses_bf16(model.device)
        self.cached = can_cache(model, samples, augment=config.train.augment)
        self.optimizer = TABLE[_optimizer_name(model, config)]
        self.vision_seconds = 0.0  # per tile, of the last batch on which the vision side ran
        self.tile: Tensor | None = None  # (tokens, width): features of a tile

    def batch(self, indices: Sequence[int], *, vision: bool = True) -> Batch:
        """A micro-batch on the device; where features are cached, the vision side runs here.

        Without `vision`, which is not part of such a step, every tile has the features of one that was encoded.
        """
        encoded = [encode(self.samples[index], self.tiled, loss=self.config.train.loss) for index in indices]
        batch = collate_right(encoded, self.tiled)
        if self.cached and "pixel_values" in batch:
            pixels = batch.pop("pixel_values")
            if self.tile is None or vision:
                features = self._encode(pixels)
                self.tile = features[0].clone()
            else:
                features = self.tile.repeat(len(pixels), 1, 1)
            batch["image_features"] = features.flatten(0, 1)[None]
        return as_inputs(to_device(batch, self.model.device))

    def _encode(self, pixels: Tensor) -> Tensor:
        """(tiles, tokens, width) from (tiles, 3, height, width), timed."""
        started = time.perf_counter()
        with fused_layers(self.model.model):
            features = image_features(self.model, pixels, bf16=self.bf16)
        self.vision_seconds = (time.perf_counter() - started) / len(pixels)
        return features

    def seconds(self, batch: Batch) -> float:
        """Of one forward pass, and a backward pass where the optimizer needs one."""
        device, started = self.model.device, time.perf_counter()
        gradients = torch.set_grad_enabled(self.optimizer.gradients != "none")
        with fused_layers(self.model.model):  # the backward pass too, which may recompute layers
            with gradients, autocast(device, bf16=self.bf16):
                loss = _loss(self.model, batch)
            if loss.requires_grad:
                loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    def clear_gradients(self) -> None:
        """Free them."""
        self.model.model.zero_grad(set_to_none=True)


def _profile(profiler: _StepProfiler, lengths: Sequence[Length], config: TrainingConfig) -> StepProfile:
    model, on_cpu = profiler.model, profiler.model.device.type == "cpu"
    tokens = [length.tokens for length in lengths]
    ranked = sorted(range(len(tokens)), key=lambda index: (tokens[index], index))
    longest, median = ranked[-1], ranked[len(ranked) // 2]
    micro_batches, steps = _epoch(profiler, tokens, config)
    gradients, state_bytes = _standing_bytes(profiler)
    profiled: list[tuple[int, ...]] = [(longest,)]
    with watch_memory(model.device) as memory:
        batch = profiler.batch([longest])
        spent = profiler.seconds(batch)
        for indices in _largest(micro_batches, tokens, CPU_SHAPES if on_cpu else 1):
            if len(profiled) > 1 and spent > MAX_PROFILE_SECONDS:
                break
            # The largest micro-batch is the second, and shows the memory and, warmed up, the time of the vision side.
            spent += profiler.seconds(profiler.batch(indices, vision=len(profiled) == 1))
            profiled.append(indices)
    longest_seconds = profiler.seconds(batch)  # again: the first micro-batch also initialised kernels
    profiler.clear_gradients()
    most = max(map(len, micro_batches))
    timed = (median,) * (min(most, CPU_TIMED_SAMPLES) if on_cpu else most)
    pass_seconds = profiler.seconds(profiler.batch(timed, vision=False))
    profiler.clear_gradients()
    evaluations = profiler.optimizer.evaluations(config.train.max_grad_norm)
    kept = {"all": sum(gradients), "one": max(gradients, default=0), "none": 0}[profiler.optimizer.gradients]
    return StepProfile(
        held_bytes=memory.before,
        standing_bytes=state_bytes + kept,
        pass_bytes=max(0, memory.rise - sum(gradients)),
        profiled=tuple(profiled),
        longest=longest,
        micro_batches=micro_batches,
        pass_seconds=pass_seconds * evaluations,
        timed=timed,
        cached=profiler.cached,
        vision_seconds=profiler.vision_seconds,
        longest_seconds=longest_seconds * evaluations,
        update_seconds=_update_seconds(model, config),
        steps=steps,
        slack=CPU_SLACK if on_cpu else 1.0,
    )


def _epoch(
    profiler: _StepProfiler, tokens: Sequence[int], config: TrainingConfig
) -> tuple[tuple[tuple[int, ...], ...], int]:
    """The micro-batches of an epoch, and the optimizer steps in all."""
    model, settings = profiler.model, config.train
    budget = prepare_memory(model, settings, max(tokens))
    schedule = make_batch_schedule([sample.modality for sample in profiler.samples], settings, config.seed)
    micro_batches = epoch_micro_batches(
        schedule,
        tokens,
        max_samples=settings.micro_batch_size,
        token_budget=budget if _optimizer_name(model, config) not in ONE_PASS else None,
        max_padding=max_padding(model.device),
    )
    return tuple(micro_batches), schedule.steps


def _optimizer_name(model: LoadedModel, config: TrainingConfig) -> str:
    return tuning_method_of(model).optimizer or config.train.optimizer


def _update_seconds(model: LoadedModel, config: TrainingConfig) -> float:
    """Of one update by the optimizer, measured on copies of some trained weights and gradients of zero."""
    name = _optimizer_name(model, config)
    if name in ONE_PASS:  # the update is part of the backward pass
        return 0.0
    weights = {name: weight for name, weight in trained_weights(model).items() if weight.requires_grad}
    copies: dict[str, nn.Parameter] = {}
    for own, weight in weights.items():
        if not copies or _count(copies) + weight.numel() <= MAX_COPIED_WEIGHTS:
            copies[own] = nn.Parameter(weight.detach().clone())
    group = ParamGroup(copies, config.train.learning_rate or 1e-4, config.train.weight_decay)
    update, times = _make_update(name, group, tuning_method_of(model).optimizer_options, config)
    update()  # creates the optimizer's state
    started = time.perf_counter()
    update()
    return times * (time.perf_counter() - started) * _count(weights) / _count(copies)


def _make_update(
    name: str, group: ParamGroup, options: dict[str, object], config: TrainingConfig
) -> tuple[Callable[[], object], int]:
    """An update of the group's weights, and how many of them a step takes."""
    if TABLE[name].gradients == "none":
        return partial(replay, [group], [(0, 0.0, 1.0)]), 3  # two perturbations and the step
    optimizer = make_optimizer_step(name, OptimizerConfig([group], config.train.max_grad_norm, nn.Module(), options))

    def set_gradients(_: object) -> float:
        for weight in group.weights.values():
            weight.grad = torch.zeros_like(weight)
        return 0.0

    return partial(optimizer.step, set_gradients, 1.0, 0), 1


def _count(weights: dict[str, nn.Parameter]) -> int:
    return sum(weight.numel() for weight in weights.values())


def _largest(
    micro_batches: Sequence[tuple[int, ...]], tokens: Sequence[int], count: int
) -> tuple[tuple[int, ...], ...]:
    """The micro-batches with most tokens, padding included, one of each shape; `count` at most."""
    shapes: dict[tuple[int, int], tuple[int, ...]] = {}
    for indices in micro_batches:
        longest = max(tokens[index] for index in indices)
        shapes.setdefault((len(indices) * longest, len(indices)), indices)
    return tuple(shapes[shape] for shape in sorted(shapes, reverse=True)[:count])


def _loss(model: LoadedModel, batch: Batch) -> Tensor:
    """A scalar that depends on all a micro-batch computes; its value means nothing."""
    if model.family.compares:
        return embed_images(model, batch).sum() + embed_texts(model, batch).sum()
    total, count = answer_loss(model.model, batch)
    return total / max(1, count)


def _standing_bytes(profiler: _StepProfiler) -> tuple[list[int], int]:
    """Bytes of each gradient, and of all optimizer state."""
    weights = [weight for weight in trained_weights(profiler.model).values() if weight.requires_grad]
    gradients = [weight.numel() * weight.element_size() for weight in weights]
    return gradients, profiler.optimizer.state_bytes * sum(weight.numel() for weight in weights)
