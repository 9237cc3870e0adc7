"""Rows of questions about pictures, read the other way round: one caption a picture, of what its answers say.

For a first stage of tuning on questions (PeFoMed, He et al. 2024, arXiv 2401.02797, begins with captions): where no
captions exist, the answers to the questions of a type say what a caption would (`plane: axial`). It is chosen by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.data.issues import DataIssue
from mllm_tailor.data.layouts.base import Folder, Layout
from mllm_tailor.data.layouts.columns import METADATA

TYPE, TOPIC = "question_type", "organ"
# VQA-RAD's types of questions (Lau et al. 2018, table 2), as a caption calls them and in the order of a report.
NAMES = {
    "MODALITY": "modality",
    "PLANE": "plane",
    "ORGAN": "organ system",
    "ABN": "abnormality",
    "PRES": "finding",
    "POS": "position",
    "SIZE": "size",
    "ATTRIB": "attribute",
    "COLOR": "contrast",
    "COUNT": "count",
    "OTHER": "remark",
}
TOPICS = {"ABD": "abdomen"}
UNTOLD = {"yes", "no"}  # answers that say nothing without their question
MOST = 8  # facts in a caption


def detect(folder: Folder) -> bool:
    """Whether the first rows have a question of some type and an answer."""
    return any({"question", "answer", TYPE} <= set(file.first) for file in folder.label_files(".jsonl", ".ndjson"))


def read(folder: Folder) -> Iterator[Sample | DataIssue]:
    """One sample a picture, in the order of their first questions; its field `caption` holds the facts."""
    pictures: dict[tuple[Media, ...], list[Sample]] = {}
    for item in METADATA.read(folder):
        if isinstance(item, DataIssue):
            yield item
        else:
            pictures.setdefault(item.media, []).append(item)
    for samples in pictures.values():
        yield _captioned(samples)


def _captioned(samples: list[Sample]) -> Sample | DataIssue:
    first = samples[0]
    facts = sorted(
        (list(NAMES).index(kind), NAMES[kind], answer)
        for sample in samples
        if (kind := str(sample.fields.get(TYPE)).upper()) in NAMES
        and (answer := " ".join((sample.answer or "").lower().split()).strip(" .")) not in ("", *UNTOLD)
    )
    told = list(dict.fromkeys(f"{name}: {answer}" for _, name, answer in facts))[:MOST]
    topic = str(first.fields.get(TOPIC) or "")
    caption = ". ".join(([TOPICS.get(topic, topic.lower())] if topic else []) + told)
    if not caption:
        return DataIssue(
            first.source, "no answer about this picture says what it shows", "leave it out here", severity="warning"
        )
    return replace(first, id=f"{first.id}-facts", prompt="", answer=caption, fields={"caption": caption})


LAYOUT = Layout(detect, read, METADATA.files)
