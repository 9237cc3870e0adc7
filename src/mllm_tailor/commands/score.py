"""`tailor score`: predictions of any origin against labels, each with its interval, and compared with the first."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm_tailor.commands.console import show, show_json
from mllm_tailor.core.errors import DataError, RecipeError
from mllm_tailor.core.io import read_json
from mllm_tailor.core.terminal import Table
from mllm_tailor.data import DataIssue
from mllm_tailor.data.csv_rows import csv_rows
from mllm_tailor.data.json_rows import json_file_rows
from mllm_tailor.data.jsonl import jsonl_rows
from mllm_tailor.reporting.sentences import between, score_pair
from mllm_tailor.reporting.tables import gain_table
from mllm_tailor.run.data_record import read_held_out
from mllm_tailor.run.run_dir import open_run, read_predictions, read_scores
from mllm_tailor.scoring import Gain, Scores, compare, score
from mllm_tailor.scoring.referee import LabelledSet, match_predictions, read_labels
from mllm_tailor.tasks import field_kinds, open_task

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


@dataclass(frozen=True)
class Matching:
    """How rows of predictions become those of the labels."""

    columns: Mapping[str, str]  # field, or `id`, to the column that holds it
    in_order: bool


def score_predictions(
    labels: Path,
    predictions: Sequence[Path],
    *,
    metrics: Sequence[str],
    kinds: Sequence[str],
    group_by: str | None,
    columns: Sequence[str] = (),
    in_order: bool = False,
) -> None:
    """Score every set of predictions and compare the others with the first.

    Labels and predictions are JSONL, JSON or CSV files or run folders; `kinds` are words such as `total=amount`,
    `columns` such as `total=Grand Total`. With `in_order` rows are matched by their order, not by an id.

    Raises:
        DataError: when a file cannot be read, or its rows cannot be matched.
        RecipeError: for an unknown metric, or a kind that is no `field=kind`.
    """
    truth = _truth(labels, metrics, _read_pairs(kinds, "--kind", "total=amount"), group_by)
    matching = Matching(_read_pairs(columns, "--column", "total=Grand Total"), in_order)
    names = distinct_names(predictions)
    systems = {name: _score(truth, path, matching) for name, path in zip(names, predictions, strict=True)}
    alone = {name: compare(scores, scores, groups=truth.labelled.groups) for name, scores in systems.items()}
    show(_table(alone, f"Scores of {len(truth.labelled.ids)} samples (95 % interval)"))
    if any("cell_f1" in gains and len(gains["cell_f1"].by_field) > 1 for gains in alone.values()):
        show(_column_table(alone))
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
    recipe = run.recipe()  # of a run: its task took from the data what it needs
    stated = field_kinds(open_task(recipe.task_name, recipe.task_settings))
    return Truth(labelled, tuple(metrics) or tuple(read_scores(run)["metrics"]), {**stated, **kinds})


def _score(truth: Truth, path: Path, matching: Matching) -> Scores:
    labelled = truth.labelled
    matched = match_predictions(
        labelled, _prediction_rows(path), str(path), columns=matching.columns, in_order=matching.in_order
    )
    for problem, what in (
        (matched.missing, "samples without a prediction, which count as unanswered"),
        (matched.unknown, "predictions of samples without a label, which take no part"),
        (matched.unused, "columns that are no labelled field and take no part"),
    ):
        if problem:
            more = ", …" if len(problem) > NAMED else ""
            logger.warning("%s: %s (%d): %s%s", path, what, len(problem), ", ".join(problem[:NAMED]), more)
    for field in labelled.field_names:
        if not any(field in prediction.fields for prediction in matched.predictions):
            logger.warning('%s: no row holds `%s` — if a column does: --column "%s=COLUMN"', path, field, field)
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
    if path.suffix.lower() == ".json" and isinstance(content := read_json(path), dict) and _by_file(content):
        return [{"id": name, **row} for name, row in content.items()]
    read = {**dict.fromkeys(TABLES, csv_rows), ".json": json_file_rows}.get(path.suffix.lower())
    read = jsonl_rows if suffix.endswith(ROWS) else read
    if read is None:
        raise DataError(f"{path}: neither JSONL, JSON nor CSV — save it as .jsonl, .json, .csv or .tsv")
    rows: list[Mapping[str, Any]] = []
    for row in read(path):
        if not isinstance(row, DataIssue):
            rows.append(row.values)
        elif row.severity == "warning":
            logger.warning("%s", row)
        else:
            raise DataError(str(row))
    return rows


def _by_file(content: Mapping[str, Any]) -> bool:
    """Whether an object has a row for each sample, under its id."""
    return len(content) > 1 and all(isinstance(row, dict) for row in content.values())


def _read_pairs(words: Sequence[str], option: str, example: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    wrong = next((word for word, (_, sign, value) in zip(words, pairs, strict=True) if not sign or not value), None)
    if wrong is not None:
        raise RecipeError(f"{option} {wrong}: write a field, = and a value, such as {example}")
    return {field.strip(): value.strip() for field, _, value in pairs}


def _column_table(alone: Mapping[str, Mapping[str, Gain]]) -> Table:
    """Precision, recall and F1 of the cells of every list field and column."""
    table = Table("Cells of line items", "", "column", "n", "precision", "recall", "F1", whole=(0, 1))
    for name, gains in alone.items():
        for column, f1 in gains["cell_f1"].by_field.items():
            parts = [
                gains[metric].by_field.get(column) for metric in ("cell_precision", "cell_recall") if metric in gains
            ]
            values = [f"{part.tuned.value:.1f}" if part is not None and part.count else "–" for part in parts]
            table.add_row(name, column, str(f1.count), *(values or ["–", "–"]), f"{f1.tuned.value:.1f}")
            name = ""
    return table


def _table(alone: Mapping[str, Mapping[str, Gain]], title: str) -> Table:
    table = Table(title, "", "metric", "n", "score", "95 % interval", whole=(0, 1, 4))
    for name, gains in alone.items():
        for metric, gain in gains.items():
            if gain.count:
                value = score_pair(gain)[1]
                table.add_row(name, metric.replace("_", " "), str(gain.count), value, between(gain.tuned))
                name = ""
    return table
