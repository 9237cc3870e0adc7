"""The ledger: one line for every sample of the data, with its fate and its size to the model."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.io import write_jsonl
from mllm_tailor.core.progress import track
from mllm_tailor.core.sample import Sample
from mllm_tailor.data import DataIssue
from mllm_tailor.models import Length, LoadedModel, context_error, measure_length
from mllm_tailor.run.dataset import Splits, refusal
from mllm_tailor.run.slices import classes_not_trained
from mllm_tailor.tasks import Task

logger = logging.getLogger(__name__)


def measure(model: LoadedModel, task: Task, splits: Splits) -> dict[str, Length]:
    """The exact length of every sample that takes part, image tokens included; pixels are not decoded.

    Raises:
        DataError: naming all rows that the model cannot read or that do not fit into its context.
    """
    lengths, issues = measure_all(model, task, splits)
    if issues:
        raise DataError(refusal(issues))
    return lengths


def measure_all(model: LoadedModel, task: Task, splits: Splits) -> tuple[dict[str, Length], list[DataIssue]]:
    """The lengths of all samples that the model can read, and an issue for every other one, by row."""
    samples = [*splits.learned, *map(task.phrase, (*splits.dev, *splits.held_out))]
    distinct = {sample.id: sample for sample in samples}  # a mixed source may repeat its samples
    lengths: dict[str, Length] = {}
    issues: list[DataIssue] = []
    for sample in track(distinct.values(), "Measuring samples"):
        try:
            length = measure_length(sample, model)
            if error := context_error(sample.name, length, model):
                raise error
            lengths[sample.id] = length
        except DataError as error:
            issues.append(DataIssue.of(error, sample.source, sample.id))
    return lengths, issues


def write_ledger(path: Path, task: Task, splits: Splits, lengths: Mapping[str, Length]) -> None:
    """One row a sample: split, size, the scale its images are seen at (below 1: shrunk), corrected labels, or why it
    takes no part.
    """
    notes = classes_not_trained(task, splits.train, splits.held_out)
    rows = []
    for split, samples in splits.by_name().items():
        times = Counter(sample.id for sample in samples)
        distinct = {sample.id: sample for sample in samples}
        for sample in distinct.values():
            note = {"note": notes[sample.id]} if split == "held_out" and sample.id in notes else {}
            row = _row(sample, split, lengths[sample.id], times[sample.id])
            rows.append(row | note | _corrections(splits, sample.id))
    for reason, count in Counter(notes.values()).items():
        logger.warning("%d held-out samples: %s", count, reason)
    rows += [
        {"id": item.id, "source": item.source, "part": "excluded", "reason": item.reason} for item in splits.excluded
    ]
    write_jsonl(path, rows)


def _corrections(splits: Splits, identifier: str) -> dict[str, object]:
    """The labels of a sample that an audit's decisions replaced, with what the data state."""
    fields = {
        item.field: {"label": item.before, "value": item.after}
        for item in splits.corrected
        if item.id == identifier.partition("#")[0] or item.id == identifier
    }
    return {"corrected": fields} if fields else {}


def _columns(sample: Sample) -> dict[str, object]:
    """The plain values that the row states beside question and labels."""
    return {
        str(name): value
        for name, value in sample.extra.items()
        if isinstance(value, (str, int, float)) and value != "" and name != "rejected"
    }


def _row(sample: Sample | Conversation, split: str, length: Length, times: int) -> dict[str, object]:
    row = {
        "id": sample.id,
        "source": sample.source,
        "part": split,
        "group": sample.group,
        "tokens": length.tokens,
        "tiles": length.tiles,
        "supervised_tokens": length.supervised,
        "scale": round((length.tiled_pixels / length.pixels) ** 0.5, 3) if length.pixels else None,
    }
    if columns := _columns(sample.sample if isinstance(sample, Conversation) else sample):
        row["columns"] = columns
    return row if times == 1 else row | {"times": times}  # in an epoch
