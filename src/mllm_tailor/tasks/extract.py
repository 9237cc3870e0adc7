"""Extract typed fields from a document as one JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from mllm_tailor.core.conversation import Conversation, asked
from mllm_tailor.core.errors import DataError, nearest
from mllm_tailor.core.sample import Sample
from mllm_tailor.recipe import Settings, validate
from mllm_tailor.tasks.base import Reply
from mllm_tailor.tasks.reply import read_object

FieldType = Literal["string", "date", "amount", "number", "integer", "boolean", "choice", "object", "list"]


class FieldSpec(Settings):
    """One field. `total: amount` is short for `total: {type: amount}`."""

    type: FieldType = Field(
        "string", description="string, date and amount are copied as printed; number is a JSON number"
    )
    choices: list[str] = Field([], description="the allowed values of a `choice`")
    fields: dict[str, FieldSpec] | None = Field(None, description="the fields of an `object`")
    items: dict[str, FieldSpec] | None = Field(None, description="the fields of each entry of a `list`")
    max_length: int = Field(200, ge=1, le=4000, description="longest value, in characters")
    max_items: int = Field(50, ge=1, le=1000, description="longest list")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _complete(self) -> FieldSpec:
        if (self.type == "choice") != bool(self.choices):
            raise ValueError("a `choice` lists its `choices`, and nothing else does")
        if (self.type == "object") != bool(self.fields):
            raise ValueError("an `object` names its `fields`, and nothing else does")
        if (self.type == "list") != bool(self.items):
            raise ValueError("a `list` names the `items` of its entries, and nothing else does")
        return self


class ExtractSettings(Settings):
    """`extract: {company: string, date: date}`; with a prompt of its own: `extract: {fields: {...}, prompt: ...}`."""

    fields: dict[str, FieldSpec] = Field(min_length=1, description="name and type of every field, in answer order")
    prompt: str = Field("Extract {fields} as JSON.", description="the question; {fields} becomes the field names")
    indent: int | None = Field(None, ge=0, le=8, description="spaces of indentation in the answer; null: one line")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {"fields": dict.fromkeys(value, "string")}
        if isinstance(value, dict) and not isinstance(value.get("fields"), dict):
            return {"fields": value}
        return value


class Extract:
    """Answers are JSON with the keys in the recipe's order; a field the document lacks is an empty string or null."""

    name = "extract"
    metrics: tuple[str, ...] = ("fuzzy", "exact", "normalised_exact", "f1", "anls", "tree_edit", "parse_rate")

    def __init__(self, settings: Any) -> None:
        self.settings = validate(ExtractSettings, settings, "task.extract")
        self.field_names = tuple(self.settings.fields)
        self.prompt = self.settings.prompt.replace("{fields}", ", ".join(self.field_names))

    def phrase(self, sample: Sample) -> Conversation:
        """Set the question and, for a labelled sample, the JSON answer."""
        answer = None
        if sample.fields:
            answer = json.dumps(self.labels(sample), ensure_ascii=False, indent=self.settings.indent)
        return asked(sample, self.prompt, answer)

    def labels(self, sample: Sample) -> dict[str, Any]:
        """The labelled values in recipe order, typed; absent ones empty."""
        if not sample.fields:
            return {}
        if not any(name in sample.fields for name in self.field_names):
            hint = nearest(self.field_names[0], map(str, sample.fields))
            raise DataError(f"{sample.source}: none of the recipe's fields is labelled — {hint}")
        return {
            name: _typed(sample.fields.get(name), spec, f"{sample.source}: field `{name}`")
            for name, spec in self.settings.fields.items()
        }

    def schema(self) -> dict[str, Any]:
        """A closed object with every key required, in order."""
        return _object_schema(self.settings.fields)

    def alone(self, name: str) -> dict[str, Any]:
        """The same for one field."""
        return _object_schema({name: self.settings.fields[name]})

    def parse(self, text: str) -> Reply:
        """Known fields of the reply's JSON object; invented keys are dropped from `fields` but stay in the text."""
        reply = read_object(text)
        if reply.problem:
            return reply
        return Reply(fields={name: reply.fields[name] for name in self.field_names if name in reply.fields})


def _object_schema(fields: Mapping[str, FieldSpec]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: _value_schema(spec) for name, spec in fields.items()},
        "required": list(fields),
        "additionalProperties": False,
    }


def _value_schema(spec: FieldSpec) -> dict[str, Any]:
    if spec.type == "object":
        assert spec.fields is not None
        return _object_schema(spec.fields)
    if spec.type == "list":
        assert spec.items is not None
        return {"type": "array", "items": _object_schema(spec.items), "maxItems": spec.max_items}
    if spec.type == "choice":
        return {"enum": ["", *spec.choices]}
    if spec.type in ("number", "integer", "boolean"):
        return {"type": [spec.type, "null"]}
    return {"type": "string", "maxLength": spec.max_length}


def _typed(value: Any, spec: FieldSpec, where: str) -> Any:
    """A label as the answer holds it; what cannot be read as its type is an error naming the row."""
    if spec.type == "object":
        return _typed_object({} if value in (None, "") else value, spec.fields or {}, where)
    if spec.type == "list":
        entries = [] if value in (None, "") else [value] if isinstance(value, Mapping) else value
        if not isinstance(entries, list):
            raise DataError(f"{where} should be a list of objects, found {value!r} — correct the label or its type")
        return [_typed_object(entry, spec.items or {}, where) for entry in entries]
    if spec.type in ("number", "integer", "boolean"):
        return None if value is None or value == "" else _number(value, spec.type, where)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (Mapping, list)):
        raise DataError(
            f"{where} should be one value, found {type(value).__name__} — declare an object or a list, or correct it"
        )
    text = str(value).strip()
    if spec.type == "choice" and text and text not in spec.choices:
        raise DataError(f"{where}: {text!r} is none of its choices — {nearest(text, spec.choices)}")
    return text


def _typed_object(value: Any, fields: Mapping[str, FieldSpec], where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where} should hold objects, found {value!r} — correct the label or its type")
    return {name: _typed(value.get(name), inner, f"{where}.{name}") for name, inner in fields.items()}


def _number(value: Any, kind: str, where: str) -> Any:
    try:
        if kind == "boolean":
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[str(value).lower()]
        number = float(str(value).replace(",", ""))
        if not math.isfinite(number) or (kind == "integer" and number != int(number)):
            raise ValueError
        return int(number) if kind == "integer" else number
    except (KeyError, ValueError):
        raise DataError(
            f"{where}: {value!r} cannot be read as {kind} — mend the label, or declare the field a string"
        ) from None
