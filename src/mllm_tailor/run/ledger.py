"""The ledger: one line for every sample of the data, saying what became of it and how large it is to the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.io import write_jsonl
from mllm_tailor.core.progress import console, track
from mllm_tailor.core.sample import Sample
from mllm_tailor.models import Length, LoadedModel, measure_length
from mllm_tailor.run.dataset import Job
from mllm_tailor.run.slices import never_learned


def measure(model: LoadedModel, job: Job) -> dict[str, Length]:
    """The exact length of every sample that takes part, image tokens included; pixels are not decoded."""
    samples = [*job.learned, *map(job.task.phrase, (*job.dev, *job.held_out))]
    distinct = {sample.id: sample for sample in samples}  # a mixed source may repeat its samples
    return {sample.id: measure_length(sample, model) for sample in track(distinct.values(), "Measuring samples")}


def write_ledger(path: Path, job: Job, lengths: Mapping[str, Length]) -> None:
    """One row a sample: part, size, the scale its pictures are seen at (below 1: shrunk), or why it takes no part."""
    notes = never_learned(job.task, job.train, job.held_out)
    rows = []
    for part, samples in job.parts().items():
        times = Counter(sample.id for sample in samples)
        distinct = {sample.id: sample for sample in samples}
        for sample in distinct.values():
            note = {"note": notes[sample.id]} if part == "held_out" and sample.id in notes else {}
            rows.append(_row(sample, part, lengths[sample.id], times[sample.id]) | note)
    for note, count in Counter(notes.values()).items():
        console.print(f"[yellow]{count} held-out samples:[/] {note}", highlight=False)
    rows += [{"id": item.id, "source": item.source, "part": "excluded", "reason": item.reason} for item in job.excluded]
    write_jsonl(path, rows)


def _row(sample: Sample | Conversation, part: str, length: Length, times: int) -> dict[str, object]:
    row = {
        "id": sample.id,
        "source": sample.source,
        "part": part,
        "group": sample.group,
        "tokens": length.tokens,
        "tiles": length.tiles,
        "supervised_tokens": length.supervised,
        "scale": round((length.tiled_pixels / length.pixels) ** 0.5, 3) if length.pixels else None,
    }
    return row if times == 1 else row | {"times": times}  # in an epoch
