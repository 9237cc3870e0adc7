"""Answer the question a sample brings, in free text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from mllm_tailor.core.conversation import Conversation, asked
from mllm_tailor.core.errors import DataError
from mllm_tailor.core.sample import Sample
from mllm_tailor.recipe import Settings, validate
from mllm_tailor.tasks.base import Reply, accepted, unread_parts


class AnswerSettings(Settings):
    """`answer: {}` takes questions and answers as the data has them."""

    prompt: str = Field("{question}", description="the question asked; {question} becomes the sample's own")


class Answer:
    """Visual questions, chat and instructions: the sample's own prompt and answer."""

    name = "answer"
    metrics: tuple[str, ...] = ("accuracy", "token_recall", "exact", "anls")
    field_names: tuple[str, ...] = ("answer",)

    def __init__(self, settings: Any) -> None:
        self.settings = validate(AnswerSettings, settings or {}, "task.answer")

    def phrase(self, sample: Sample) -> Conversation:
        """Put the sample's question into the recipe's wording."""
        if not sample.prompt.strip():
            raise DataError(f"{sample.source}: no question — add one, or choose another task")
        return asked(sample, self.settings.prompt, sample.answer)

    def labels(self, sample: Sample) -> dict[str, Any]:
        """The one field `answer`; a list where several answers count as right."""
        return {} if sample.answer is None else {"answer": accepted(sample, sample.answer.strip())}

    def unread(self, sample: Sample) -> Iterable[str]:
        """What neither the question nor the labels hold."""
        return unread_parts(sample, wording=self.settings.prompt)

    def schema(self) -> None:
        """Free text."""
        return None

    def parse(self, text: str) -> Reply:
        """The reply itself."""
        answer = text.strip()
        return Reply(fields={"answer": answer}) if answer else Reply(problem="the reply is empty")
