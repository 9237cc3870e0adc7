"""The samples a report shows, with the differences between replies and labels marked."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from mllm_tailor.core.sample import Prediction
from mllm_tailor.reporting.diff import mark_difference, shorten
from mllm_tailor.reporting.report_data import ReportData
from mllm_tailor.scoring.errors import kind_of_error
from mllm_tailor.scoring.scores import Scores
from mllm_tailor.scoring.text import as_text

SHOWN = 4  # samples of each kind
LONGEST_REPLY = 300  # characters of a reply that could not be read


@dataclass(frozen=True)
class FieldCase:
    """One field of a case: label, tuned and base reply, with the differing characters marked."""

    name: str
    label: Markup
    tuned: Markup
    base: Markup
    kind: str  # of the tuned reply's error
    base_right: bool


@dataclass(frozen=True)
class Case:
    """One sample of a report."""

    sample: str  # its id
    id: str  # shortened
    image: str | None  # data URI
    question: str  # empty where all samples have the same question
    before: float
    after: float
    fields: tuple[FieldCase, ...]
    problem: str  # why the tuned reply could not be read, with its beginning; empty if it could


def choose(base: Scores, tuned: Scores, metric: str, shown: int = SHOWN) -> dict[str, list[int]]:
    """Indices of the samples to show: `best` gained most, `worst` score lowest after tuning; none is in both."""
    sign = 1.0 if tuned[metric].better == "higher" else -1.0
    pairs = zip(base[metric].per_sample, tuned[metric].per_sample, strict=True)
    known = [
        (i, sign * before, sign * after)
        for i, (before, after) in enumerate(pairs)
        if before is not None and after is not None
    ]
    perfect = 100.0 if sign > 0 else 0.0
    worst = [i for i, _, after in sorted(known, key=lambda row: (row[2], row[0])) if after < perfect - 1e-9][:shown]
    gained = [row for row in known if row[2] > row[1] and row[0] not in worst]
    best = [i for i, *_ in sorted(gained, key=lambda row: (row[1] - row[2], row[0]))][:shown]
    return {"best": best, "worst": worst}


def make_cases(data: ReportData) -> dict[str, list[Case]]:
    """The chosen samples with their images and marked replies."""
    chosen = choose(data.systems[data.base], data.systems[data.tuned], data.metric)
    return {kind: [_case(data, index) for index in indices] for kind, indices in chosen.items()}


def _case(data: ReportData, index: int) -> Case:
    base, tuned = data.predictions[data.base][index], data.predictions[data.tuned][index]
    labels = data.labels[index]
    before, after = (data.systems[name][data.metric].per_sample[index] or 0.0 for name in (data.base, data.tuned))
    return Case(
        sample=tuned.id,
        id=shorten(tuned.id, 80),
        image=data_uri(data.images[tuned.id]) if tuned.id in data.images else None,
        question=shorten(data.questions[index], LONGEST_REPLY) if data.questions else "",
        before=before,
        after=after,
        fields=tuple(_field(name, labels, base, tuned) for name in labels),
        problem=f"{tuned.problem}: {shorten(tuned.text, LONGEST_REPLY)}" if tuned.problem else "",
    )


def _field(name: str, labels: Mapping[str, object], base: Prediction, tuned: Prediction) -> FieldCase:
    label = as_text(labels[name])
    missed, reply = mark_difference(label, as_text(tuned.fields.get(name)))
    _, before = mark_difference(label, as_text(base.fields.get(name)))
    return FieldCase(
        name=name,
        label=missed,
        tuned=reply,
        base=before,
        kind=kind_of_error(name, labels, tuned.fields),
        base_right=kind_of_error(name, labels, base.fields) == "right",
    )


def data_uri(jpeg: bytes) -> str:
    """A JPEG file as the source of an image element."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
