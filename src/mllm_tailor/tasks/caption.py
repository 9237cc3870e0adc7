"""Describe a picture or clip in free words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field

from mllm_tailor.core.conversation import Conversation, asked
from mllm_tailor.core.errors import DataError, nearest
from mllm_tailor.core.sample import Sample
from mllm_tailor.recipe import Settings, validate
from mllm_tailor.tasks.base import Reply, accepted, unread_parts


class CaptionSettings(Settings):
    """`caption: {}` takes the texts the data has."""

    label: str = Field("caption", description="field of the data that holds the text; without it, the answer does")
    prompt: str = Field("Describe the {kind} briefly.", description="the question; {kind} becomes picture or clip")


class Caption:
    """Free text, compared word by word."""

    name = "caption"
    metrics: tuple[str, ...] = ("rouge_l", "bleu", "cider", "meteor", "token_recall")
    field_names: tuple[str, ...] = ("caption",)

    def __init__(self, settings: Any) -> None:
        self.settings = validate(CaptionSettings, settings or {}, "task.caption")

    def phrase(self, sample: Sample) -> Conversation:
        """Set the question and, for a labelled sample, the text."""
        kinds = {"image": "picture", "video": "clip", "audio": "recording"}
        kind = kinds[sample.media[0].kind] if sample.media else "text"
        answer = labelled_text(sample, self.settings.label)
        return asked(sample, self.settings.prompt, answer, {"kind": kind})

    def labels(self, sample: Sample) -> dict[str, Any]:
        """The one field `caption`; a list where the data have several captions."""
        text = labelled_text(sample, self.settings.label)
        return {} if text is None else {"caption": accepted(sample, text)}

    def unread(self, sample: Sample) -> Iterable[str]:
        """What neither the question nor the labels hold."""
        label = self.settings.label
        return unread_parts(sample, fields=(label,), wording=self.settings.prompt, answers=label not in sample.fields)

    def schema(self) -> None:
        """Free text."""
        return None

    def parse(self, text: str) -> Reply:
        """The reply itself."""
        said = text.strip()
        return Reply(fields={"caption": said}) if said else Reply(problem="the reply is empty")


def labelled_text(sample: Sample, label: str) -> str | None:
    """The text in a sample's field `label`, else its answer; None when it is unlabelled.

    Raises:
        DataError: naming the row, when it is labelled with something else.
    """
    text = sample.fields.get(label, sample.answer)
    if text is None and sample.fields:
        raise DataError(
            f"{sample.source}: no field `{label}` holds the text — {nearest(label, map(str, sample.fields))}"
        )
    if text is not None and not isinstance(text, str):
        raise DataError(f"{sample.source}: `{label}` should be text, found {type(text).__name__} — fix the label")
    return text if text is None else " ".join(text.split())
