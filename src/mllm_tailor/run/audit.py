"""`tailor audit`: gather what is known of every label, rank the suspicious ones, keep the decisions about them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_tailor.audit import LabelledPage, Suspect, audit_labels
from mllm_tailor.core.errors import DataError, RecipeError
from mllm_tailor.core.io import read_jsonl, write_jsonl
from mllm_tailor.core.progress import progress
from mllm_tailor.core.sample import Media, Prediction, Sample
from mllm_tailor.data import DataIssue
from mllm_tailor.data.corrections import Corrected, Decision, correct, read_decisions
from mllm_tailor.data.decode_check import decode_all
from mllm_tailor.media.decode_worker import Decoded
from mllm_tailor.media.pdf import page_text
from mllm_tailor.media.source import is_pdf
from mllm_tailor.run.cross_fit import CrossFit, cross_fit
from mllm_tailor.run.data_changes import SHOWN, unchanged
from mllm_tailor.run.data_record import read_held_out
from mllm_tailor.run.dataset import read_splits
from mllm_tailor.run.lock import owned
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.run.run_dir import RunFolder, open_run, read_predictions, read_scores
from mllm_tailor.scoring.referee import LabelledSet, match_predictions
from mllm_tailor.tasks import field_kinds
from mllm_tailor.tasks.transcripts import stated_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditOptions:
    """Which evidence is gathered beside the labels and the text of the pages."""

    readings: tuple[Path, ...] = ()  # runs, or files of predictions of samples that did not train the system
    cross_fit: CrossFit | None = None
    decode: bool = True  # open every file, to find copies of one page


@dataclass(frozen=True)
class AuditFolder:
    """The files of an audit, beside the run of the same name."""

    path: Path

    @classmethod
    def of(cls, run: ResolvedRun) -> AuditFolder:
        """The folder of a recipe's audit."""
        return cls(Path(run.recipe.output) / f"{run.name}-audit")

    @property
    def rows(self) -> Path:
        """The ranked list."""
        return self.path / "audit.jsonl"

    @property
    def page(self) -> Path:
        """The page a person decides on."""
        return self.path / "audit.html"

    @property
    def decisions(self) -> Path:
        """What was decided so far, which `data.corrections` applies."""
        return self.path / "decisions.jsonl"

    def decided(self) -> list[Decision]:
        """The decisions so far."""
        return read_decisions(self.decisions) if self.decisions.is_file() else []


@dataclass(frozen=True)
class AuditResult:
    """Suspicious labels, and what they were found among."""

    folder: AuditFolder
    suspects: tuple[Suspect, ...]  # not decided yet, the most suspicious first
    samples: Mapping[str, Sample]
    labels: Mapping[str, Mapping[str, Any]]
    readings: Mapping[str, Sequence[Prediction]]  # by system
    sources: Mapping[str, int]  # kind of evidence -> samples for which it was there
    decided: int  # suspicious labels left out because they were decided before
    unreadable: tuple[DataIssue, ...]  # rows that are no labelled samples; `tailor check` explains them

    @property
    def values(self) -> int:
        """Labelled values."""
        return sum(len(labels) for labels in self.labels.values())


def audit(run: ResolvedRun, options: AuditOptions = AuditOptions()) -> AuditResult:
    """Rank the labels of all samples of a recipe, held-out ones too, by what speaks against them.

    Raises:
        TailorError: when recipe, data or readings cannot be read.
    """
    if run.recipe.stages:
        raise RecipeError("an audit is of one data set — name a recipe without `stages`")
    folder = AuditFolder.of(run)
    layout, samples, issues = _read(run)
    labels = {sample.id: run.task.labels(sample) for sample in samples}
    decoded = _decode(samples) if options.decode else {}
    pages = [_page(sample, labels[sample.id], decoded) for sample in samples]
    readings = {str(path): _readings(path, labels, run) for path in options.readings}
    if options.cross_fit is not None:
        readings["the model trained on the other folds"] = cross_fit(
            run, samples, layout, folder.path, options.cross_fit
        )
    suspects = audit_labels(pages, field_kinds(run.task), readings)
    decided = {decision.key for decision in folder.decided()}
    left = tuple(suspect for suspect in suspects if (suspect.id, suspect.field) not in decided)
    write_jsonl(folder.rows, (suspect.row() for suspect in left))
    return AuditResult(
        folder=folder,
        suspects=left,
        samples={sample.id: sample for sample in samples},
        labels=labels,
        readings=readings,
        sources=_sources(pages, readings),
        decided=len(suspects) - len(left),
        unreadable=tuple(issues),
    )


