"""From `ReportData` to one HTML file: no script, no network, every value escaped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mllm_tailor import __version__
from mllm_tailor.core.io import write_atomic
from mllm_tailor.reporting import charts
from mllm_tailor.reporting import sentences as words
from mllm_tailor.reporting.cases import make_cases
from mllm_tailor.reporting.report_data import ReportData
from mllm_tailor.reporting.tables import printable
from mllm_tailor.scoring.compare import Gain, Interval, gain
from mllm_tailor.scoring.confusion import UNREAD, Confusion, macro_f1
from mllm_tailor.scoring.errors import KINDS, count_errors
from mllm_tailor.scoring.metrics import METRICS

GROUP_WORDS = {"seen": "groups also in training", "unseen": "groups never seen in training"}


@dataclass(frozen=True)
class BarRow:
    """One system in the first chart."""

    name: str
    note: str
    interval: Interval
    chart: Markup


@dataclass(frozen=True)
class GroupRow:
    """One system, or the gain, over one part of the held-out samples."""

    name: str
    count: int
    gain: Gain
    floors: tuple[tuple[str, float], ...]


def write_report(data: ReportData, path: Path) -> None:
    """Write the report, whole or not at all."""
    write_atomic(path, render(data))


def render(data: ReportData) -> str:
    """The report as HTML."""
    return page("report.html", **_context(data))


def page(template: str, **context: Any) -> str:
    """One of the templates filled in: autoescaped, and a name it lacks is an error."""
    environment = Environment(
        loader=PackageLoader("mllm_tailor.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable_lines(str(value)),
    )
    environment.filters |= {
        "number": words.number,
        "signed": words.signed,
        "between": words.between,
        "metric": words.title,
    }
    return environment.get_template(template).render(version=__version__, **context)


def printable_lines(text: str) -> str:
    """Control characters made visible; line breaks kept."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _context(data: ReportData) -> dict[str, Any]:
    """Everything the template shows, worked out; it only lays out."""
    over_floors = {name: _against(data, name, data.tuned) for name in words.FLOORS if name in data.systems}
    return {
        "data": data,
        "headline": words.headline(data),
        "meaning": words.meaning(data, over_floors),
        "bars": list(_bars(data, over_floors)),
        "form": _form(data),
        "summaries": {name: METRICS.summary(name) for name in METRICS},
        "fields": [
            (name, found, charts.dumbbell(found.base, found.tuned)) for name, found in data.gain.by_field.items()
        ],
        "groups": list(_groups(data, data.groups, data.metric)),
        "breakdowns": [
            (column, metric, list(_groups(data, parts, metric)))
            for column, parts in data.breakdowns.items()
            for metric in dict.fromkeys((data.metric, *data.apart))
        ],
        "confusion": _confusion(data),
        "loss": charts.curve(data.curves.loss, "loss by step") if data.curves.loss else None,
        "dev": charts.curve(data.curves.dev, "dev score by step", data.curves.best_step, dots=True)
        if data.curves.dev
        else None,
        "cases": make_cases(data),
        "errors": _errors(data),
        "environment": json.dumps(dict(data.environment), indent=2, ensure_ascii=False, default=str),
        "systems": [name for name in words.SYSTEMS if name in data.systems],
        "system_words": words.SYSTEMS,
    }


def _against(data: ReportData, one: str, other: str) -> Gain:
    """The headline gain of one system over another."""
    groups = data.sample_groups or None
    return gain(data.systems[one], data.systems[other], data.metric, groups=groups)


def _bars(data: ReportData, over_floors: dict[str, Gain]) -> Iterator[BarRow]:
    """Floors, base, tuned: from least to most, the recipe's way of decoding last."""
    others = [mode for mode in ("likelihood", "unconstrained", "constrained") if mode != data.mode]
    intervals = {name: found.base for name, found in over_floors.items()}
    for other in others:
        if f"base_{other}" in data.systems and f"tuned_{other}" in data.systems:
            found = _against(data, f"base_{other}", f"tuned_{other}")
            intervals |= {f"base_{other}": found.base, f"tuned_{other}": found.tuned}
    intervals |= {data.base: data.gain.base, data.tuned: data.gain.tuned}
    systems = [f"{who}_{mode}" for who in ("base", "tuned") for mode in (*others, data.mode)]
    for name in (name for name in (*words.FLOORS, *systems) if name in intervals):
        title, note = words.SYSTEMS[name]
        kind = name.split("_")[0] + (" other" if name.endswith(tuple(others)) else "")
        yield BarRow(title, note, intervals[name], charts.bar(intervals[name], kind))


def _form(data: ReportData) -> str:
    needed = [f"{who}_{mode}" for who in ("base", "tuned") for mode in ("unconstrained", "constrained")]
    if any(name not in data.systems for name in needed):
        return ""
    free, held = (_against(data, f"base_{mode}", f"tuned_{mode}") for mode in ("unconstrained", "constrained"))
    return words.format_or_reading(free, held)


def _groups(data: ReportData, parts: Mapping[str, Sequence[int]], metric: str) -> Iterator[GroupRow]:
    """Parts of the held-out samples, each scored apart."""
    for name, places in parts.items():
        base, tuned = (data.systems[system].subset(places) for system in (data.base, data.tuned))
        groups = [data.sample_groups[place] for place in places] if data.sample_groups else None
        floors = tuple(
            (words.SYSTEMS[floor][0], data.systems[floor].subset(places)[metric].value)
            for floor in words.FLOORS
            if floor in data.systems
        )
        found = gain(base, tuned, metric, groups=groups)
        yield GroupRow(GROUP_WORDS.get(name, name), len(places), found, floors)


def _confusion(data: ReportData) -> dict[str, Any] | None:
    """The matrix of the tuned model's replies, F1 of each class before and after, and the mean of these."""
    if not data.classes:
        return None
    base, tuned = (
        Confusion.of(data.labels, data.predictions[system], data.classes) for system in (data.base, data.tuned)
    )
    before, after, difference = macro_f1(base, tuned, data.sample_groups or None)
    rows = zip(tuned.classes, tuned.counts.tolist(), base.by_class, tuned.by_class, strict=True)
    return {
        "before": before,
        "after": after,
        "difference": difference,
        "columns": [*range(1, len(tuned.classes) + 1), *([UNREAD] if tuned.counts[:, -1].any() else [])],
        "rows": [(place, title, counts, one, other) for place, (title, counts, one, other) in enumerate(rows, 1)],
    }


def _errors(data: ReportData) -> dict[str, Any]:
    """Kinds that occur, with their counts: untuned, tuned, and tuned by field."""
    names = tuple(dict.fromkeys(name for label in data.labels for name in label))
    base, tuned = (count_errors(data.labels, data.predictions[system], names) for system in (data.base, data.tuned))
    rows = [
        (
            kind,
            meaning,
            sum(base[name][kind] for name in names),
            sum(tuned[name][kind] for name in names),
            [tuned[name][kind] for name in names],
        )
        for kind, meaning in KINDS.items()
    ]
    return {"fields": names, "rows": [row for row in rows if row[2] or row[3]]}
