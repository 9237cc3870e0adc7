"""From a recipe to phrased samples in their three parts, with every sample accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import read_jsonl
from mllm_tailor.core.sample import Sample
from mllm_tailor.data import (
    DataIssue,
    Dataset,
    ValidationResult,
    exclusions,
    mix,
    ranked,
    read_samples,
    read_source,
    source_names,
    split,
    split_dev,
    validate,
)
from mllm_tailor.recipe import Recipe, Source
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.run.slices import check_columns
from mllm_tailor.tasks import Task, make_task, open_task, transcription_samples

SHOWN_FAULTS = 20
EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Excluded:
    """A sample that takes no part, and why."""

    id: str
    source: str
    reason: str


@dataclass(frozen=True)
class MixtureSource:
    """What an epoch holds of one further source, phrased by the source's own task."""

    name: str
    samples: tuple[Conversation, ...]  # one that is seen several times stands here several times


@dataclass(frozen=True)
class Job:
    """The samples of a run: trained on, used to choose the best epoch, and held out for the final score.

    All are as the data state them; `learned` holds the conversations that are trained on.
    """

    recipe: Recipe
    task: Task
    dataset: Dataset
    train: tuple[Sample, ...]
    transcriptions: tuple[Conversation, ...]  # training samples once more, as a reading task
    dev: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    excluded: tuple[Excluded, ...]
    validation: ValidationResult | None
    mixed: tuple[MixtureSource, ...] = ()  # other sources, each with its own task

    @cached_property
    def phrased(self) -> tuple[Conversation, ...]:
        """The training samples as the model is shown them."""
        return tuple(map(self.task.phrase, self.train))

    @property
    def learned(self) -> tuple[Conversation, ...]:
        """Everything an epoch holds."""
        return (*self.phrased, *self.transcriptions, *(sample for source in self.mixed for sample in source.samples))

    def parts(self) -> dict[str, tuple[Sample | Conversation, ...]]:
        """The parts by name."""
        mixed = tuple(sample for source in self.mixed for sample in source.samples)
        parts: dict[str, tuple[Sample | Conversation, ...]] = {
            "train": self.train,
            "aloud": self.transcriptions,
            "mixed": mixed,
            "dev": self.dev,
            "held_out": self.held_out,
        }
        return {name: samples for name, samples in parts.items() if samples or name != "mixed"}


def read_parts(recipe: Recipe, faults: list[DataIssue]) -> tuple[Dataset, list[Sample], list[Sample]]:
    """The data set and its two sides. Rows that cannot be read are collected in `faults`."""
    dataset = read_samples(recipe.data.train, recipe.data.layout, on_issue=faults.append)
    train, held_out = split(dataset, recipe.data.held_out, recipe.seed, on_issue=faults.append)
    return dataset, list(train), list(held_out)


def prepare_again(run: RunFolder) -> Job:
    """The job of a run that has its ledger: who was excluded is read there, and no file is decoded a second time."""
    recipe = run.recipe()
    rows = [row for _, row in read_jsonl(run.ledger)] if run.ledger.is_file() else []
    known = {row["id"]: row["reason"] for row in rows if row["part"] == "excluded"}
    return prepare(recipe, make_task(recipe), exclude_faulty=True, decode=False, known=known)


