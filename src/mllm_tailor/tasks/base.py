"""What every task provides. A task is the one place that knows both sides of a conversation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

from mllm_tailor.core.conversation import Conversation
from mllm_tailor.core.sample import Sample

UNFILLED: tuple[Any, ...] = (None, "", [], {})  # values of a field that state nothing


def accepted(sample: Sample, text: str) -> str | list[str]:
    """The label of a sample that is taught to reply with this text: all answers that count as right.

    The text itself where there is no other. An answer that several annotators gave is there as often.
    """
    answers = [words for answer in sample.answers if (words := " ".join(answer.split()))]
    return answers if set(answers) - {text} else text


def unread_parts(
    sample: Sample,
    *,
    fields: Collection[str] = (),
    wording: str = "{question}",
    answers: bool = True,
    options: bool = False,
) -> Iterator[str]:
    """What a sample states and a task does not read: fields by name, and its question, options or answers.

    `fields` are the fields that the task reads, `wording` its prompt, `answers` whether it learns the sample's answer,
    `options` whether it shows the options.
    """
    yield from (f"`{name}`" for name, value in sample.fields.items() if name not in fields and value not in UNFILLED)
    if sample.prompt.strip() and not any(part in wording for part in ("{question}", "{phrase}")):
        yield "the question"
    if sample.options and not options:
        yield "the options"
    if sample.answer not in (None, "", *map(str, sample.fields.values())) and not answers:
        yield "the answer"


@dataclass(frozen=True)
class Reply:
    """A reply, read: its fields, or the problem that kept them from being read."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


class Task(Protocol):
    """How a sample becomes a conversation and how a reply is read back."""

    name: str
    metrics: tuple[str, ...]  # scored when the recipe names none; the first decides
    field_names: tuple[str, ...]  # what a reply holds and what reports break scores down by

    def phrase(self, sample: Sample) -> Conversation:
        """What the model is shown of the sample and, where it is labelled, the answer that it learns.

        Raises:
            DataError: naming `sample.source` when the labels do not fit the task.
        """
        ...

    def labels(self, sample: Sample) -> dict[str, Any]:
        """The right fields of a sample, as scores compare them; empty when it is unlabelled."""
        ...

    def schema(self) -> dict[str, Any] | None:
        """JSON schema that constrains the reply, or None for free text."""
        ...

    def parse(self, text: str) -> Reply:
        """Read a reply. Never raises: an unreadable reply has no fields and says why."""
        ...


@runtime_checkable
class ChoiceTask(Task, Protocol):
    """A task with a closed set of replies, so that a model can also be asked how likely each of them is."""

    def choices(self, sample: Sample) -> Sequence[str]:
        """Every reply there can be to a sample, as training writes it.

        Raises:
            DataError: naming the row, when the sample leaves nothing to choose from.
        """
        ...


@runtime_checkable
class AccountingTask(Task, Protocol):
    """A task that states what of a sample it does not read, so that a check can name it."""

    def unread(self, sample: Sample) -> Iterable[str]:
        """What neither the question nor the labels hold: names of fields in backticks, or words for other parts."""
        ...


@runtime_checkable
class DeclaringTask(Task, Protocol):
    """A task whose settings declare fields of the data."""

    def absent(self, samples: Iterable[Sample]) -> list[str]:
        """The declared fields, inner ones as `menu.price`, that no sample has."""
        ...


@runtime_checkable
class ClassTask(ChoiceTask, Protocol):
    """A task whose replies are the same for every sample, so that they can be counted as classes."""

    @property
    def classes(self) -> Sequence[str]:
        """What the one field of a reply may hold."""
        ...


@runtime_checkable
class FieldTask(Task, Protocol):
    """A task whose replies are objects, so that a model can also be asked for one field at a time."""

    def alone(self, name: str) -> dict[str, Any]:
        """JSON schema of a reply that holds this field and no other."""
        ...


@runtime_checkable
class RegionTask(Task, Protocol):
    """A task whose replies hold boxes or outlines, in thousandths of the last image of the conversation."""

    region_fields: tuple[str, ...]  # of a reply, each [left, top, right, bottom] or a list of outlines


@runtime_checkable
class DataDependentTask(Task, Protocol):
    """A task whose settings the data may fill in."""

    def resolve_from(self, samples: Iterable[Sample]) -> Self:
        """The task with what its settings leave to the data read from labelled samples."""
        ...

    def resolved_settings(self) -> Any:
        """Its settings as a recipe says them."""
        ...
