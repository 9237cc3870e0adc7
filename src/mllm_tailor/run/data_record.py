"""What a run keeps of its data: the held-out samples with their labels, and fingerprints of everything it read.

With these, scores and report follow from the run folder alone: no data set is read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import read_json, read_jsonl, write_atomic, write_json, write_jsonl
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.core.strict_json import dump_json
from mllm_tailor.data.reviews.labels import REVIEW
from mllm_tailor.run.run_dir import RunFolder
from mllm_tailor.tasks import Task

if TYPE_CHECKING:  # scores are computed from what a run kept, without torch
    from mllm_tailor.run.dataset import Splits

SAMPLE = TypeAdapter(Sample)


@dataclass(frozen=True)
class HeldOut:
    """The held-out samples of a run as they were when it began, in one order throughout."""

    samples: tuple[Sample, ...]
    labels: tuple[Mapping[str, Any], ...]  # as scores compare them
    questions: tuple[str, ...]  # what the model is asked of each

    @property
    def ids(self) -> tuple[str, ...]:
        """The samples' ids."""
        return tuple(sample.id for sample in self.samples)

    @property
    def groups(self) -> tuple[str | None, ...]:
        """The samples' groups."""
        return tuple(sample.group for sample in self.samples)


def write_held_out(run: RunFolder, task: Task, splits: Splits) -> None:
    """Write held_out.jsonl and data.json."""
    write_labelled(run, run.held_out, task, splits.held_out)
    mixed = (conversation.sample for conversation in splits.mixed_samples)
    everyone = {
        sample.id: sample for sample in (*splits.train, *splits.held_out, *mixed)
    }  # folds score what they train on
    drawn = sum(bool(sample.extra.get("drawn")) for sample in everyone.values())
    facts: dict[str, Any] = {
        "layout": splits.layout,
        "samples": len(everyone),
        "drawn": drawn,
        "own_systems": own_systems(splits),
    }
    if reviews := review_counts(splits):
        facts["reviews"] = reviews
    write_json(run.data, facts)


def review_counts(splits: Splits) -> dict[str, dict[str, int]]:
    """By source, what reviewers decided about the documents that a run learns or calibrates on."""
    reviews: dict[str, dict[str, int]] = {}
    learned = {conversation.id: conversation.sample for conversation in splits.mixed_samples}
    for sample in (*learned.values(), *splits.dev):
        decided = sample.extra.get(REVIEW)
        if not decided:
            continue
        counts = reviews.setdefault(
            sample.id.partition("/")[0], {"learned": 0, "audited": 0, "corrected": 0, "confirmed": 0}
        )
        counts["learned" if sample.id in learned else "audited"] += 1
        counts["corrected"] += decided["corrected"]
        counts["confirmed"] += decided["confirmed"]
    return reviews


def write_labelled(run: RunFolder, path: Path, task: Task, samples: Sequence[Sample]) -> None:
    """Write samples with their labels; media that came inside a row are kept as files of the run folder."""
    rows = []
    for sample in samples:
        kept = replace(sample, media=tuple(_as_file(media, run.inline_media) for media in sample.media))
        row = {
            "id": sample.id,
            "labels": task.labels(sample),
            "question": task.phrase(sample).prompt,
            "sample": plain(kept),
        }
        rows.append(row)
    write_jsonl(path, rows)


def own_systems(splits: Splits) -> int:
    """Training samples with a system text of their own, where the samples do not share one."""
    systems = [sample.system for sample in splits.train if sample.system]
    return 0 if len(set(systems)) == 1 and len(systems) == len(splits.train) else len(systems)


def read_held_out(run: RunFolder) -> HeldOut:
    """What `write_held_out` wrote.

    Raises:
        RunError: when the file is missing or damaged.
    """
    return read_labelled(run.held_out)


def read_labelled(path: Path) -> HeldOut:
    """What `write_labelled` wrote.

    Raises:
        RunError: when the file is missing or damaged.
    """
    if not path.is_file():
        raise RunError(f"{path.parent}: no {path.name} — run the same `tailor run` command again to write it")
    samples, labels, questions = [], [], []
    for number, row in read_jsonl(path):
        try:
            samples.append(SAMPLE.validate_python(row["sample"]))
            labels.append(dict(row["labels"]))
            questions.append(str(row["question"]))
        except (KeyError, TypeError, ValueError, ValidationError):
            raise RunError(f"{path}:{number}: not a labelled sample — the file is damaged") from None
    return HeldOut(tuple(samples), tuple(labels), tuple(questions))


def read_data_facts(run: RunFolder) -> dict[str, Any]:
    """Layout and counts of the data, from data.json."""
    facts: dict[str, Any] = read_json(run.data)
    return facts


def plain(sample: Sample) -> dict[str, Any]:
    """A sample as JSON values; what its layout knows beside is kept where JSON can hold it, and else as text."""
    values: dict[str, Any] = SAMPLE.dump_python(
        replace(sample, extra={}, fields={}), mode="json", exclude={"media": {"__all__": {"framing"}}}
    )
    return values | {"fields": _json_values(sample.fields), "extra": _json_values(sample.extra)}


def _json_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _json_value(value) for name, value in values.items()}


def _json_value(value: Any) -> Any:
    try:
        return json.loads(dump_json(value, indent=None))
    except ValueError:  # a number that JSON does not have
        return str(value)


def _as_file(media: Media, folder: Path) -> Media:
    if media.data is None:
        return media
    path = folder / hashlib.sha256(media.data).hexdigest()
    if not path.is_file():
        write_atomic(path, media.data)
    return replace(media, path=path, data=None)
