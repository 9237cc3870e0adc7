"""Extract typed fields from a document as one JSON object."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from mllm_tailor.core.conversation import Conversation, asked
from mllm_tailor.core.errors import DataError, nearest
from mllm_tailor.core.sample import Sample
from mllm_tailor.core.strict_json import as_written
from mllm_tailor.recipe import Settings, validate
from mllm_tailor.tasks.base import UNFILLED, Reply, unread_parts
from mllm_tailor.tasks.reply import read_object
from mllm_tailor.tasks.values import DateOrder, format_amount, read_amount, read_date

_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?")

FieldType = Literal["string", "date", "amount", "number", "integer", "boolean", "choice", "object", "list"]


class FieldSpec(Settings):
    """One field. `total: amount` is short for `total: {type: amount}`."""

    type: FieldType = Field(
        "string",
        description="string, date and amount are copied as printed unless a form is given; number is a JSON number",
    )
    format: Literal["iso"] | None = Field(
        None, description="iso: a `date` is written 2018-03-13, in labels and replies"
    )
    order: DateOrder | None = Field(
        None, description="dmy, mdy or ymd: how dates are printed where digits alone do not tell; needs `format: iso`"
    )
    decimals: int | None = Field(
        None, ge=0, le=6, description="an `amount` is a plain number with so many decimals, in labels and replies"
    )
    pattern: str | None = Field(
        None, description="a regular expression that the whole of a string, date or amount matches"
    )
    ordered: bool = Field(False, description="whether the order of a `list` counts when its rows are scored")
    choices: list[str] = Field([], description="the allowed values of a `choice`")
    fields: dict[str, FieldSpec] | None = Field(None, description="the fields of an `object`")
    items: dict[str, FieldSpec] | None = Field(None, description="the fields of each entry of a `list`")
    max_length: int = Field(200, ge=1, le=4000, description="longest value, in characters")
    max_items: int = Field(50, ge=1, le=1000, description="longest list")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"type": value}
        if isinstance(value, dict) and "type" not in value:
            kinds = {
                "format": "date",
                "order": "date",
                "decimals": "amount",
                "choices": "choice",
                "items": "list",
                "fields": "object",
            }
            return {"type": next((kind for key, kind in kinds.items() if key in value), "string"), **value}
        return value

    @model_validator(mode="after")
    def _complete(self) -> FieldSpec:
        if (self.type == "choice") != bool(self.choices):
            raise ValueError("a `choice` lists its `choices`, and nothing else does")
        if (self.type == "object") != bool(self.fields):
            raise ValueError("an `object` names its `fields`, and nothing else does")
        if (self.type == "list") != bool(self.items):
            raise ValueError("a `list` names the `items` of its entries, and nothing else does")
        if (self.format or self.order) and self.type != "date":
            raise ValueError("`format` and `order` are for a `date`")
        if self.order and not self.format:
            raise ValueError("`order` needs `format: iso`")
        if self.decimals is not None and self.type != "amount":
            raise ValueError("`decimals` is for an `amount`")
        if self.ordered and self.type != "list":
            raise ValueError("`ordered` is for a `list`")
        if self.pattern is not None:
            self._check_pattern()
        return self

    def _check_pattern(self) -> None:
        if self.type not in ("string", "date", "amount") or self.format or self.decimals is not None:
            raise ValueError("`pattern` is for a string, date or amount without `format` or `decimals`")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"`pattern` is no regular expression: {error}") from None
        if re.search(r"\(\?[=!<P]|\\[1-9]", self.pattern or ""):
            raise ValueError("`pattern` may not look ahead or back, name groups or repeat them: decoding cannot")

    @property
    def form(self) -> str | None:
        """The regular expression of a value that is not empty, or None for any text."""
        if self.format == "iso":
            return r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
        if self.decimals is not None:
            fraction = rf"\.[0-9]{{{self.decimals}}}" if self.decimals else ""
            return rf"-?(0|[1-9][0-9]{{0,14}}){fraction}"
        return self.pattern

    def written(self, text: str) -> str | None:
        """A printed value in the form of this field; None where it cannot be."""
        if self.format == "iso":
            date = read_date(text, self.order)
            return date.isoformat() if date else None
        if self.decimals is not None:
            return format_amount(text, self.decimals)
        return text if self.pattern is None or re.fullmatch(self.pattern, text) else None


class ExtractSettings(Settings):
    """`extract: {company: string, date: date}`; with a prompt of its own: `extract: {fields: {...}, prompt: ...}`."""

    fields: dict[str, FieldSpec] = Field(min_length=1, description="name and type of every field, in answer order")
    prompt: str = Field("Extract {fields} as JSON.", description="the question; {fields} becomes the field names")
    indent: int | None = Field(None, ge=0, le=8, description="spaces of indentation in the answer; null: one line")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, list):
            if not all(isinstance(name, str) for name in value):
                raise ValueError("a list names fields, such as [company, total]; write a mapping to give them types")
            return {"fields": dict.fromkeys(value, "string")}
        if isinstance(value, dict) and not isinstance(value.get("fields"), dict):
            return {"fields": value}
        return value


class Extract:
    """Answers are JSON with the keys in the recipe's order; a field the document lacks is an empty string or null."""

    name = "extract"
    metrics: tuple[str, ...] = ("fuzzy", "exact", "normalised_exact", "f1", "anls", "tree_edit", "parse_rate")
    list_metrics: tuple[str, ...] = (
        "cell_f1",
        "cell_precision",
        "cell_recall",
        "row_f1",
        "row_precision",
        "row_recall",
    )  # besides, where a field is a list

    def __init__(self, settings: Any) -> None:
        self.settings = validate(ExtractSettings, settings, "task.extract")
        self.field_names = tuple(self.settings.fields)
        if any(spec.type == "list" for spec in self.settings.fields.values()):
            self.metrics = (*self.metrics, *self.list_metrics)
        self.prompt = self.settings.prompt.replace("{fields}", ", ".join(self.field_names))

    @property
    def kinds(self) -> dict[str, str]:
        """The type of each field and of each column of a list (`items.price`), by which scores normalise values."""
        return _kinds(self.settings.fields)

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

    def unread(self, sample: Sample) -> Iterable[str]:
        """What neither the question nor the labels hold, inner fields as `menu.price`."""
        yield from unread_parts(sample, fields=self.field_names, wording=self.settings.prompt, answers=False)
        for name, spec in self.settings.fields.items():
            yield from (f"`{inner}`" for inner in _unread_inside(sample.fields.get(name), spec, name))

    def absent(self, samples: Iterable[Sample]) -> list[str]:
        """The declared fields, inner ones as `menu.price`, that no sample has."""
        return list(_absent(self.settings.fields, [sample.fields for sample in samples if sample.fields], ""))

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
        specs = self.settings.fields
        return Reply(fields={name: _in_form(reply.fields[name], specs[name]) for name in specs if name in reply.fields})


