"""From a resolved run to the samples of its splits, with every sample of the data accounted for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.regions import FOREIGN
from mllm_tailor.core.sample import Sample
from mllm_tailor.data import (
    DataIssue,
    ValidationResult,
    check_declared,
    exclusions,
    mix,
    ranked,
    read_source,
    source_names,
    split,
    split_dev,
    validate,
)
from mllm_tailor.data.corrections import Corrected, correct, read_decisions
from mllm_tailor.data.reviews.learn import part_samples
from mllm_tailor.recipe import DataSpec, Source
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.slices import check_columns
from mllm_tailor.tasks import RegionTask, Task, open_task, with_transcriptions

Item = TypeVar("Item", Sample, Conversation)
SHOWN_ISSUES = 20
NONE: Mapping[str, str] = MappingProxyType({})


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
    samples: tuple[Conversation, ...]  # one that is seen several times in an epoch is repeated


@dataclass(frozen=True)
class Splits:
    """The samples of a run: trained on, used to choose the best epoch, and held out for the final score.

    All are as the data state them; `learned` holds the conversations that are trained on.
    """

    layout: str  # in which the data were recognised
    train: tuple[Sample, ...]
    dev: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    phrased: tuple[Conversation, ...]  # the training samples as the model is shown them, in the same order
    transcriptions: tuple[Conversation, ...] = ()  # training samples once more, as a reading task
    mixed: tuple[MixtureSource, ...] = ()  # other sources, each with its own task
    excluded: tuple[Excluded, ...] = ()
    corrected: tuple[Corrected, ...] = ()  # labels that `data.corrections` replaced

    @property
    def learned(self) -> tuple[Conversation, ...]:
        """Everything an epoch holds."""
        return (*self.phrased, *self.transcriptions, *self.mixed_samples)

    @property
    def mixed_samples(self) -> tuple[Conversation, ...]:
        """The samples of all further sources."""
        return tuple(sample for source in self.mixed for sample in source.samples)

    def by_name(self) -> dict[str, tuple[Sample | Conversation, ...]]:
        """The splits by their names in the ledger; further sources only where there are any."""
        splits: dict[str, tuple[Sample | Conversation, ...]] = {
            "train": self.train,
            "transcription": self.transcriptions,
            "mixed": self.mixed_samples,
            "dev": self.dev,
            "held_out": self.held_out,
        }
        return {name: samples for name, samples in splits.items() if samples or name != "mixed"}

    def without(self, dropped: Mapping[str, Excluded], *, held_out: bool = False) -> Splits:
        """The splits without these samples, by id, each of them among the excluded; held-out ones on request."""

        def kept(samples: Sequence[Item]) -> tuple[Item, ...]:
            return tuple(sample for sample in samples if sample.id not in dropped)

        known = {item.id for item in self.excluded}
        return replace(
            self,
            train=kept(self.train),
            dev=kept(self.dev),
            held_out=kept(self.held_out) if held_out else self.held_out,
            phrased=kept(self.phrased),
            transcriptions=kept(self.transcriptions),
            mixed=tuple(replace(source, samples=kept(source.samples)) for source in self.mixed),
            excluded=(*self.excluded, *(item for name, item in dropped.items() if name not in known)),
        )


def prepare(
    run: ResolvedRun, *, exclude_faulty: bool = False, decode: bool = True, known: Mapping[str, str] = NONE
) -> tuple[Splits, ValidationResult]:
    """Read, split, validate, phrase. `known` are excluded as well: sample id to reason.

    Raises:
        DataError: listing the issues by row, unless the faulty samples are to be excluded.
    """
    data, seed, task = run.recipe.data, run.recipe.seed, run.task
    issues: list[DataIssue] = []
    layout, train, held_out, corrected = read_splits(run, issues)
    check_declared((*train, *held_out), task)
    check_columns(run.recipe.score_by, held_out)
    limited: list[Excluded] = []
    train = _limit(train, data.limit, seed, "data.limit", limited)
    held_out = _limit(held_out, data.limit_held_out, seed, "data.limit_held_out", limited)
    used = (data.held_out.column, data.held_out.group_by, data.held_out.stratify_by, *run.recipe.score_by)
    validation = validate(train, held_out, task, faults=issues, decode=decode, used=filter(None, used))
    sources = _read_sources(data, seed, task, held_out, limited, decode=decode)
    in_sources = (issue for source in sources for issue in source.issues)
    unused = (*_unused_pairs(run, train), *_boxes_left_behind(run, train))
    validation = replace(validation, faults=(*validation.faults, *in_sources, *unused))
    everyone = (*train, *held_out, *(sample for source in sources for sample in source.samples))
    rows = {sample.id: sample.source for sample in everyone}
    dropped = exclusions(validation) | {sample: reason for sample, reason in known.items() if sample in rows}
    errors = validation.errors()
    if errors and not exclude_faulty and data.faulty == "refuse":
        raise DataError(refusal(errors))
    kept_train = [sample for sample in train if sample.id not in dropped]
    kept_held_out = [sample for sample in held_out if sample.id not in dropped]
    cross_validated = data.held_out.folds is not None and data.held_out.fold is None
    if not kept_train or not (kept_held_out or cross_validated):
        reasons = "".join(f"\n{issue}" for issue in errors[:SHOWN_ISSUES])
        raise DataError(f"{data.train}: nothing is left to {'train on' if not kept_train else 'score'}{reasons}")
    learned, dev = split_dev(kept_train, data.dev, seed)
    if data.dev:
        sources, audited = _part_reviews(sources, dev, dropped, limited)
        dev = (*dev, *audited)
    mixed = tuple(_mixed(source, dropped, len(learned), seed, limited) for source in sources)
    phrased, transcriptions = taught(task, learned, data, seed)
    splits = Splits(
        layout=layout,
        train=tuple(learned),
        dev=tuple(dev),
        held_out=tuple(kept_held_out),
        phrased=phrased,
        transcriptions=transcriptions,
        mixed=mixed,
        excluded=_excluded(limited, dropped, errors, rows),
        corrected=corrected,
    )
    return splits, validation


def taught(
    task: Task, samples: Sequence[Sample], data: DataSpec, seed: int
) -> tuple[tuple[Conversation, ...], tuple[Conversation, ...]]:
    """Training samples as the model is shown them, in the same order, and their transcripts as samples beside them."""
    phrased = list(map(task.phrase, samples))
    return with_transcriptions(phrased, samples, data.transcription_share, seed, as_turns=data.transcription_turns)


def _unused_pairs(run: ResolvedRun, train: Sequence[Sample]) -> list[DataIssue]:
    """A warning for rejected replies of the rows that no objective of this run reads."""
    stated = [sample for sample in train if sample.extra.get("rejected")]
    if not stated or run.recipe.train.prefer is not None:
        return []
    problem = f"{len(stated):,} rows state a rejected reply, which is not read: only the preferred one is learned"
    fix = "set train.prefer to learn from the pairs (best as a second stage), or leave it so"
    return [DataIssue(stated[0].source, problem, fix, None, "warning")]


def _boxes_left_behind(run: ResolvedRun, train: Sequence[Sample]) -> Iterator[DataIssue]:
    """An error for every row whose boxes would not move with an image that the recipe trims or augments."""
    settings = {"model.trim": run.model.trim, "train.augment": run.recipe.train.augment}
    changing = [name for name, value in settings.items() if value]
    for sample in train if changing and not isinstance(run.task, RegionTask) else ():
        texts = (sample.prompt, sample.answer or "", *(turn.text for turn in sample.history))
        notation = next((match[0] for text in texts if (match := FOREIGN.search(text))), None)
        if notation is not None:
            problem = f"{sample.id}: a box written with `{notation}` does not move with its image"
            fix = f"write it as <box>[[left, top, right, bottom]]</box> in thousandths, or leave {changing[0]} out"
            yield DataIssue(sample.source, problem, fix, sample.id)


def read_splits(
    run: ResolvedRun, issues: list[DataIssue]
) -> tuple[str, list[Sample], list[Sample], tuple[Corrected, ...]]:
    """Layout, training samples, held-out samples, corrected labels. Rows that cannot be read go to `issues`.

    Labels are corrected before the split, which may group by them; those of a second folder after it.
    """
    data = run.recipe.data
    decisions = read_decisions(Path(data.corrections)) if data.corrections is not None else []
    dataset, of_rows = run.training_data.take()
    issues += of_rows
    ids = {sample.id for sample in dataset.samples}
    first = [decision for decision in decisions if decision.id in ids or data.held_out.folder is None]
    samples, corrected = correct(dataset.samples, run.task, first, data.corrections or "")
    dataset = replace(dataset, samples=tuple(samples))
    train, held_out = split(dataset, data.held_out, run.recipe.seed, on_issue=issues.append)
    rest = [decision for decision in decisions if decision not in first]
    samples, more = correct(held_out, run.task, rest, data.corrections or "")
    return dataset.layout, list(train), samples, (*corrected, *more)


def _excluded(
    limited: Sequence[Excluded], dropped: Mapping[str, str], errors: Sequence[DataIssue], rows: Mapping[str, str]
) -> tuple[Excluded, ...]:
    """Samples beyond a limit, samples at fault, and rows that never became samples; each once."""
    sources = {issue.sample_id: issue.source for issue in errors if issue.sample_id is not None} | dict(rows)
    faulty = [Excluded(identifier, sources[identifier], reason) for identifier, reason in dropped.items()]
    unread = [Excluded("", issue.source, issue.problem) for issue in errors if issue.sample_id is None]
    return tuple({(item.id, item.source): item for item in (*limited, *faulty, *unread)}.values())


@dataclass(frozen=True)
class _SourceRead:
    """A further source as read, before faulty samples are taken out."""

    name: str
    settings: Source
    task: Task
    samples: list[Sample]
    issues: list[DataIssue]


def _read_sources(
    data: DataSpec, seed: int, task: Task, held_out: Sequence[Sample], limited: list[Excluded], *, decode: bool
) -> list[_SourceRead]:
    result = []
    for source, name in zip(data.sources, source_names(data.sources), strict=True):
        own = open_task(*next(iter(source.task.items()))) if source.task else task
        own, samples, issues = read_source(source, name, own, held_out, decode=decode)
        samples = _limit(samples, source.limit, seed, f"limit of source {name}", limited)
        result.append(_SourceRead(name, source, own, samples, issues))
    return result


def _part_reviews(
    sources: Sequence[_SourceRead], dev: Sequence[Sample], dropped: Mapping[str, str], left_out: list[Excluded]
) -> tuple[list[_SourceRead], list[Sample]]:
    """The sources without audited samples, which are returned beside them; a source of these alone is left out."""
    result, everyone = [], list[Sample]()
    for source in sources:
        if source.settings.task is not None:  # of another task: no part of this calibration
            result.append(source)
            continue
        learned, audited, reasons = part_samples(source.samples, dev)
        left_out += [Excluded(item.id, item.source, reasons[item.id]) for item in source.samples if item.id in reasons]
        everyone += [sample for sample in audited if sample.id not in dropped]
        if learned or not audited:
            result.append(replace(source, samples=learned))
    return result, everyone


def _mixed(
    source: _SourceRead, dropped: Mapping[str, str], beside: int, seed: int, left_out: list[Excluded]
) -> MixtureSource:
    """The source without its faulty samples, in the amount the recipe asks for."""
    whole = [sample for sample in source.samples if sample.id not in dropped]
    if not whole:
        raise DataError(f"{source.settings.train}: nothing is left of the source `{source.name}` — fix it or omit it")
    amount = mix(whole, source.settings, beside, seed)
    left_out += [Excluded(sample.id, sample.source, amount.reason) for sample in amount.left_out]
    return MixtureSource(source.name, tuple(map(source.task.phrase, amount.samples)))


def refusal(errors: Sequence[DataIssue]) -> str:
    """Issues by row, and the two ways forward."""
    lines = [f"{issue.source}: {issue.problem} — {issue.fix}" for issue in errors[:SHOWN_ISSUES]]
    if len(errors) > SHOWN_ISSUES:
        lines.append(f"… and {len(errors) - SHOWN_ISSUES} more (`tailor check RECIPE` lists them all)")
    lines.append("Fix these rows, or pass --exclude-faulty to continue without them (each gets a line in the ledger).")
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
