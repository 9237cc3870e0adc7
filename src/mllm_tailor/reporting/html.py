"""Render `ReportData` as one HTML file: no script, no network, every value escaped."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mllm_tailor import __version__
from mllm_tailor.core.io import write_atomic
from mllm_tailor.core.terminal import printable
from mllm_tailor.reporting import charts, confidence, sentences
from mllm_tailor.reporting.cases import Case, data_uri, make_cases
from mllm_tailor.reporting.report_data import WATCHED, ReportData
from mllm_tailor.reporting.wrong_values import WrongValues, find_wrong_values, scores_csv
from mllm_tailor.scoring.compare import Gain, form_and_reading, gain
from mllm_tailor.scoring.confusion import NO_CLASS, Confusion, macro_f1
from mllm_tailor.scoring.errors import KINDS, count_errors
from mllm_tailor.scoring.metrics import METRICS

GROUP_TITLES = {"seen": "groups also in training", "unseen": "groups never seen in training"}


@dataclass(frozen=True)
class BarRow:
    """One system of the bar chart."""

    name: str
    note: str
    value: str
    chart: Markup


@dataclass(frozen=True)
class GroupRow:
    """The gain on a subset of the held-out samples, with the baselines."""

    name: str
    count: int
    gain: Gain
    baselines: tuple[tuple[str, str], ...]


def write_report(data: ReportData, path: Path) -> None:
    """Write the report atomically."""
    write_atomic(path, render(data))


def render(data: ReportData) -> str:
    """The report as HTML."""
    return page("report.html", **_context(data))


def page(template: str, **context: Any) -> str:
    """Render a template: autoescaped; an undefined name is an error."""
    return _environment().get_template(template).render(version=__version__, **context)


@cache
def _environment() -> Environment:
    """With its compiled templates, which take longer than a report."""
    environment = Environment(
        loader=PackageLoader("mllm_tailor.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable_lines(str(value)),
    )
    environment.filters |= {
        "number": sentences.number,
        "signed": sentences.signed,
        "between": sentences.between,
        "metric": sentences.title,
        "scores": sentences.score_pair,
        "score": sentences.ratios_text,
    }
    return environment


def printable_lines(text: str) -> str:
    """Control characters made visible; line breaks kept."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _context(data: ReportData) -> dict[str, Any]:
    """All values of the template, which computes nothing."""
    over_baselines = {name: _against(data, name, data.tuned) for name in sentences.BASELINES if name in data.systems}
    by_field = data.gain.by_field
    top = charts.scale_top(each for gain in by_field.values() for each in (gain.base, gain.tuned))
    bars, bars_top = _bars(data, over_baselines)
    cases, wrong = make_cases(data), find_wrong_values(data)
    return {
        "data": data,
        "headline": sentences.headline(data),
        "meaning": sentences.meaning(data, over_baselines),
        "bars": bars,
        "bars_top": bars_top,
        "form": _form(data),
        "summaries": {name: METRICS.summary(name) for name in METRICS},
        "fields": [(name, gain, charts.dumbbell(gain.base, gain.tuned, top)) for name, gain in by_field.items()],
        "fields_top": top,
        "line_items": _line_items(data),
        "groups": list(_groups(data, data.groups, data.metric)),
        "breakdowns": [
            (column, metric, list(_groups(data, subsets, metric)))
            for column, subsets in data.breakdowns.items()
            for metric in dict.fromkeys((data.metric, *data.breakdown_metrics))
        ],
        "confusion": _confusion(data),
        "loss": _loss_curve(data) if data.curves.loss else None,
        "watched": _watched_curves(data),
        "dev": _dev_curve(data) if data.curves.dev else None,
        "confidence": _confidence(data),
        "cases": cases,
        "pictures": _pictures(data, cases, wrong),
        "errors": _errors(data),
        "wrong": wrong,
        "scores_csv": scores_csv(data),
        "environment": json.dumps(dict(data.environment), indent=2, ensure_ascii=False, default=str),
        "systems": [name for name in sentences.SYSTEMS if name in data.systems],
        "system_titles": sentences.SYSTEMS,
    }


@dataclass(frozen=True)
class Pictures:
    """The images that rows of the list of wrong values open."""

    keys: Mapping[str, str]  # sample id to the key of its popover
    hidden: tuple[tuple[str, str, str], ...]  # key, id and data URI of those that no case shows


def _pictures(data: ReportData, cases: Mapping[str, Sequence[Case]], wrong: WrongValues) -> Pictures:
    """Cases have a popover, named by kind and number, which is used again; other samples get one that is not shown."""
    shown = {
        case.sample: f"{kind}-{number}"
        for kind, chosen in cases.items()
        for number, case in enumerate(chosen, 1)
        if case.image
    }
    others = [name for name in dict.fromkeys(row.id for row in wrong.rows) if name in data.images and name not in shown]
    hidden = tuple((f"wrong-{number}", name, data_uri(data.images[name])) for number, name in enumerate(others, 1))
    return Pictures(shown | {name: key for key, name, _ in hidden}, hidden)


@dataclass(frozen=True)
class LineItemRow:
    """The F1 of the rows of a list field, or of the cells of one of its columns, with the tuned model's parts of it."""

    name: str
    what: str  # rows or cells
    f1: Gain
    precision: float
    recall: float


def _line_items(data: ReportData) -> list[LineItemRow]:
    """The rows of every list field, then the cells of each of its columns."""
    cells = data.gains["cell_f1"].by_field if "cell_f1" in data.gains else {}
    result = []
    for field in (name for name in cells if name in data.gain.by_field):
        columns = [name for name in cells if name.startswith(f"{field}.")]
        for level, names in (("row", [field]), ("cell", [field, *columns])):
            for name in names:
                f1, precision, recall = (_of_field(data, f"{level}_{f}", name) for f in ("f1", "precision", "recall"))
                if f1 is not None and f1.count and precision is not None and recall is not None:
                    what = f"whole rows of {name}" if level == "row" else f"cells of {name}"
                    result.append(LineItemRow(name, what, f1, precision.tuned.value, recall.tuned.value))
    return result


