"""From a recipe to phrased samples in their three parts, with every sample accounted for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.data import Dataset, Examination, Fault, examine, exclusions, read_samples, split, split_dev
from mllm_tailor.recipe import Recipe
from mllm_tailor.tasks import Task, reading_samples

SHOWN_FAULTS = 20


@dataclass(frozen=True)
class Excluded:
    """A sample that takes no part, and why."""

    id: str
    source: str
    reason: str


@dataclass(frozen=True)
class Job:
    """The samples of a run: trained on, used to choose the best epoch, and held out for the final score.

    What is trained on is phrased; the others are as the data has them, since prediction phrases what it is asked.
    """

    recipe: Recipe
    task: Task
    dataset: Dataset
    train: tuple[Sample, ...]
    aloud: tuple[Sample, ...]  # training samples once more, as a reading task
    dev: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    excluded: tuple[Excluded, ...]
    examination: Examination | None

    def parts(self) -> dict[str, tuple[Sample, ...]]:
        """The parts by name."""
        return {"train": self.train, "aloud": self.aloud, "dev": self.dev, "held_out": self.held_out}


def read_parts(recipe: Recipe, faults: list[Fault]) -> tuple[Dataset, list[Sample], list[Sample]]:
    """The data set and its two sides. Rows that cannot be read are collected in `faults`."""
    dataset = read_samples(recipe.data.train, recipe.data.layout, on_fault=faults.append)
    train, held_out = split(dataset, recipe.data.held_out, recipe.seed, on_fault=faults.append)
    return dataset, list(train), list(held_out)


def prepare(recipe: Recipe, task: Task, *, exclude_faulty: bool, decode: bool = True) -> Job:
    """Read, split, examine, phrase.

    Raises:
        DataError: listing the faults by row, unless `exclude_faulty` says to go on without the faulty samples.
    """
    faults: list[Fault] = []
    dataset, train, held_out = read_parts(recipe, faults)
    limited: list[Excluded] = []
    train = _limit(train, recipe.data.limit, recipe.seed, "data.limit", limited)
    held_out = _limit(held_out, recipe.data.limit_held_out, recipe.seed, "data.limit_held_out", limited)
    examination = examine(train, held_out, task, faults=faults, decode=decode)
    dropped = exclusions(examination)
    errors = examination.errors()
    if errors and not exclude_faulty and recipe.data.faulty == "refuse":
        raise DataError(refusal(errors))
    keep_train = [sample for sample in train if sample.id not in dropped]
    keep_held = [sample for sample in held_out if sample.id not in dropped]
    if not keep_train or not keep_held:
        raise DataError(f"{recipe.data.train}: nothing is left to {'train on' if not keep_train else 'score'}")
    learned, dev = split_dev(keep_train, recipe.data.dev, recipe.seed)
    aloud = reading_samples(learned, recipe.data.transcripts, recipe.seed)
    sources = {sample.id: sample.source for sample in (*train, *held_out)}
    excluded = [Excluded(identifier, sources.get(identifier, ""), reason) for identifier, reason in dropped.items()]
    unread = [
        Excluded(fault.sample_id or "", fault.source, fault.problem) for fault in faults if fault.severity == "error"
    ]
    return Job(
        recipe,
        task,
        dataset,
        tuple(map(task.phrase, learned)),
        tuple(aloud),
        dev,
        tuple(keep_held),
        tuple({(item.id, item.source): item for item in (*limited, *excluded, *unread)}.values()),
        examination,
    )


def refusal(errors: Sequence[Fault]) -> str:
    """Faults by row, and the two ways on."""
    lines = [f"{fault.source}: {fault.problem} — {fault.mend}" for fault in errors[:SHOWN_FAULTS]]
    if len(errors) > SHOWN_FAULTS:
        lines.append(f"… and {len(errors) - SHOWN_FAULTS} more (`tailor check RECIPE` lists them all)")
    lines.append("Mend these rows, or pass --exclude-faulty to go on without them (each gets a line in the ledger).")
    return f"{len(errors)} faults in the data:\n" + "\n".join(lines)


def _limit(samples: list[Sample], limit: int | None, seed: int, setting: str, excluded: list[Excluded]) -> list[Sample]:
    """A seeded choice of `limit` samples that does not depend on their order; the others go to the ledger."""
    if limit is None or limit >= len(samples):
        return samples
    ranked = sorted(samples, key=lambda sample: hashlib.sha256(f"{seed}:{sample.id}".encode()).digest())
    chosen = {sample.id for sample in ranked[:limit]}
    excluded += [
        Excluded(sample.id, sample.source, f"beyond {setting}={limit}") for sample in samples if sample.id not in chosen
    ]
    return [sample for sample in samples if sample.id in chosen]