def _absent(fields: Mapping[str, FieldSpec], objects: Sequence[Mapping[str, Any]], prefix: str) -> Iterator[str]:
    for name, spec in fields.items():
        values = [entry[name] for entry in objects if name in entry]
        if not values:
            yield prefix + name
            continue
        inner = spec.items or spec.fields
        cells = [cell for value in values for cell in (value if isinstance(value, list) else [value])]
        entries = [cell for cell in cells if isinstance(cell, Mapping)]
        if inner and entries:
            yield from _absent(inner, entries, f"{prefix}{name}.")


def _unread_inside(value: Any, spec: FieldSpec, name: str) -> Iterator[str]:
    """The keys of objects in a value that its field does not declare."""
    inner = spec.items or spec.fields
    for entry in value if isinstance(value, list) else [value]:
        if inner is None or not isinstance(entry, Mapping):
            continue
        for key, cell in entry.items():
            if key in inner:
                yield from _unread_inside(cell, inner[key], f"{name}.{key}")
            elif cell not in UNFILLED:
                yield f"{name}.{key}"


def _kinds(fields: Mapping[str, FieldSpec], prefix: str = "") -> dict[str, str]:
    kinds: dict[str, str] = {}
    for name, spec in fields.items():
        kinds[prefix + name] = "ordered_list" if spec.ordered else spec.type
        kinds |= _kinds(spec.items or spec.fields or {}, f"{prefix}{name}.")
    return kinds


