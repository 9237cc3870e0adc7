"""Write down what is said in a recording."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from mllm_tailor.core.conversation import Conversation, asked
from mllm_tailor.core.sample import Sample
from mllm_tailor.recipe import Settings, validate
from mllm_tailor.tasks.base import Reply, unread_parts
from mllm_tailor.tasks.caption import labelled_text


class TranscribeSettings(Settings):
    """`transcribe: {}` takes the texts the data has."""

    label: str = Field("text", description="field of the data that holds the words; without it, the answer does")
    prompt: str = Field("Write down what is said.", description="the question")


class Transcribe:
    """Words as spoken; the share of wrong ones decides (lower is better)."""

    name = "transcribe"
    metrics: tuple[str, ...] = ("word_errors", "character_errors", "normalised_exact")
    field_names: tuple[str, ...] = ("text",)

    def __init__(self, settings: Any) -> None:
        self.settings = validate(TranscribeSettings, settings or {}, "task.transcribe")

    def phrase(self, sample: Sample) -> Conversation:
        """Set the question and, for a labelled sample, the words."""
        return asked(sample, self.settings.prompt, self.labels(sample).get("text"))

    def labels(self, sample: Sample) -> dict[str, Any]:
        """The one field `text`."""
        text = labelled_text(sample, self.settings.label)
        return {} if text is None else {"text": text}

    def unread(self, sample: Sample) -> Iterable[str]:
        """What neither the question nor the labels hold."""
        label = self.settings.label
        return unread_parts(sample, fields=(label,), wording=self.settings.prompt, answers=label not in sample.fields)

    def schema(self) -> None:
        """Free text."""
        return None

    def parse(self, text: str) -> Reply:
        """The reply on one line."""
        said = " ".join(text.split())
        return Reply(fields={"text": said}) if said else Reply(problem="the reply is empty")
