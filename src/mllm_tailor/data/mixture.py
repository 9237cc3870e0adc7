"""Further sources of training samples: mixed in by weight, repeats and limits, and all of them accounted for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.leaks import find_shared
from mllm_tailor.data.read import read_samples
from mllm_tailor.data.validate import validate
from mllm_tailor.recipe import Source
from mllm_tailor.tasks import DataDependentTask, Task


@dataclass(frozen=True)
class Amount:
    """The samples of one source an epoch holds (some several times), those left out, and why."""

    samples: tuple[Sample, ...]
    left_out: tuple[Sample, ...]
    reason: str


def source_names(sources: Sequence[Source]) -> list[str]:
    """Every source's name: its own, or its folder's.

    Raises:
        RecipeError: when two are the same.
    """
    names = [source.name or Path(source.train).name or source.train for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"data.sources: two sources are called `{name}` — give each its own `name`")
    return names


def read_source(
    source: Source, name: str, task: Task, held_out: Sequence[Sample], *, decode: bool
) -> tuple[Task, list[Sample], list[DataIssue]]:
    """Its task, its samples, their ids led by the source's name, and every fault: rows, labels, files, leaks.

    A task of its own takes from these samples what its settings leave to the data. A leak is a file of `held_out`.

    Raises:
        DataError: when nothing in it can be read.
    """
    faults: list[DataIssue] = []
    dataset = read_samples(source.train, source.layout, on_issue=faults.append, media_root=source.media_root)
    samples = [replace(sample, id=f"{name}/{sample.id}") for sample in dataset.samples]
    if source.task is not None and isinstance(task, DataDependentTask):
        task = task.resolve_from(samples)
    validation = validate(samples, (), task, faults=faults, decode=decode)
    return task, samples, [*validation.faults, *find_shared(samples, held_out, "in this recipe")]


def mix(samples: Sequence[Sample], source: Source, beside: int, seed: int) -> Amount:
    """What an epoch holds of a source beside `beside` samples of `data.train`: a pure function of ids and seed.

    Each sample occurs equally often, but for a seeded choice that makes up the rest.
    """
    said, wanted = "", len(samples)
    if source.weight is not None:
        said, wanted = f"weight={source.weight:g}", max(1, round(source.weight * beside))
    elif source.repeat is not None:
        said, wanted = f"repeat={source.repeat:g}", max(1, round(source.repeat * len(samples)))
    times, rest = divmod(wanted, max(1, len(samples)))
    once_more = {sample.id for sample in ranked(samples, f"{seed}:mix")[:rest]}
    chosen = [sample for sample in samples if sample.id in once_more]
    left_out = () if times else tuple(sample for sample in samples if sample.id not in once_more)
    return Amount((*(list(samples) * times), *chosen), left_out, f"beyond {said} of its source")


def ranked(samples: Sequence[Sample], salt: str) -> list[Sample]:
    """The samples in an order that depends on ids alone: its first n are a seeded choice, nested as n grows."""
    return sorted(samples, key=lambda sample: hashlib.sha256(f"{salt}:{sample.id}".encode()).digest())
