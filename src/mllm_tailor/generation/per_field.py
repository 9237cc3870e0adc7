"""The fields of a document side by side: each in a row of its own behind one reading of picture and prompt.

A reply then takes as many steps as its longest field has tokens, not as all of them have. The question stays as it was,
and each row answers it as if its field were the only one. A model trained on whole replies never met that, and a field
no longer sees what was written for those before it, so whether it costs anything is to be scored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm_tailor.core.errors import RecipeError
from mllm_tailor.core.sample import Prediction
from mllm_tailor.generation.constrain import Grammar, Vocabulary
from mllm_tailor.recipe.schema import Predict
from mllm_tailor.tasks import FieldTask, Task


def grammars_of(task: Task, settings: Predict, vocabulary: Vocabulary) -> dict[str, Grammar]:
    """What each reply of a sample is held to, by field; under "" where one reply holds all of them.

    Raises:
        RecipeError: when fields are wanted side by side of a task that has none.
        ModelError: for a schema that cannot be followed.
    """
    if settings.fields == "side_by_side":
        if not isinstance(task, FieldTask):
            raise RecipeError(f"predict.fields: `{task.name}` has no fields to write side by side — leave it out")
        return {name: Grammar(task.alone(name), vocabulary) for name in task.field_names}
    schema = task.schema()
    return {} if schema is None else {"": Grammar(schema, vocabulary)}


@dataclass
class FieldAssembler:
    """The predictions of one sample's fields, as they are finished."""

    names: Sequence[str]  # in the order of the whole reply
    found: dict[str, Prediction] = field(default_factory=dict)

    def add(self, name: str, prediction: Prediction) -> Prediction | None:
        """Take in one field; the whole prediction when it was the last."""
        self.found[name] = prediction
        if len(self.found) < len(self.names):
            return None
        parts = [(name, self.found[name]) for name in self.names]
        fields: dict[str, Any] = {name: part.fields[name] for name, part in parts if name in part.fields}
        return Prediction(
            prediction.id,
            json.dumps(fields, ensure_ascii=False),
            fields,
            {name: part.confidence[name] for name, part in parts if name in part.confidence},
            sum(part.seconds for _, part in parts),
            next((part.problem for _, part in parts if part.problem), None),
            any(part.cut for _, part in parts),
        )