def _in_form(value: Any, spec: FieldSpec) -> Any:
    """A value of a reply in the form that labels have; what cannot be brought into it stays as it is."""
    inner = spec.items or spec.fields
    if inner and isinstance(value, list):
        return [_in_form(entry, spec) if isinstance(entry, Mapping) else entry for entry in value]
    if inner and isinstance(value, Mapping):
        return {key: _in_form(cell, inner[key]) if key in inner else cell for key, cell in value.items()}
    if spec.form is None or isinstance(value, bool) or not isinstance(value, (str, int, float)) or value == "":
        return value
    written = spec.written(str(value).strip())
    return value if written is None else written


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
    if spec.form is not None:
        return {"type": "string", "pattern": f"^(?:|{spec.form})$"}
    return {"type": "string", "maxLength": spec.max_length}


def _typed(value: Any, spec: FieldSpec, where: str) -> Any:
    """A label as the answer holds it; what cannot be read as its type is an error naming the row."""
    if spec.type == "object":
        return _typed_object({} if value in (None, "") else value, spec.fields or {}, where)
    if spec.type == "list":
        entries = [] if value in (None, "") else [value] if isinstance(value, Mapping) else value
        if not isinstance(entries, list):
            raise DataError(f"{where} should be a list of objects, found {value!r} — correct the label or its type")
        if len(entries) > spec.max_items:
            raise DataError(
                f"{where} has {len(entries)} entries, and no reply can have over max_items ({spec.max_items}) — raise "
                "`max_items` of this field in task.extract"
            )
        return [_typed_object(entry, spec.items or {}, where) for entry in entries]
    if spec.type in ("number", "integer", "boolean"):
        return None if value is None or value == "" else _number(value, spec.type, where)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (Mapping, list)):
        raise DataError(
            f"{where} should be one value, found {type(value).__name__} — declare an object or a list, or correct it"
        )
    text = as_written(value).strip()
    if spec.type == "choice" and text and text not in spec.choices:
        raise DataError(f"{where}: {text!r} is none of its choices — {nearest(text, spec.choices)}")
    text = _written(text, spec, where) if text and spec.form is not None else text
    if len(text) > spec.max_length and spec.type != "choice":
        raise DataError(
            f"{where} has {len(text)} characters, and no reply can have over max_length ({spec.max_length}) — raise "
            "`max_length` of this field in task.extract"
        )
    return text


def _written(text: str, spec: FieldSpec, where: str) -> str:
    """A label in the form of its field; what cannot be brought into it is an error naming the row."""
    written = spec.written(text)
    if written is not None:
        return written
    if spec.format == "iso":
        ambiguous = spec.order is None and any(read_date(text, order) for order in ("dmy", "mdy", "ymd"))
        problem, fix = "is an ambiguous date", "set `order` to dmy, mdy or ymd"
        if not ambiguous:
            problem, fix = "cannot be read as a date", "fix the label, or declare the field without `format`"
    elif spec.decimals is not None:
        problem = "is no amount" if read_amount(text) is None else f"has more than {spec.decimals} decimals"
        fix = "fix the label or `decimals`"
    else:
        problem, fix = f"does not match `{spec.pattern}`", "fix the label or `pattern`"
    raise DataError(f"{where}: {text!r} {problem} — {fix}")


def _typed_object(value: Any, fields: Mapping[str, FieldSpec], where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where} should hold objects, found {value!r} — correct the label or its type")
    return {name: _typed(value.get(name), inner, f"{where}.{name}") for name, inner in fields.items()}


def _number(value: Any, kind: str, where: str) -> Any:
    try:
        if kind == "boolean":
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[str(value).lower()]
        text = str(value).strip()
        if "," in text and not _THOUSANDS.fullmatch(text):  # 2,50 is not 250
            raise ValueError
        number = float(text.replace(",", ""))
        if not math.isfinite(number) or (kind == "integer" and number != int(number)):
            raise ValueError
        return int(number) if kind == "integer" else number
    except (KeyError, ValueError):
        raise DataError(
            f"{where}: {value!r} cannot be read as {kind} — fix the label, or declare the field a string"
        ) from None
