"""What a pass costs, measured before the training on the real model and samples: bytes and seconds.

Shapes alone foretell neither the copies an attention kernel makes nor what an allocator keeps: on the embedded model
a count of saved tensors was half of what the process really grew by. One real pass is exact and takes seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.device import computes_in_bf16, watch_memory
from mllm_tailor.methods import MethodSet
from mllm_tailor.models import Length, LoadedModel, embed_pictures, embed_texts, encode
from mllm_tailor.models.patches.fused_lora import fused_lora
from mllm_tailor.recipe import Recipe
from mllm_tailor.training.batches import Batch, collate_right, to_device
from mllm_tailor.training.memory import most_padding, prepare_memory
from mllm_tailor.training.objectives.cross_entropy import answer_loss
from mllm_tailor.training.optim.mezo import replay
from mllm_tailor.training.optim.registry import ONE_PASS, TABLE, OptimizerConfig, ParamGroup, make_optimizer_step
from mllm_tailor.training.precision import computing, frozen_in_bf16
from mllm_tailor.training.sampler import epoch_passes, make_batch_schedule
from mllm_tailor.training.trainable import trained_weights
from mllm_tailor.training.vision_cache import as_inputs, can_cache, see

TOGETHER_ON_CPU = 2  # samples of the timed pass; more side by side cost as much each
SLACK_ON_CPU = 1.3  # measured: 1.22 to 1.36 over five settings of benchmarks/forecast.py, within the first steps
VARIED = 4  # passes whose memory is measured on a CPU, where an allocator keeps what other lengths cannot use
ENOUGH = 10.0  # seconds of them
COPIED = 8_000_000  # weights on which an update is timed


@dataclass(frozen=True)
class StepProfile:
    """Costs of a training's passes."""

    held: int  # bytes before the first pass, weights included
    standing: int  # bytes of gradients and optimizer state
    pass_bytes: int  # the most that passes over `profiled` rose by
    profiled: tuple[tuple[int, ...], ...]  # numbers of the samples of each
    longest: int  # the number of the longest sample
    passes: tuple[tuple[int, ...], ...]  # of one epoch, as the training will make them
    pass_seconds: float  # of a pass over `timed`
    timed: tuple[int, ...]  # numbers of the samples of the timed pass
    cached: bool  # whether the vision side runs once, outside the passes
    seeing_seconds: float = 0.0  # of the vision side for one tile, where it does
    longest_seconds: float = 0.0  # of a pass over the longest sample alone; 0: not measured
    update_seconds: float = 0.0  # of the optimizer, in each step
    steps: int = 0  # optimizer steps in all
    slack: float = 1.0  # times what the training adds: memory an allocator keeps in pieces that fit nothing


def profile_step(
    model: LoadedModel, method: MethodSet, samples: Sequence[Conversation], lengths: Sequence[Length], recipe: Recipe
) -> StepProfile:
    """Run passes as the training will, without a step; the weights stay as they are.

    Raises:
        torch.OutOfMemoryError: when not even one pass over the longest sample fits.
    """
    with frozen_in_bf16(model, computes_in_bf16(recipe.model.dtype, model.device)):
        return _profile_step(model, method, samples, lengths, recipe)


