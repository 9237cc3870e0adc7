"""Scores broken down by what the data says of its samples: a type of question, a speaker, a class never learned."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mllm_tailor.core.errors import RecipeError, nearest
from mllm_tailor.core.sample import Sample
from mllm_tailor.data.split import value_of
from mllm_tailor.scoring import constant_baseline
from mllm_tailor.tasks import ClassTask, Task

if TYPE_CHECKING:
    from mllm_tailor.run.dataset import Job

Places = Mapping[str, Mapping[str, Sequence[int]]]  # column -> value -> places of held-out samples


def check_columns(columns: Sequence[str], samples: Sequence[Sample]) -> None:
    """Refuse a column of `score_by` that no sample has, before anything is trained.

    Raises:
        RecipeError: naming the nearest column.
    """
    known = {str(name) for sample in samples for name in (*sample.fields, *sample.extra)}
    for column in columns:
        if column not in known:
            raise RecipeError(f"`score_by`: no field or column `{column}` in the data — {nearest(column, known)}")


def places_by(columns: Sequence[str], samples: Sequence[Sample]) -> Places:
    """Where the samples of each value stand, the largest parts first; a sample without a value is in `(none)`."""
    found: dict[str, dict[str, list[int]]] = {}
    for column in columns:
        parts: dict[str, list[int]] = defaultdict(list)
        for place, sample in enumerate(samples):
            parts[_key(sample, column)].append(place)
        found[column] = dict(sorted(parts.items(), key=lambda part: (-len(part[1]), part[0])))
    return found


def majority_baseline(job: Job) -> list[dict[str, Any]]:
    """For each held-out sample the most frequent training answer among samples that agree in every `score_by` column.

    Where no training sample agrees in all of them, the last columns are given up one after another.
    """
    columns, task = job.recipe.score_by, job.task
    labels: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for sample in job.train:
        for key in _prefixes(sample, columns):
            labels[key].append(task.labels(sample))
    answers = {key: constant_baseline(part, 1, task.field_names)[0] for key, part in labels.items()}
    return [dict(next(answers[key] for key in _prefixes(sample, columns) if key in answers)) for sample in job.held_out]


def _prefixes(sample: Sample, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Its values of all columns, then of all but the last, down to none."""
    values = tuple(_key(sample, column) for column in columns)
    return [values[:count] for count in range(len(values), -1, -1)]


def never_learned(task: Task, train: Sequence[Sample], held_out: Sequence[Sample]) -> dict[str, str]:
    """Held-out samples by id whose class no training sample has: they stay in the score, with this note."""
    if not isinstance(task, ClassTask):
        return {}
    (name,) = task.field_names
    known = Counter(task.labels(sample)[name] for sample in train)
    wanted = {sample.id: task.labels(sample)[name] for sample in held_out}
    return {
        identifier: f"its class `{found}` is in no training sample; scored all the same"
        for identifier, found in wanted.items()
        if found not in known
    }


def _key(sample: Sample, column: str) -> str:
    value = value_of(sample, column)
    return "(none)" if value is None or value == "" else str(value)
