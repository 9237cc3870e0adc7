"""Labels drafted by a teacher: two readings of each file that must agree, with a ledger of what was refused and why.

The first reading is the teacher's most likely reply, the second is sampled. A file gets a label when every value of
both is the same and, where the teacher is a run that makes a promise (`accept`), every value is accepted. Rows are only
ever appended, so labels that are there already are never changed, and a call that was interrupted continues.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mllm_tailor.core.errors import DataError, RunError
from mllm_tailor.core.io import fingerprint, read_json, write_json
from mllm_tailor.core.progress import progress
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.core.strict_json import dump_json, parse_json
from mllm_tailor.core.summed_rows import append_row, intact_lines
from mllm_tailor.run.output_file import sole_writer
from mllm_tailor.run.resolve import ResolvedRun
from mllm_tailor.scoring.judged import deciding_metric
from mllm_tailor.scoring.metrics import METRICS
from mllm_tailor.scoring.text import is_empty
from mllm_tailor.tasks import Task, field_kinds
from mllm_tailor.tasks.classify import Classify

logger = logging.getLogger(__name__)
LABELS, LEDGER, TEACHER = "labels.jsonl", "ledger.jsonl", "teacher.json"
LABELLED, DISAGREE, NOT_ACCEPTED, UNREADABLE, FAILED = "labelled", "disagree", "not accepted", "unreadable", "failed"
FAILURES_IN_A_ROW = 8  # after which the teacher is taken to be gone


@dataclass(frozen=True)
class Readings:
    """What a teacher read twice; or why it read nothing."""

    first: Prediction | None = None
    second: Prediction | None = None
    failure: str = ""
    prompt_tokens: int = 0  # of both, where the teacher counts them
    reply_tokens: int = 0
    seconds: float = 0.0
    second_by: str = "sampling"  # how the second reading differs from the first


class Teacher(Protocol):
    """Reads each file twice."""

    chunk: int  # files that are read together

    def describe(self) -> dict[str, Any]:
        """Everything that decides what it reads, as plain values."""
        ...

    def read(self, samples: Sequence[Sample]) -> list[Readings]:
        """The readings of a chunk of samples, in their order. Whatever fails for one sample is its `failure`."""
        ...


@dataclass(frozen=True)
class Price:
    """Of a million tokens, in whatever currency."""

    read: float = 0.0
    written: float = 0.0

    def of(self, prompt_tokens: int, reply_tokens: int) -> float:
        """What these tokens cost."""
        return (prompt_tokens * self.read + reply_tokens * self.written) / 1e6


@dataclass
class Drafted:
    """What became of the files."""

    labels: Path
    counts: dict[str, int] = field(default_factory=dict)  # by status, of this call and those before
    kept: int = 0  # files that had a label before
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cost: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)  # why files have no label: fields that differ, failures


def check_task(task: Task, metrics: Sequence[str]) -> None:
    """Refuse tasks in which two readings cannot be told equal, or whose labels no row of columns can hold.

    Raises:
        RunError: naming the task.
    """
    if task.name not in ("extract", "classify", "answer") or deciding_metric(metrics) is None:
        raise RunError(
            f"labels of the task `{task.name}` cannot be drafted — two readings are compared for extract, classify and "
            "answer"
        )


def draft_labels(out: Path, samples: Sequence[Sample], run: ResolvedRun, teacher: Teacher, price: Price) -> Drafted:
    """Label the samples that have no label in `out` yet.

    Raises:
        RunError: for labels that another teacher drafted or another process drafts now, for a teacher that fails again
            and again.
    """
    check_task(run.task, run.metrics)
    with sole_writer(out / LABELS):
        return _draft(out, samples, run, teacher, price)


def _draft(out: Path, samples: Sequence[Sample], run: ResolvedRun, teacher: Teacher, price: Price) -> Drafted:
    _note_teacher(out, teacher)
    labels, ledger = out / LABELS, out / LEDGER
    known = _labelled_files(labels)
    before = _ledger(ledger)
    decided = {name for name, row in before.items() if row["status"] != FAILED}
    kept = sum(_file(sample) in known and _file(sample) not in decided for sample in samples)
    failures = 0
    with progress("Drafting labels", len(samples)) as display:
        for chunk in (samples[start : start + teacher.chunk] for start in range(0, len(samples), teacher.chunk)):
            open_ones = [sample for sample in chunk if _file(sample) not in decided | known]
            # A chunk is read as a whole, so that an interrupted call draws the same replies as one that was not.
            for sample, readings in zip(chunk, teacher.read(chunk) if open_ones else (), strict=False):
                if sample not in open_ones:
                    continue
                status, details = judge(run, readings)
                failures = failures + 1 if status == FAILED else 0
                if status == LABELLED and readings.first is not None:
                    append_label(labels, _row(run.task, sample, readings.first.fields))
                append_row(ledger, _ledger_row(sample, status, details, readings, price))
                if failures >= FAILURES_IN_A_ROW:
                    raise RunError(
                        f"{failures} files in a row could not be read ({readings.failure}) — when the teacher answers "
                        f"again, the same command continues; {ledger} holds what was read"
                    )
            display.advance(len(chunk))
    return _summary(labels, _ledger(ledger), samples, kept)


def judge(run: ResolvedRun, readings: Readings) -> tuple[str, dict[str, Any]]:
    """The status of a file, and what the ledger holds of it."""
    first, second = readings.first, readings.second
    if readings.failure or first is None or second is None:
        return FAILED, {"problem": readings.failure}
    problem = first.problem or second.problem or ("a reply was cut off" if first.cut or second.cut else None)
    if problem:
        return UNREADABLE, {"problem": problem, "replies": [first.text, second.text]}
    differing = [name for name in run.task.field_names if not agree(run, first, second, name)]
    details: dict[str, Any] = {"fields": dict(first.fields)}
    if differing:
        other = {name: second.fields.get(name) for name in differing}
        return DISAGREE, details | {"differing": differing, "second": other}
    doubtful = [path for path, accepted in (first.accept or {}).items() if not accepted]
    return (NOT_ACCEPTED, details | {"doubtful": doubtful}) if doubtful else (LABELLED, details)


def agree(run: ResolvedRun, first: Prediction, second: Prediction, name: str) -> bool:
    """Whether two readings hold the same value, as the metric that decides the run sees it."""
    left, right = first.fields.get(name), second.fields.get(name)
    if is_empty(left) or is_empty(right):
        return is_empty(left) and is_empty(right)
    metric = METRICS.load(deciding_metric(run.metrics) or "exact")
    ratio = metric.field({name: left}, second, name, field_kinds(run.task))
    return bool(ratio.denominator) and ratio.numerator >= ratio.denominator


def append_label(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to labels that people may have edited meanwhile; a last line that was cut off is taken out."""
    content = path.read_bytes() if path.is_file() else b""
    if content and not content.endswith(b"\n"):
        start = content.rfind(b"\n") + 1
        try:
            parse_json(content[start:].decode())
        except ValueError:  # a call was killed while it wrote this row, which the ledger does not know yet
            os.truncate(path, start)
        else:
            with path.open("ab") as stream:
                stream.write(b"\n")
    with path.open("ab") as stream:
        stream.write(dump_json(row, indent=None).encode() + b"\n")