def _of_field(data: ReportData, metric: str, field: str) -> Gain | None:
    return data.gains[metric].by_field.get(field) if metric in data.gains else None


def _confidence(data: ReportData) -> dict[str, Any]:
    whole = data.confidence.parts.get("all")
    charts_of = (
        {}
        if whole is None
        else {
            "reliability": confidence.reliability_diagram(whole),
            "risk": confidence.risk_curve(whole, data.confidence.promise),
        }
    )
    return {"sentences": confidence.sentences(data.confidence), "rows": confidence.rows(data.confidence), **charts_of}


def _against(data: ReportData, first: str, second: str) -> Gain:
    """The gain of the second system over the first in the headline metric."""
    groups = data.sample_groups or None
    return gain(data.systems[first], data.systems[second], data.metric, groups=groups, folds=data.folds)


def _loss_curve(data: ReportData) -> Markup:
    """A policy loss may be negative."""
    least = min(value for _, value in data.curves.loss)
    return charts.curve(data.curves.loss, "loss by step", bounds=(0.0 if least >= 0 else -math.inf, math.inf))


def _watched_curves(data: ReportData) -> list[tuple[str, Markup]]:
    """The reward, and beside it what the reward does not see: a run that games its reward shows here."""
    names = [(name, WATCHED.get(name, name.removeprefix("watch/"))) for name in data.curves.watched]
    return [(title, charts.curve(data.curves.watched[name], f"{title} by step")) for name, title in names]


def _dev_curve(data: ReportData) -> Markup:
    """The axis ends at 100 where the metric does: for all but error rates."""
    bounds = (0.0, 100.0 if data.gain.better == "higher" else math.inf)
    name = "score on the dev split by step"
    return charts.curve(data.curves.dev, name, marked=data.curves.best_step, dots=True, bounds=bounds)


def _bars(data: ReportData, over_baselines: dict[str, Gain]) -> tuple[list[BarRow], float]:
    """Baselines, base and tuned, the recipe's decoding mode last; and the upper end of their scale."""
    others = [mode for mode in ("likelihood", "unconstrained", "constrained") if mode != data.mode]
    intervals = {name: gain.base for name, gain in over_baselines.items()}
    for other in others:
        if f"base_{other}" in data.systems and f"tuned_{other}" in data.systems:
            change = _against(data, f"base_{other}", f"tuned_{other}")
            intervals |= {f"base_{other}": change.base, f"tuned_{other}": change.tuned}
    intervals |= {data.base: data.gain.base, data.tuned: data.gain.tuned}
    systems = [f"{who}_{mode}" for who in ("base", "tuned") for mode in (*others, data.mode)]
    top = charts.scale_top(intervals.values())
    rows = []
    for name in (name for name in (*sentences.BASELINES, *systems) if name in intervals):
        title, note = sentences.SYSTEMS[name]
        kind = name.split("_")[0] + (" other" if name.endswith(tuple(others)) else "")
        value = sentences.ratios_text(data.systems[name][data.metric].samples)
        rows.append(BarRow(title, note, value, charts.bar(intervals[name], kind, top)))
    return rows, top


def _form(data: ReportData) -> str:
    needed = [f"{who}_{mode}" for who in ("base", "tuned") for mode in ("unconstrained", "constrained")]
    if any(name not in data.systems for name in needed):
        return ""
    unconstrained, constrained = (
        (data.systems[f"base_{mode}"], data.systems[f"tuned_{mode}"]) for mode in ("unconstrained", "constrained")
    )
    split = form_and_reading(
        unconstrained, constrained, data.metric, groups=data.sample_groups or None, folds=data.folds
    )
    return sentences.form_or_reading(split)


def _groups(data: ReportData, subsets: Mapping[str, Sequence[int]], metric: str) -> Iterator[GroupRow]:
    """The gain on each subset of the held-out samples."""
    for name, indices in subsets.items():
        base, tuned = (data.systems[system].subset(indices) for system in (data.base, data.tuned))
        groups = [data.sample_groups[index] for index in indices] if data.sample_groups else None
        baselines = tuple(
            (
                sentences.SYSTEMS[baseline][0],
                sentences.ratios_text(data.systems[baseline][metric].samples.subset(indices)),
            )
            for baseline in sentences.BASELINES
            if baseline in data.systems
        )
        change = gain(base, tuned, metric, groups=groups, folds=data.folds)
        yield GroupRow(GROUP_TITLES.get(name, name), len(indices), change, baselines)


def _confusion(data: ReportData) -> dict[str, Any] | None:
    """The tuned model's confusion matrix, F1 of each class before and after tuning, and macro F1."""
    if not data.classes:
        return None
    base, tuned = (
        Confusion.of(data.labels, data.predictions[system], data.classes) for system in (data.base, data.tuned)
    )
    before, after, difference = macro_f1(base, tuned, data.sample_groups or None, folds=data.folds)
    rows = zip(tuned.classes, tuned.counts.tolist(), base.by_class, tuned.by_class, strict=True)
    return {
        "before": before,
        "after": after,
        "difference": difference,
        "columns": [*range(1, len(tuned.classes) + 1), *([NO_CLASS] if tuned.counts[:, -1].any() else [])],
        "rows": [(number, *row) for number, row in enumerate(rows, 1)],
    }


def _errors(data: ReportData) -> dict[str, Any]:
    """Kinds of error that occur, with their counts: base, tuned, and tuned by field."""
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
