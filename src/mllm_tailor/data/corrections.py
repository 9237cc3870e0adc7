"""Decisions of `tailor audit` about labels: which are right as they stand, and which are replaced, by what.

A decision names the label it was made about. Where the data have another label by now, it is refused, never applied
to something it was not meant for. The label files themselves are never written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mllm_tailor.core.errors import DataError, nearest
from mllm_tailor.core.io import read_jsonl
from mllm_tailor.core.sample import Sample
from mllm_tailor.tasks import Task

SHOWN = 5


class Decision(BaseModel):
    """One row of decisions.jsonl."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    field: str
    decision: Literal["keep", "fix"]
    label: Any = None  # as it stood when the decision was made
    value: Any = None  # in its place, for `fix`

    @property
    def key(self) -> tuple[str, str]:
        """Sample and field."""
        return self.id, self.field


@dataclass(frozen=True)
class Corrected:
    """A label that was replaced."""

    id: str
    field: str
    before: Any
    after: Any


def read_decisions(path: Path) -> list[Decision]:
    """The decisions of a file; of several about one label the last counts.

    Raises:
        DataError: naming the row.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file — save the decisions of `tailor audit` there, or correct the path")
    decisions: dict[tuple[str, str], Decision] = {}
    for number, row in read_jsonl(path):
        try:
            decision = Decision.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "row"
            raise DataError(
                f"{path}:{number}: {where}: {first['msg']} — a decision has id, field, decision, label, value"
            ) from None
        if decision.decision == "fix" and "value" not in decision.model_fields_set:
            raise DataError(f"{path}:{number}: `fix` without a `value` — state the right label")
        decisions[decision.key] = decision
    return list(decisions.values())


def correct(
    samples: Sequence[Sample], task: Task, decisions: Sequence[Decision], name: str
) -> tuple[list[Sample], list[Corrected]]:
    """The samples with their fixed labels, and what was replaced. Labels that already have the value stay.

    Raises:
        DataError: for a decision about an unknown sample or field, or about a label that is no longer there.
    """
    by_id = {sample.id: sample for sample in samples}
    done: list[Corrected] = []
    problems: list[str] = []
    for decision in decisions:
        sample = by_id.get(decision.id)
        if sample is None:
            problems.append(f"{decision.id}: no such sample — {nearest(decision.id, by_id)}")
            continue
        try:
            change = _replace(sample, task, decision)
        except DataError as error:
            problems.append(str(error))
            continue
        if change is not None:
            by_id[decision.id], corrected = change
            done.append(corrected)
    if problems:
        more = f"\n… and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError(f"{name}: decisions that do not fit the data:\n" + "\n".join(problems[:SHOWN]) + more)
    return [by_id[sample.id] for sample in samples], done


def _replace(sample: Sample, task: Task, decision: Decision) -> tuple[Sample, Corrected] | None:
    """The sample with the new label; None where nothing is to be done."""
    labels = _labels(sample, task)
    if decision.field not in labels:
        raise DataError(f"{sample.id}: no field `{decision.field}` — {nearest(decision.field, labels)}")
    present = labels[decision.field]
    if decision.decision == "keep" or present == decision.value:
        return None
    if present != decision.label:
        raise DataError(
            f"{sample.id}: {decision.field} is now {present!r}, and the decision was about {decision.label!r} — "
            "decide again"
        )
    if sample.fields or decision.field != task.field_names[0]:
        changed = replace(sample, fields={**sample.fields, decision.field: decision.value})
    else:
        changed = replace(sample, answer=str(decision.value), answers=())
    after = task.labels(changed)[decision.field]
    return changed, Corrected(sample.id, decision.field, present, after)


def _labels(sample: Sample, task: Task) -> Mapping[str, Any]:
    """The labels as scores compare them, or as the data state them where they do not fit the task yet."""
    try:
        return task.labels(sample)
    except DataError:
        return sample.fields
