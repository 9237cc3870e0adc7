"""Classify an image, video or recording."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import Field, field_validator, model_validator

from mllm_tailor.core.conversation import Conversation, asked
from mllm_tailor.core.errors import DataError, nearest
from mllm_tailor.core.sample import Sample
from mllm_tailor.core.strict_json import as_written
from mllm_tailor.recipe import Settings, validate
from mllm_tailor.tasks.base import Reply, unread_parts
from mllm_tailor.tasks.reply import read_object

FIELD = "class"


class ClassifySettings(Settings):
    """`classify: {classes: [wave, swipe, tap]}`, or a list of classes; `classify: {}` takes them from the data."""

    classes: list[str] = Field(
        [], max_length=1000, description="all classes, as written in answers; default: those of the labelled samples"
    )
    label: str = Field("label", description="field of the data with the class; default: `label`, else the answer")
    prompt: str = Field(
        "Which of these is it: {classes}? Answer as JSON.", description="question; {classes} is replaced by the classes"
    )

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"classes": value} if isinstance(value, list) else value

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: list[str]) -> list[str]:
        folded = [fold(name) for name in classes]
        if len(classes) == 1:
            raise ValueError("at least 2 classes are needed")
        if not all(folded):
            raise ValueError("the name of a class is empty")
        twice = next((name for name in classes if folded.count(fold(name)) > 1), None)
        if twice is not None:
            raise ValueError(f"the class `{twice}` is named twice (case and spaces do not distinguish classes)")
        return classes


class Classify:
    """Answers are `{"class": ...}`: decoding can be constrained to the classes, and each reply has a confidence."""

    name = "classify"
    metrics: tuple[str, ...] = ("exact", "parse_rate")
    field_names: tuple[str, ...] = (FIELD,)

    def __init__(self, settings: Any) -> None:
        self.settings = validate(ClassifySettings, settings or {}, "task.classify")
        self.by_folded = {fold(name): name for name in self.settings.classes}
        longest_first = sorted(self.by_folded, key=len, reverse=True)
        words = "|".join(map(re.escape, longest_first)) or "(?!)"
        self.anywhere = re.compile(rf"(?<!\w)(?:{words})(?!\w)")

    def resolve_from(self, samples: Iterable[Sample]) -> Classify:
        """The task with the classes of these samples, sorted by name; classes named in the recipe are kept.

        Raises:
            DataError: when there are fewer than two classes.
        """
        if self.settings.classes:
            return self
        found = {fold(label): " ".join(label.split()) for sample in samples if (label := self._label(sample))}
        if len(found) < 2:
            named = f"only `{next(iter(found.values()))}`" if found else "none"
            raise DataError(f"classes: {named} in the data — label it, or name `task.classify.label`")
        return Classify(self.settings.model_dump() | {"classes": sorted(found.values())})

    def resolved_settings(self) -> dict[str, Any]:
        """The settings, including the classes."""
        return self.settings.model_dump()

    @property
    def classes(self) -> list[str]:
        """All classes, as written in answers."""
        return self.settings.classes

    def choices(self, sample: Sample) -> list[str]:
        """`{"class": ...}` for every class; the same for all samples."""
        return [_written(name) for name in self.settings.classes]

    def phrase(self, sample: Sample) -> Conversation:
        """Set the question and, for a labelled sample, the answer."""
        labels = self.labels(sample)
        answer = _written(labels[FIELD]) if labels else None
        return asked(sample, self.settings.prompt, answer, {"classes": ", ".join(self.settings.classes)})

    def labels(self, sample: Sample) -> dict[str, Any]:
        """The class, as written in the recipe."""
        label = self._label(sample)
        if label is None:
            if sample.fields:
                hint = nearest(self.settings.label, map(str, sample.fields))
                raise DataError(f"{sample.source}: there is no field `{self.settings.label}` for the class — {hint}")
            return {}
        name = self.by_folded.get(fold(label))
        if name is None:
            hint = nearest(label, self.settings.classes)
            raise DataError(f"{sample.source}: {label[:80]!r} is not one of the recipe's classes — {hint}")
        return {FIELD: name}

    def _label(self, sample: Sample) -> str | None:
        """The class, as written in the data."""
        label = sample.fields.get(self.settings.label, sample.answer)
        return None if label is None else _unwrapped(as_written(label))

    def unread(self, sample: Sample) -> Iterable[str]:
        """What neither the question nor the labels hold."""
        label = self.settings.label
        return unread_parts(sample, fields=(label,), wording=self.settings.prompt, answers=label not in sample.fields)

    def schema(self) -> dict[str, Any]:
        """An object with one key, whose value is one of the classes."""
        return {
            "type": "object",
            "properties": {FIELD: {"enum": list(self.settings.classes)}},
            "required": [FIELD],
            "additionalProperties": False,
        }

    def parse(self, text: str) -> Reply:
        """The class named in JSON or plain text, ignoring case; two different classes are a problem."""
        said = _unwrapped(text)
        if fold(said) in self.by_folded:
            return Reply(fields={FIELD: self.by_folded[fold(said)]})
        found = list(dict.fromkeys(self._named(said)))
        if len(found) == 1:
            return Reply(fields={FIELD: found[0]})
        if found:
            return Reply(problem=f"the reply names several classes ({', '.join(found)})")
        return Reply(problem="the reply names none of the classes")

    def _named(self, text: str) -> Iterator[str]:
        """Classes that occur in a text as whole words; where one contains another, the longer."""
        for match in self.anywhere.finditer(fold(text)):
            yield self.by_folded[match.group()]


def fold(text: str) -> str:
    """Normalise case, spaces, and quotes or a full stop around a class.

    >>> fold(' "Swiping  Up." ')
    'swiping up'
    """
    return " ".join(text.casefold().split()).strip(" .\"'`*")


def _unwrapped(text: str) -> str:
    """The value in `{"class": ...}`, or the text itself."""
    said = read_object(text).fields.get(FIELD)
    return said if isinstance(said, str) else text


def _written(name: str) -> str:
    return json.dumps({FIELD: name}, ensure_ascii=False)
