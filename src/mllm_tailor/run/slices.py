"""Breakdowns of scores by columns of the data: a type of question, a speaker, a class without training samples."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mllm_tailor.core.errors import RecipeError, nearest
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.split import value_of
from mllm_tailor.scoring import constant_baseline
from mllm_tailor.tasks import ClassTask, Task

Breakdowns = Mapping[str, Mapping[str, Sequence[int]]]  # column -> value -> indices of held-out samples


def check_columns(columns: Sequence[str], samples: Sequence[Sample]) -> None:
    """Refuse a column of `score_by` that no sample has, before anything is trained.

    Raises:
        RecipeError: naming the nearest column.
    """
    known = {str(name) for sample in samples for name in (*sample.fields, *sample.extra)}
    for column in columns:
        if column not in known:
            raise RecipeError(f"`score_by`: no field or column `{column}` in the data — {nearest(column, known)}")


def break_down(columns: Sequence[str], samples: Sequence[Sample]) -> Breakdowns:
    """Indices of the samples of each value, the most frequent first; a sample without a value is in `(none)`."""
    result: dict[str, dict[str, list[int]]] = {}
    for column in columns:
        values: dict[str, list[int]] = defaultdict(list)
        for index, sample in enumerate(samples):
            values[_key(sample, column)].append(index)
        result[column] = dict(sorted(values.items(), key=lambda item: (-len(item[1]), item[0])))
    return result


def majority_answers(
    task: Task, columns: Sequence[str], train: Sequence[Sample], held_out: Sequence[Sample]
) -> list[dict[str, Any]]:
    """For each held-out sample the most frequent training answer among samples that agree in every column.

    Where no training sample agrees in all of them, the last columns are dropped one after another.
    """
    labels: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for sample in train:
        for key in _prefixes(sample, columns):
            labels[key].append(task.labels(sample))
    answers = {key: constant_baseline(group, 1, task.field_names)[0] for key, group in labels.items()}
    return [dict(next(answers[key] for key in _prefixes(sample, columns) if key in answers)) for sample in held_out]


def _prefixes(sample: Sample, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Its values of all columns, then of all but the last, down to none."""
    values = tuple(_key(sample, column) for column in columns)
    return [values[:count] for count in range(len(values), -1, -1)]


def classes_not_trained(task: Task, train: Sequence[Sample], held_out: Sequence[Sample]) -> dict[str, str]:
    """Held-out samples by id whose class no training sample has: they stay in the score, with this note."""
    if not isinstance(task, ClassTask):
        return {}
    (name,) = task.field_names
    known = Counter(task.labels(sample)[name] for sample in train)
    wanted = {sample.id: task.labels(sample)[name] for sample in held_out}
    return {
        identifier: f"its class `{value}` is in no training sample; scored all the same"
        for identifier, value in wanted.items()
        if value not in known
    }


def _key(sample: Sample, column: str) -> str:
    value = value_of(sample, column)
    return "(none)" if value is None or value == "" else str(value)
