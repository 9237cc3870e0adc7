"""Which samples make up which optimizer step: a pure function of (seed, epoch), so resuming needs no saved state."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mllm_tailor.recipe import Train


@dataclass(frozen=True)
class StreamWindow:
    """How samples on disk are shuffled."""

    shard: int = 1024  # neighbouring samples that stay together
    buffer: int = 4096  # samples that are mixed


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """The indices 0 … count-1 in the order of one epoch; each occurs once."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return tuple(generator.permutation(count).tolist())


@lru_cache(maxsize=4)
def stream_order(seed: int, epoch: int, count: int, window: StreamWindow) -> np.ndarray:
    """The same for samples that are read from disk in shards: near in the order is near on the disk.

    The shards are shuffled, and then the samples within each buffer of the sequence that results.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, 2])))
    shards = generator.permutation(math.ceil(count / window.shard))
    order = np.concatenate(
        [np.arange(shard * window.shard, min(count, (shard + 1) * window.shard)) for shard in shards]
    )
    for start in range(0, count, window.buffer):
        generator.shuffle(order[start : start + window.buffer])
    return order


@lru_cache(maxsize=4)
def epoch_steps(seed: int, epoch: int, batch_size: int, modalities: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """The steps of one epoch when each holds samples of one modality; sample i is of `modalities[i]`.

    Every modality is cut in the epoch's order, its last step holding what is left; then the steps are shuffled, so that
    the steps of a modality are spread over the epoch.
    """
    order = epoch_order(seed, epoch, len(modalities))
    steps = []
    for modality in sorted(set(modalities)):
        own = tuple(index for index in order if modalities[index] == modality)
        steps += [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, 1])))
    return tuple(steps[index] for index in generator.permutation(len(steps)).tolist())


@dataclass(frozen=True)
class BatchSchedule:
    """All optimizer steps of a training: `batch_size` samples each, fewer in the last of an epoch (and modality)."""

    num_samples: int
    batch_size: int  # samples per step
    epochs: float
    seed: int
    modalities: tuple[str, ...] = ()  # of each sample, where a step may not mix them
    updates: int = 1  # consecutive steps on the same samples
    window: StreamWindow | None = None  # of samples that are read from disk; None: an epoch draws from all

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every sample occurs once, or `updates` times in a row."""
        counts = Counter(self.modalities).values() if self.modalities else (self.num_samples,)
        return self.updates * sum(math.ceil(count / self.batch_size) for count in counts)

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return max(1, round(self.epochs * self.steps_per_epoch))

    def samples(self, step: int) -> tuple[int, ...]:
        """Indices of the samples of optimizer step `step` (from 0)."""
        epoch, index = divmod(step // self.updates, self.steps_per_epoch // self.updates)
        if self.modalities:
            return epoch_steps(self.seed, epoch, self.batch_size, self.modalities)[index]
        chosen = slice(index * self.batch_size, (index + 1) * self.batch_size)
        if self.window is not None:
            return tuple(stream_order(self.seed, epoch, self.num_samples, self.window)[chosen].tolist())
        return epoch_order(self.seed, epoch, self.num_samples)[chosen]

    def epoch(self, step: int) -> int:
        """The epoch (from 0) of a step."""
        return step // self.steps_per_epoch

    def ends(self, every: float) -> frozenset[int]:
        """Numbers of finished steps after which `every` epochs have passed, and the last of all."""
        span = every * self.steps_per_epoch
        marks = {round(number * span) for number in range(1, int(self.steps / span) + 1)}
        return frozenset(marks - {0} | {self.steps})


def make_batch_schedule(
    modalities: Sequence[str], settings: Train, seed: int, *, updates: int = 1, window: StreamWindow | None = None
) -> BatchSchedule:
    """The schedule of a training over samples of these modalities, `updates` steps on each batch of them."""
    separate = tuple(modalities) if settings.one_modality else ()
    epochs = settings.passes(len(modalities)) / (updates if settings.steps is not None else 1)
    return BatchSchedule(len(modalities), settings.batch_size, epochs, seed, separate, updates, window)


def micro_batches(
    samples: Sequence[int],
    tokens: Sequence[int],
    *,
    max_samples: int | None,
    token_budget: int,
    max_padding: int | None = None,
) -> list[tuple[int, ...]]:
    """Cut a step's samples into micro-batches of similar length, so that little is padding.

    `tokens` are their lengths. A micro-batch has at most `max_samples` samples or, when that is None, at most
    `token_budget` tokens including padding, and no sample with more than `max_padding` tokens of padding (a single
    sample is always allowed).
    """
    ranked = sorted(range(len(samples)), key=lambda index: (-tokens[index], index))
    groups: list[list[int]] = []
    longest = 0

    def fits(index: int) -> bool:
        count = len(groups[-1])
        if max_samples is not None:
            return count < max_samples
        within_padding = max_padding is None or longest - tokens[index] <= max_padding
        return (count + 1) * longest <= token_budget and within_padding

    for index in ranked:
        if not groups or not fits(index):
            groups.append([])
            longest = tokens[index]
        groups[-1].append(index)
    return [tuple(samples[index] for index in group) for group in groups]


def epoch_micro_batches(
    schedule: BatchSchedule,
    tokens: Sequence[int],
    *,
    max_samples: int | None,
    token_budget: int | None,
    max_padding: int | None,
) -> list[tuple[int, ...]]:
    """The micro-batches of the first epoch, see `micro_batches`; without a budget each step is a single one."""
    groups: list[tuple[int, ...]] = []
    for step in range(min(schedule.steps, schedule.steps_per_epoch)):
        samples = schedule.samples(step)
        limit = len(samples) if token_budget is None else max_samples
        lengths = [tokens[index] for index in samples]
        groups += micro_batches(
            samples, lengths, max_samples=limit, token_budget=token_budget or 0, max_padding=max_padding
        )
    return groups


def chunked(count: int, size: int) -> list[tuple[int, ...]]:
    """0 … count-1 in order, `size` at a time."""
    return [tuple(range(start, min(start + size, count))) for start in range(0, count, size)]


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of dropout and all other randomness within a step, independent of what happened before it."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