def _sources(pages: Sequence[LabelledPage], readings: Mapping[str, Sequence[Prediction]]) -> dict[str, int]:
    """Samples for which each kind of evidence is there; kinds without any left out."""
    counts = {
        "labels": len(pages),
        "text of the page": sum(bool(page.text) for page in pages),
        "copies": sum(bool(page.contents) for page in pages),
        **{f"readings of {name}": len(predictions) for name, predictions in readings.items()},
    }
    return {name: count for name, count in counts.items() if count}


def _read(run: ResolvedRun) -> tuple[str, list[Sample], list[DataIssue]]:
    """Layout, all samples with their groups and corrections, and what could not be read."""
    issues: list[DataIssue] = []
    layout, train, held_out, _ = read_splits(run, issues)
    samples = []
    for sample in (*train, *held_out):
        try:
            if run.task.labels(sample):
                run.task.phrase(sample)
                samples.append(sample)
        except DataError as error:
            issues.append(DataIssue.of(error, sample.source, sample.id))
    if not samples:
        raise DataError(
            f"{run.recipe.data.train}: no labelled sample — `tailor check` lists what is wrong with the rows"
        )
    return layout, samples, [issue for issue in issues if issue.severity == "error"]


def _decode(samples: Sequence[Sample]) -> dict[Media, Decoded]:
    files = list(dict.fromkeys(media for sample in samples for media in sample.media))
    with progress("Opening files", len(files)) as shown:
        decoded = dict(zip(files, decode_all(files, None, shown.advance), strict=True))
    problems = [fact.problem for fact in decoded.values() if fact.problem]
    for problem in problems[:SHOWN]:
        logger.warning("not opened: %s", problem)
    if len(problems) > SHOWN:
        logger.warning("… and %d more files", len(problems) - SHOWN)
    return decoded


def _page(sample: Sample, labels: Mapping[str, Any], decoded: Mapping[Media, Decoded]) -> LabelledPage:
    facts = [decoded[media] for media in sample.media if media in decoded]
    return LabelledPage(
        id=sample.id,
        labels=labels,
        source=sample.source,
        group=sample.group,
        question=sample.prompt,
        text=stated_text(sample) or _text_layer(sample),
        contents=tuple(fact.sha256 for fact in facts if fact.sha256),
        looks=tuple(fact.looks for fact in facts if fact.looks),
    )


def _text_layer(sample: Sample) -> str | None:
    """The text of the pages of a PDF."""
    texts = []
    for media in sample.media:
        if media.kind == "image" and media.path is not None and media.path.is_file() and is_pdf(media):
            try:
                texts.append(page_text(media))
            except DataError as error:
                logger.warning("no text layer: %s", error)
    return "\n".join(texts).strip() or None


def _readings(path: Path, labels: Mapping[str, Mapping[str, Any]], run: ResolvedRun) -> list[Prediction]:
    """The tuned model's replies to the samples that a run held out, or the rows of a file of predictions.

    Replies to files that changed since are no evidence.
    """
    if path.is_dir():
        folder = open_run(path)
        predictions = read_predictions(folder.predictions(f"tuned_{read_scores(folder)['mode']}"))
        same = {sample.id for sample in unchanged(folder, read_held_out(folder).samples)}
        known = [prediction for prediction in predictions if prediction.id in labels and prediction.id in same]
    else:
        if not path.is_file():
            raise DataError(f"{path}: no such run or file of predictions")
        rows = [row for _, row in read_jsonl(path)]
        everyone = LabelledSet(tuple(labels), tuple(labels.values()), tuple(None for _ in labels))
        matched = match_predictions(everyone, rows, str(path))
        missing = set(matched.missing)
        known = [prediction for prediction in matched.predictions if prediction.id not in missing]
    if not known:
        raise DataError(f"{path}: none of its predictions is of a sample of {run.recipe.data.train}")
    return known


def apply_decisions(run: ResolvedRun, path: Path) -> tuple[AuditFolder, list[Decision], list[Corrected]]:
    """Check decisions against the data and add them to those of the audit; label files are not written.

    Returns the audit's folder, all decisions so far, and the labels that they change.

    Raises:
        DataError: when a decision does not fit the data.
    """
    folder = AuditFolder.of(run)
    with owned(folder.path):  # decisions of another command at the same time would be lost
        decisions = {decision.key: decision for decision in (*folder.decided(), *read_decisions(path))}
        _, train, held_out, before = read_splits(run, [])
        _, corrected = correct([*train, *held_out], run.task, list(decisions.values()), str(path))
        write_jsonl(folder.decisions, (decision.model_dump(mode="json") for decision in decisions.values()))
    return folder, list(decisions.values()), [*before, *corrected]


def existing_run(run: ResolvedRun) -> Path | None:
    """The finished run of a recipe, whose held-out readings are evidence at no cost."""
    folder = RunFolder(Path(run.recipe.output) / run.name)
    return folder.path if folder.scores.is_file() else None
