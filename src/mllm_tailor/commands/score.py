"""`tailor score`: predictions of any origin against labels, each with its interval, and compared with the first."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_tailor.commands.console import show, show_json
from mllm_tailor.core.errors import DataError, RecipeError
from mllm_tailor.core.terminal import Table
from mllm_tailor.data import DataIssue
from mllm_tailor.data.csv_rows import csv_rows
from mllm_tailor.data.jsonl import jsonl_rows
from mllm_tailor.reporting.sentences import between
from mllm_tailor.reporting.tables import gain_table
from mllm_tailor.run.data_record import read_held_out
from mllm_tailor.run.resolve import resolve_here
from mllm_tailor.run.run_dir import open_run, read_predictions, read_scores
from mllm_tailor.run.scores import field_kinds
from mllm_tailor.scoring import Gain, Scores, compare, score
from mllm_tailor.scoring.referee import LabelledSet, match_predictions, read_labels

logger = logging.getLogger(__name__)

TABLES = {".csv", ".tsv"}
ROWS = (".jsonl", ".ndjson")
NAMED = 3  # ids named in a message


@dataclass(frozen=True)
class Truth:
    """The labels, and how they are scored."""

    labelled: LabelledSet
    metrics: tuple[str, ...]
    kinds: Mapping[str, str]


def score_predictions(
    labels: Path, predictions: Sequence[Path], *, metrics: Sequence[str], kinds: Sequence[str], group_by: str | None
) -> None:
    """Score every set of predictions and compare the others with the first.

    Labels and predictions are JSONL or CSV files or run folders; `kinds` are words such as `total=amount`.

    Raises:
        DataError: when a file cannot be read, or its rows cannot be matched.
        RecipeError: for an unknown metric, or a kind that is no `field=kind`.
    """
    truth = _truth(labels, metrics, _read_kinds(kinds), group_by)
    names = distinct_names(predictions)
    systems = {name: _score(truth, path) for name, path in zip(names, predictions, strict=True)}
    alone = {name: compare(scores, scores, groups=truth.labelled.groups) for name, scores in systems.items()}
    show(_table(alone, f"Scores of {len(truth.labelled.ids)} samples (95 % interval)"))
    first, *others = names
    changes = {name: compare(systems[first], systems[name], groups=truth.labelled.groups) for name in others}
    for name, gains in changes.items():
        show(gain_table(gains, f"{name} against {first}", first="first", second="other"))
    show_json(
        {
            "samples": len(truth.labelled.ids),
            "metrics": list(truth.metrics),
            "systems": {name: scores.row() for name, scores in systems.items()},
            "intervals": {name: {m: vars(gain.tuned) for m, gain in gains.items()} for name, gains in alone.items()},
            "difference": {name: {m: gain.row() for m, gain in gains.items()} for name, gains in changes.items()},
        }
    )


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The ends of paths, as long as they must be to differ."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = [str(Path(*part[-count:])) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(paths, 1)]


def _truth(path: Path, metrics: Sequence[str], kinds: dict[str, str], group_by: str | None) -> Truth:
    if not path.is_dir():
        labelled = read_labels(_rows(path), str(path), group_by)
        return Truth(labelled, tuple(metrics) or labelled.default_metrics, kinds)
    if group_by is not None:
        raise RecipeError("--group-by is for a file of labels; a run has its groups")
    run = open_run(path)
    held_out = read_held_out(run)
    labelled = LabelledSet(held_out.ids, held_out.labels, held_out.groups)
    stated = field_kinds(resolve_here(run.recipe()).task)
    return Truth(labelled, tuple(metrics) or tuple(read_scores(run)["metrics"]), {**stated, **kinds})


def _score(truth: Truth, path: Path) -> Scores:
    labelled = truth.labelled
    matched = match_predictions(labelled, _prediction_rows(path), str(path))
    for problem, what in (
        (matched.missing, "samples have no prediction and count as unanswered"),
        (matched.unknown, "predictions are of samples without a label and take no part"),
        (matched.unused, "columns are no labelled field and take no part"),
    ):
        if problem:
            more = ", …" if len(problem) > NAMED else ""
            logger.warning("%s: %d %s: %s%s", path, len(problem), what, ", ".join(problem[:NAMED]), more)
    return score(labelled.labels, matched.predictions, truth.metrics, labelled.field_names, truth.kinds)


def _prediction_rows(path: Path) -> list[Mapping[str, Any]]:
    """The tuned model's predictions of a run folder, or the rows of a file."""
    if not path.is_dir():
        return _rows(path)
    run = open_run(path)
    return [prediction.row() for prediction in read_predictions(run.predictions(f"tuned_{read_scores(run)['mode']}"))]


def _rows(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    suffix = "".join(path.suffixes[-2:]).lower().removesuffix(".gz")
    read = csv_rows if path.suffix.lower() in TABLES else jsonl_rows if suffix.endswith(ROWS) else None
    if read is None:
        raise DataError(f"{path}: neither JSONL nor CSV — save it as .jsonl, .csv or .tsv")
    rows: list[Mapping[str, Any]] = []
    for row in read(path):
        if not isinstance(row, DataIssue):
            rows.append(row.values)
        elif row.severity == "warning":
            logger.warning("%s", row)
        else:
            raise DataError(str(row))
    return rows


def _read_kinds(words: Sequence[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    wrong = next((word for word, (_, sign, kind) in zip(words, pairs, strict=True) if not sign or not kind), None)
    if wrong is not None:
        raise RecipeError(f"--kind {wrong}: write the field and its kind, such as total=amount")
    return {field: kind for field, _, kind in pairs}


def _table(alone: Mapping[str, Mapping[str, Gain]], title: str) -> Table:
    table = Table(title, "", "metric", "n", "score", "95 % interval", whole=(0, 1, 4))
    for name, gains in alone.items():
        for metric, gain in gains.items():
            if gain.count:
                value = f"{gain.tuned.value:.1f}"
                table.add_row(name, metric.replace("_", " "), str(gain.count), value, between(gain.tuned))
                name = ""
    return table