def _profile_step(
    model: LoadedModel, method: MethodSet, samples: Sequence[Conversation], lengths: Sequence[Length], recipe: Recipe
) -> StepProfile:
    settings, device = recipe.train, model.device
    optimizer = method.optimizer or settings.optimizer
    seeing = replace(model, tiles=settings.tiles or model.tiles)
    ranked = sorted(range(len(samples)), key=lambda number: (lengths[number].tokens, number))
    longest, median = ranked[-1], ranked[len(ranked) // 2]
    budget = prepare_memory(model, settings, lengths[longest].tokens)
    course = make_batch_schedule([sample.modality for sample in samples], settings, recipe.seed)
    passes = tuple(
        epoch_passes(
            course,
            [length.tokens for length in lengths],
            most=settings.micro_batch_size,
            budget=budget if optimizer not in ONE_PASS else None,
            padding=most_padding(device),
        )
    )
    bf16 = computes_in_bf16(recipe.model.dtype, device)
    cached = can_cache(model, samples, settings.augment)
    seconds_a_tile = 0.0

    def ready(numbers: Sequence[int]) -> Batch:
        nonlocal seconds_a_tile
        batch = collate_right([encode(samples[number], seeing, loss=settings.loss) for number in numbers], seeing)
        if cached and "pixel_values" in batch:
            pixels = batch.pop("pixel_values")
            began = time.perf_counter()
            features = see(model, pixels, bf16)
            seconds_a_tile = (time.perf_counter() - began) / len(pixels)
            batch["image_features"] = features.flatten(0, 1)[None]
        return as_inputs(to_device(batch, device))

    def once(batch: Batch) -> float:
        began = time.perf_counter()
        graded = torch.set_grad_enabled(TABLE[optimizer].gradients != "none")
        with fused_lora(model.model):  # the backward pass too, which may compute layers again
            with graded, computing(device, bf16):
                loss = _loss(model, batch)
            if loss.requires_grad:
                loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    gradients, states = _standing(model, optimizer)
    profiled: list[tuple[int, ...]] = [(longest,)]
    with watch_memory(device) as memory:
        batch = ready([longest])
        spent = once(batch)
        for numbers in _largest(passes, [length.tokens for length in lengths], VARIED if device.type == "cpu" else 1):
            if len(profiled) > 1 and spent > ENOUGH:
                break
            spent += once(ready(numbers))
            profiled.append(numbers)
    alone = once(batch)  # the first pass also set up what is set up once
    model.model.zero_grad(set_to_none=True)
    most = max(map(len, passes))
    timed = (median,) * (min(most, TOGETHER_ON_CPU) if device.type == "cpu" else most)
    batch = ready(timed)
    looks = TABLE[optimizer].looks(settings.max_grad_norm)
    seconds = once(batch) * looks
    model.model.zero_grad(set_to_none=True)
    own = max(0, memory.rise - sum(gradients))
    kept = {"all": sum(gradients), "one": max(gradients, default=0), "none": 0}[TABLE[optimizer].gradients]
    return StepProfile(
        memory.before, states + kept, own, tuple(profiled), longest, passes, seconds, timed, cached, seconds_a_tile,
        alone * looks, _update_seconds(model, method, recipe), course.steps,
        SLACK_ON_CPU if device.type == "cpu" else 1.0,
    )  # fmt: skip


def _update_seconds(model: LoadedModel, method: MethodSet, recipe: Recipe) -> float:
    """Of one update by the optimizer, measured on copies of some of the trained weights and zero gradients."""
    name = method.optimizer or recipe.train.optimizer
    if name in ONE_PASS:  # there the update is a part of the pass
        return 0.0
    weights = {name: weight for name, weight in trained_weights(model).items() if weight.requires_grad}
    copies: dict[str, nn.Parameter] = {}
    for own, weight in weights.items():
        if not copies or sum(one.numel() for one in copies.values()) + weight.numel() <= COPIED:
            copies[own] = nn.Parameter(weight.detach().clone())
    share = sum(one.numel() for one in copies.values()) / sum(one.numel() for one in weights.values())
    group = ParamGroup(copies, recipe.train.learning_rate or 1e-4, recipe.train.weight_decay)
    if TABLE[name].gradients == "none":
        work, times = partial(replay, [group], [(0, 0.0, 1.0)]), 3 / share  # two trials and the step
    else:
        optimizer = make_optimizer_step(
            name, OptimizerConfig([group], recipe.train.max_grad_norm, nn.Module(), method.optimizer_options)
        )

        def passes(_: Any) -> float:
            for one in copies.values():
                one.grad = torch.zeros_like(one)
            return 0.0

        work, times = partial(optimizer.step, passes, 1.0, 0), 1 / share
    work()  # makes its state
    began = time.perf_counter()
    work()
    return times * (time.perf_counter() - began)


def _largest(passes: Sequence[tuple[int, ...]], tokens: Sequence[int], count: int) -> tuple[tuple[int, ...], ...]:
    """The passes of most tokens, padding included, one of each number of samples and tokens; `count` at most."""
    shapes: dict[tuple[int, int], tuple[int, ...]] = {}
    for one in passes:
        longest = max(tokens[number] for number in one)
        shapes.setdefault((len(one) * longest, len(one)), one)
    return tuple(shapes[shape] for shape in sorted(shapes, reverse=True)[:count])


def _loss(model: LoadedModel, batch: Batch) -> Tensor:
    """Something that uses all a pass computes; its value means nothing."""
    if model.family.compares:
        return embed_pictures(model, batch).sum() + embed_texts(model, batch).sum()
    summed, count = answer_loss(model.model, batch)
    return summed / max(1, count)


def _standing(model: LoadedModel, optimizer: str) -> tuple[list[int], int]:
    """Bytes of each gradient, and of all optimizer state."""
    weights = [weight for weight in trained_weights(model).values() if weight.requires_grad]
    gradients = [weight.numel() * weight.element_size() for weight in weights]
    return gradients, TABLE[optimizer].state_bytes * sum(weight.numel() for weight in weights)
