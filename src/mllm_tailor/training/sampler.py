"""Which samples make up which optimizer step: a pure function of (seed, epoch), so that resuming needs no memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mllm_tailor.recipe import Train


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """The samples 0 … count-1 in the order of one epoch; each occurs once."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return tuple(generator.permutation(count).tolist())


@lru_cache(maxsize=4)
def epoch_steps(seed: int, epoch: int, batch: int, kinds: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """The steps of one epoch when each holds samples of one kind; sample n is of `kinds[n]`.

    Every kind is cut in the epoch's order, its last step holding what is left; then the steps are shuffled, so that a
    kind's steps lie spread over the epoch.
    """
    order = epoch_order(seed, epoch, len(kinds))
    steps = []
    for kind in sorted(set(kinds)):
        own = tuple(number for number in order if kinds[number] == kind)
        steps += [own[start : start + batch] for start in range(0, len(own), batch)]
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, 1])))
    return tuple(steps[place] for place in generator.permutation(len(steps)).tolist())


@dataclass(frozen=True)
class BatchSchedule:
    """All optimizer steps of a training: `batch` samples each, the last of an epoch (and kind) what is left."""

    count: int  # samples
    batch: int  # samples a step
    epochs: float
    seed: int
    kinds: tuple[str, ...] = ()  # of each sample, where a step may not mix them

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every sample occurs once."""
        counts = Counter(self.kinds).values() if self.kinds else (self.count,)
        return sum(math.ceil(count / self.batch) for count in counts)

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return max(1, round(self.epochs * self.steps_per_epoch))

    def samples(self, step: int) -> tuple[int, ...]:
        """Samples of optimizer step `step` (from 0)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self.kinds:
            return epoch_steps(self.seed, epoch, self.batch, self.kinds)[place]
        return epoch_order(self.seed, epoch, self.count)[place * self.batch : (place + 1) * self.batch]

    def epoch(self, step: int) -> int:
        """The epoch (from 0) of a step."""
        return step // self.steps_per_epoch

    def ends(self, every: float) -> frozenset[int]:
        """Numbers of finished steps after which `every` epochs have passed, and the last of all."""
        span = every * self.steps_per_epoch
        marks = {round(number * span) for number in range(1, int(self.steps / span) + 1)}
        return frozenset(marks - {0} | {self.steps})


def make_batch_schedule(modalities: Sequence[str], settings: Train, seed: int) -> BatchSchedule:
    """The course of a training over samples of these modalities."""
    kinds = tuple(modalities) if settings.one_modality else ()
    return BatchSchedule(len(modalities), settings.batch_size, settings.passes(len(modalities)), seed, kinds)


def micro_batches(
    samples: Sequence[int], tokens: Sequence[int], *, most: int | None, budget: int, padding: int | None = None
) -> list[tuple[int, ...]]:
    """Cut a step's samples into forward passes of similar length, so that little is padding.

    `tokens` are their lengths. A pass has at most `most` samples or, when that is None, at most `budget` tokens,
    padding included, and no sample with more than `padding` tokens of it (one sample is always allowed).
    """
    ranked = sorted(range(len(samples)), key=lambda place: (-tokens[place], place))
    passes: list[list[int]] = []
    longest = 0

    def fits(place: int) -> bool:
        count = len(passes[-1])
        if most is not None:
            return count < most
        return (count + 1) * longest <= budget and (padding is None or longest - tokens[place] <= padding)

    for place in ranked:
        if not passes or not fits(place):
            passes.append([])
            longest = tokens[place]
        passes[-1].append(place)
    return [tuple(samples[place] for place in group) for group in passes]


def epoch_passes(
    course: BatchSchedule, tokens: Sequence[int], *, most: int | None, budget: int | None, padding: int | None
) -> list[tuple[int, ...]]:
    """The forward passes of the first epoch, see `micro_batches`; without a budget each step is one."""
    found: list[tuple[int, ...]] = []
    for step in range(min(course.steps, course.steps_per_epoch)):
        chosen = course.samples(step)
        limit = len(chosen) if budget is None else most
        lengths = [tokens[number] for number in chosen]
        found += micro_batches(chosen, lengths, most=limit, budget=budget or 0, padding=padding)
    return found


def chunked(count: int, size: int) -> list[tuple[int, ...]]:
    """0 … count-1 in order, `size` at a time."""
    return [tuple(range(start, min(start + size, count))) for start in range(0, count, size)]


def share(passes: Sequence[tuple[int, ...]], rank: int, ranks: int) -> Iterator[tuple[int, ...]]:
    """The forward passes of one of several processes."""
    yield from passes[rank::ranks]


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of dropout and every other chance within one step: nothing before the step can change it."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