def samples_without_labels(samples: Sequence[Sample], labelled: Iterator[Sample], task: Task) -> list[Sample]:
    """The samples whose files no labelled sample of the task shows."""
    shown = set()
    for sample in labelled:
        try:
            has_label = bool(task.labels(sample))
        except DataError:
            has_label = False
        if has_label:
            shown |= {media.path.resolve() for media in sample.media if media.path is not None}
    return [s for s in samples if not any(m.path is not None and m.path.resolve() in shown for m in s.media)]


def _labelled_files(path: Path) -> set[str]:
    """The files that have a label. A last line that was cut off counts for nothing.

    Raises:
        RunError: naming a row that cannot be read.
    """
    known = set()
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            known.add(str(parse_json(line.decode())["file_name"]))
        except (ValueError, KeyError, TypeError):
            if number < len(lines) or line.endswith(b"\n"):
                raise RunError(f"{path}:{number}: not a row with `file_name` — fix or remove it") from None
    return known


def _note_teacher(out: Path, teacher: Teacher) -> None:
    note = out / TEACHER
    described = teacher.describe()
    if note.is_file() and fingerprint(read_json(note)) != fingerprint(described):
        raise RunError(
            f"{out}: labels there were drafted by another teacher, task or temperature ({note}) — choose another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(note, described)


def _ledger(path: Path) -> dict[str, dict[str, Any]]:
    """The last row of every file.

    Raises:
        RunError: naming a row that is none of a ledger.
    """
    rows = {}
    for number, line in enumerate(intact_lines(path), 1):
        try:
            row = parse_json(line.decode())
            rows[str(row["file_name"])] = {"status": FAILED, "prompt_tokens": 0, "reply_tokens": 0, "cost": 0.0} | row
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{path}:{number}: not a row of a ledger — put back a whole copy, or remove it") from None
    return rows


def _file(sample: Sample) -> str:
    return str(sample.extra.get("file") or sample.id)


def _row(task: Task, sample: Sample, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A row of labels, as the layout `columns` reads it."""
    row: dict[str, Any] = {"file_name": _file(sample), "id": sample.id}
    if sample.prompt:
        row["question"] = sample.prompt
    if task.name == "answer":
        return row | {"answer": fields["answer"]}
    if isinstance(task, Classify):
        return row | {"fields": {task.settings.label: next(iter(fields.values()))}}
    return row | {"fields": {name: fields.get(name) for name in task.field_names}}


def _ledger_row(
    sample: Sample, status: str, details: Mapping[str, Any], readings: Readings, price: Price
) -> dict[str, Any]:
    tokens = {"prompt_tokens": readings.prompt_tokens, "reply_tokens": readings.reply_tokens}
    cost = price.of(**tokens)
    return {
        "file_name": _file(sample), "id": sample.id, "status": status, **details, **tokens,
        "second_by": readings.second_by, "seconds": round(readings.seconds, 3), "cost": cost,
    }  # fmt: skip


def _summary(labels: Path, ledger: Mapping[str, Mapping[str, Any]], samples: Sequence[Sample], kept: int) -> Drafted:
    drafted = Drafted(labels, kept=kept)
    for sample in samples:
        row = ledger.get(_file(sample))
        if row is None:
            continue
        drafted.counts[row["status"]] = drafted.counts.get(row["status"], 0) + 1
        drafted.prompt_tokens += row["prompt_tokens"]
        drafted.reply_tokens += row["reply_tokens"]
        drafted.cost += row["cost"]
        reasons = row.get("differing") or row.get("doubtful") or ([row["problem"]] if row.get("problem") else [])
        for reason in reasons:
            drafted.reasons[reason] = drafted.reasons.get(reason, 0) + 1
    return drafted
