"""Checks before training: every file, every label, and what training and held-out samples share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mllm_tailor.core.errors import DataError
from mllm_tailor.core.progress import progress
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data.decode_check import decode_all, look
from mllm_tailor.data.formats import Pattern, is_amount, is_date, patterns
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.leaks import Labelled, find_duplicates, find_leaks, labelled
from mllm_tailor.data.text_layer import absent_labels
from mllm_tailor.data.unread import unread_issues
from mllm_tailor.media.decode_worker import Decoded
from mllm_tailor.tasks import Task

# Control tokens of chat templates and vision towers: inside a label or question they would change the model's input
# (CVE-2026-44222).
# So would the marks for files of other toolkits and templates: `<image_1>`, `<start_of_image>`, `[IMG]`, `<ImageHere>`.
CONTROL = re.compile(
    r"<\|[\w ]{1,40}\|>|</?img>|<IMG_CONTEXT>|<pad>|</?s>|<bbox>|<ref-object>|<start_of_turn>|<end_of_turn>|\[/?INST\]"
    r"|<(?:start_of_|end_of_)?(?:image|img|picture|video|audio|speech|sound)"
    r"(?:[ _-]?(?:\d+|here|placeholder|token|pad|soft_token))?>"
    r"|\[(?:IMG|IMAGE|VIDEO|AUDIO)(?:[ _-]?\d+)?\]",
    re.IGNORECASE,
)
MOSTLY = 0.9  # share of a field's values that makes it a field of dates or of amounts


@dataclass(frozen=True)
class FieldFacts:
    """Statistics of the labels of one field."""

    name: str
    filled: int
    empty: int
    distinct: int
    longest: int  # characters
    frequent: tuple[tuple[str, int], ...]  # the most frequent values and their counts
    patterns: tuple[Pattern, ...]  # formats, for fields of dates and amounts


@dataclass(frozen=True)
class ValidationResult:
    """The issues found. Samples with errors stop a run or are excluded from it; warnings are only shown."""

    faults: tuple[DataIssue, ...]
    fields: tuple[FieldFacts, ...]
    files: int
    bytes_compared: bool  # False: files were not read, so leaks were searched by path and labels only

    def errors(self) -> list[DataIssue]:
        """Issues that stop the run."""
        return [fault for fault in self.faults if fault.severity == "error"]

    def warnings(self) -> list[DataIssue]:
        """Issues that do not stop the run."""
        return [fault for fault in self.faults if fault.severity == "warning"]


def validate(
    train: Sequence[Sample],
    held_out: Sequence[Sample],
    task: Task,
    *,
    faults: Iterable[DataIssue] = (),
    decode: bool = True,
    workers: int | None = None,
    used: Iterable[str] = (),
) -> ValidationResult:
    """Check training and held-out samples; `faults` are the issues found while reading.

    `used` are the columns that the recipe names for another purpose than the task, such as the split.

    With `decode`, every file is decoded in worker processes (default: one per core). Without it, only the presence of
    files is checked, which is fast but finds neither damaged files nor copies under another name.
    """
    samples = [*train, *held_out]
    decoded = _decode(samples, workers) if decode else {media: look(media) for media in _files(samples)}
    found = [*faults]
    labels: dict[str, Mapping[str, Any]] = {}
    for sample in samples:
        labels[sample.id], label_faults = _check_labels(sample, task)
        found += label_faults
        found += _check_files(sample, decoded)
    parts = [
        [labelled(sample, labels[sample.id], decoded) for sample in part if sample.id in labels]
        for part in (train, held_out)
    ]
    facts = [_field_facts(name, [*parts[0], *parts[1]]) for name in task.field_names]
    found += unread_issues(samples, task, found, used)
    for fact in facts:
        found += _odd_values(fact, [*parts[0], *parts[1]])
    if decode and (kinds := getattr(task, "kinds", None)):
        found += absent_labels(samples, labels, decoded, kinds)
    found += find_leaks(*parts)
    found += [fault for part in parts for fault in find_duplicates(part)]
    return ValidationResult(tuple(found), tuple(facts), len(decoded), decode)


def exclusions(validation: ValidationResult) -> dict[str, str]:
    """Sample id to reason, for every sample with an error. Of a leaking pair, the training sample."""
    reasons: dict[str, str] = {}
    for fault in validation.errors():
        if fault.sample_id is not None:
            reasons.setdefault(fault.sample_id, fault.problem)
    return reasons


def _files(samples: Iterable[Sample]) -> list[Media]:
    return list(dict.fromkeys(media for sample in samples for media in sample.media))


def _decode(samples: Sequence[Sample], workers: int | None) -> dict[Media, Decoded]:
    files = _files(samples)
    with progress("Decoding files", len(files)) as shown:
        return dict(zip(files, decode_all(files, workers, shown.advance), strict=True))


def _check_files(sample: Sample, decoded: Mapping[Media, Decoded]) -> Iterator[DataIssue]:
    for media in sample.media:
        problem = decoded[media].problem
        if problem:
            yield DataIssue.of(DataError(problem), sample.source, sample.id)


def _check_labels(sample: Sample, task: Task) -> tuple[Mapping[str, Any], list[DataIssue]]:
    """The labels that the task reads from a sample, and their issues."""
    try:
        phrased = task.phrase(sample)
        labels = task.labels(sample)
    except DataError as error:
        return {}, [DataIssue.of(error, sample.source, sample.id)]

    def fault(problem: str, fix: str, severity: Any = "error") -> DataIssue:
        return DataIssue(sample.source, f"{sample.id}: {problem}", fix, sample.id, severity)

    faults = []
    if not labels or not (phrased.answer or "").strip():
        faults.append(fault("has no label to learn or score", "label it or leave it out"))
    empty = [name for name, value in labels.items() if value in ("", None, [])]
    if labels and len(empty) == len(labels):
        faults.append(fault("every field is empty", "check that this is intended", "warning"))
    elif empty:
        faults.append(fault(f"no {', '.join(empty)}", "check that the document does not have it", "warning"))
    earlier = (sample.system or "", *(turn.text for turn in sample.history))
    texts = (sample.prompt, *sample.options, phrased.answer or "", *earlier)
    control = next((match for text in texts if (match := CONTROL.search(text))), None)
    if control:
        faults.append(fault(f"its text contains the control token {control.group()}", "remove it from the text"))
    return labels, faults


def _field_facts(name: str, items: Sequence[Labelled]) -> FieldFacts:
    values = [(item.sample.id, _text(item.labels.get(name))) for item in items if item.labels]
    filled = [(identifier, text) for identifier, text in values if text]
    counts = Counter(text for _, text in filled)
    regular = any(_mostly(check, filled) for check in (is_date, is_amount))
    return FieldFacts(
        name,
        filled=len(filled),
        empty=len(values) - len(filled),
        distinct=len(counts),
        longest=max(map(len, counts), default=0),
        frequent=tuple(counts.most_common(5)),
        patterns=patterns(filled) if regular else (),
    )


def _odd_values(fact: FieldFacts, items: Sequence[Labelled]) -> Iterator[DataIssue]:
    """Warnings for values that do not look like the others of their field."""
    filled = [(item, _text(item.labels.get(fact.name))) for item in items]
    values = [(item.sample.id, text) for item, text in filled if text]
    kinds = {"a date": is_date, "an amount": is_amount}
    kind = next((kind for kind, check in kinds.items() if fact.patterns and _mostly(check, values)), None)
    if kind is None:
        return
    for item, text in filled:
        if text and not kinds[kind](text):
            yield DataIssue(
                item.sample.source,
                f"{item.sample.id}: {fact.name} {text!r} does not look like {kind}, unlike the others",
                "check the label",
                item.sample.id,
                "warning",
            )


def _mostly(check: Any, values: Sequence[tuple[str, str]]) -> bool:
    return bool(values) and sum(check(text) for _, text in values) >= MOSTLY * len(values)


def _text(value: Any) -> str:
    return "" if value in (None, []) else str(value)