def prepare(
    recipe: Recipe, task: Task, *, exclude_faulty: bool, decode: bool = True, known: Mapping[str, str] = EMPTY
) -> Job:
    """Read, split, examine, phrase. `known` are excluded as well: sample id to reason.

    Raises:
        DataError: listing the faults by row, unless `exclude_faulty` says to go on without the faulty samples.
    """
    faults: list[DataIssue] = []
    dataset, train, held_out = read_parts(recipe, faults)
    check_columns(recipe.score_by, held_out)
    limited: list[Excluded] = []
    train = _limit(train, recipe.data.limit, recipe.seed, "data.limit", limited)
    held_out = _limit(held_out, recipe.data.limit_held_out, recipe.seed, "data.limit_held_out", limited)
    validation = validate(train, held_out, task, faults=faults, decode=decode)
    sources = _read_sources(recipe, task, held_out, limited, decode=decode)
    validation = replace(validation, faults=(*validation.faults, *(fault for one in sources for fault in one.faults)))
    everyone = (*train, *held_out, *(sample for one in sources for sample in one.samples))
    own = {sample.id: sample.source for sample in everyone}
    dropped = exclusions(validation) | {sample: reason for sample, reason in known.items() if sample in own}
    errors = validation.errors()
    if errors and not exclude_faulty and recipe.data.faulty == "refuse":
        raise DataError(refusal(errors))
    keep_train = [sample for sample in train if sample.id not in dropped]
    keep_held = [sample for sample in held_out if sample.id not in dropped]
    if not keep_train or not keep_held:
        raise DataError(f"{recipe.data.train}: nothing is left to {'train on' if not keep_train else 'score'}")
    learned, dev = split_dev(keep_train, recipe.data.dev, recipe.seed)
    transcriptions = transcription_samples(learned, recipe.data.transcription_share, recipe.seed)
    mixed = tuple(_mixed(one, dropped, len(learned), recipe.seed, limited) for one in sources)
    rows = {fault.sample_id: fault.source for fault in errors} | own
    excluded = [Excluded(identifier, rows[identifier], reason) for identifier, reason in dropped.items()]
    unread = [Excluded("", fault.source, fault.problem) for fault in errors if fault.sample_id is None]
    return Job(
        recipe,
        task,
        dataset,
        tuple(learned),
        tuple(transcriptions),
        dev,
        tuple(keep_held),
        tuple({(item.id, item.source): item for item in (*limited, *excluded, *unread)}.values()),
        validation,
        mixed,
    )


@dataclass(frozen=True)
class _Read:
    """A source as read, before faulty samples are taken out."""

    name: str
    said: Source
    task: Task
    samples: list[Sample]
    faults: list[DataIssue]


def _read_sources(
    recipe: Recipe, task: Task, held_out: Sequence[Sample], limited: list[Excluded], *, decode: bool
) -> list[_Read]:
    found = []
    for source, name in zip(recipe.data.sources, source_names(recipe.data.sources), strict=True):
        own = open_task(*next(iter(source.task.items()))) if source.task else task
        own, samples, faults = read_source(source, name, own, held_out, decode=decode)
        samples = _limit(samples, source.limit, recipe.seed, f"limit of source {name}", limited)
        found.append(_Read(name, source, own, samples, faults))
    return found


def _mixed(one: _Read, dropped: Mapping[str, str], beside: int, seed: int, left_out: list[Excluded]) -> MixtureSource:
    """The source without its faulty samples, in the amount the recipe asks for."""
    whole = [sample for sample in one.samples if sample.id not in dropped]
    if not whole:
        raise DataError(f"{one.said.train}: nothing is left of the source `{one.name}` — mend it or leave it out")
    amount = mix(whole, one.said, beside, seed)
    left_out += [Excluded(sample.id, sample.source, amount.reason) for sample in amount.left_out]
    return MixtureSource(one.name, tuple(map(one.task.phrase, amount.samples)))


def refusal(errors: Sequence[DataIssue]) -> str:
    """Faults by row, and the two ways on."""
    lines = [f"{fault.source}: {fault.problem} — {fault.fix}" for fault in errors[:SHOWN_FAULTS]]
    if len(errors) > SHOWN_FAULTS:
        lines.append(f"… and {len(errors) - SHOWN_FAULTS} more (`tailor check RECIPE` lists them all)")
    lines.append("Mend these rows, or pass --exclude-faulty to go on without them (each gets a line in the ledger).")
    return f"{len(errors)} faults in the data:\n" + "\n".join(lines)


def _limit(samples: list[Sample], limit: int | None, seed: int, setting: str, excluded: list[Excluded]) -> list[Sample]:
    """A seeded choice of `limit` samples that does not depend on their order; the others go to the ledger."""
    if limit is None or limit >= len(samples):
        return samples
    chosen = {sample.id for sample in ranked(samples, str(seed))[:limit]}
    excluded += [
        Excluded(sample.id, sample.source, f"beyond {setting}={limit}") for sample in samples if sample.id not in chosen
    ]
    return [sample for sample in samples if sample.id in chosen]
