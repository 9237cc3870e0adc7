"""Generate the fields of a document side by side: a sequence per field, after one prefill of image and prompt.

A reply then takes as many steps as its longest field has tokens, instead of the sum over all fields. Every sequence
answers the same question as if its field were the only one. A model trained on whole replies has not seen that, and a
field no longer depends on those before it, so the effect on the score has to be measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.sample import Prediction, Where
from mllm_tailor.generation.constrain import Grammar, Vocabulary
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import FieldTask, Task


def grammars_of(task: Task, settings: Predict, vocabulary: Vocabulary) -> dict[str, Grammar]:
    """The grammars of a sample's replies, by field; under "" where one reply holds all fields.

    Raises:
        RecipeError: when the task has no fields to generate side by side.
        ModelError: for a schema that cannot be followed.
    """
    if settings.fields == "side_by_side":
        if not isinstance(task, FieldTask):
            raise RecipeError(f"predict.fields: `{task.name}` has no fields to generate side by side — leave it out")
        return {name: Grammar(task.alone(name), vocabulary) for name in task.field_names}
    schema = task.schema()
    return {} if schema is None else {"": Grammar(schema, vocabulary)}


@dataclass
class FieldAssembler:
    """Joins the predictions of a sample's fields."""

    names: Sequence[str]  # in the order of the whole reply
    predictions: dict[str, Prediction] = field(default_factory=dict)

    def add(self, name: str, prediction: Prediction) -> Prediction | None:
        """Add a field; returns the whole prediction once all fields are there."""
        self.predictions[name] = prediction
        if len(self.predictions) < len(self.names):
            return None
        parts = [(name, self.predictions[name]) for name in self.names]
        fields: dict[str, Any] = {name: part.fields[name] for name, part in parts if name in part.fields}
        return Prediction(
            prediction.id,
            json.dumps(fields, ensure_ascii=False),
            fields,
            seconds=sum(part.seconds for _, part in parts),
            problem=next((part.problem for _, part in parts if part.problem), None),
            cut=any(part.cut for _, part in parts),
            raw={path: scores for _, part in parts for path, scores in part.raw.items()},
            where=_joined([part.where for _, part in parts]),
        )


def _joined(parts: Sequence[Where | None]) -> Where | None:
    known = [part for part in parts if part is not None]
    return {path: locations for part in known for path, locations in part.items()} if known else None
