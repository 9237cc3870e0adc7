"""Find a picture's text among all texts, and a text's picture among all pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from mllm_tailor.core.conversation import Conversation, asked
from mllm_tailor.core.sample import Sample
from mllm_tailor.recipe import Settings, validate
from mllm_tailor.tasks.base import Reply, unread_parts
from mllm_tailor.tasks.caption import labelled_text


class MatchSettings(Settings):
    """`match: {}` takes the texts the data has."""

    label: str = Field("caption", description="field of the data that holds the text; without it, the answer does")


class Match:
    """For models that compare (CLIP, SigLIP). A prediction holds the nearest texts and pictures, the nearest first."""

    name = "match"
    metrics: tuple[str, ...] = ("recall_1", "recall_5", "recall_10")
    field_names: tuple[str, ...] = ("text", "picture")

    def __init__(self, settings: Any) -> None:
        self.settings = validate(MatchSettings, settings or {}, "task.match")

    def phrase(self, sample: Sample) -> Conversation:
        """The picture and its text, without a question."""
        return asked(sample, "", labelled_text(sample, self.settings.label))

    def labels(self, sample: Sample) -> dict[str, Any]:
        """The own text, and the own picture by its sample's id."""
        text = labelled_text(sample, self.settings.label)
        return {} if text is None else {"text": text, "picture": sample.id}

    def unread(self, sample: Sample) -> Iterable[str]:
        """What neither the question nor the labels hold."""
        label = self.settings.label
        return unread_parts(sample, fields=(label,), wording="", answers=label not in sample.fields)

    def schema(self) -> None:
        """Nothing is written."""
        return None

    def parse(self, text: str) -> Reply:
        """Nothing is written."""
        return Reply(problem="this task compares; it has no replies to read")
