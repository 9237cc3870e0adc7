"""What a labelled field seems to be: text, date, amount, number, choice, object or list."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm_tailor.core.sample import Sample
from mllm_tailor.core.strict_json import as_written
from mllm_tailor.data.formats import is_date, is_sum
from mllm_tailor.media.source import media_kind

MAX_CHOICES = 20  # more values than this are better written than chosen
MOSTLY = 0.9
COMMON = 0.5  # a field filled in a smaller share of the samples stands as a comment
LONG_VALUE = 200  # characters; the length that a recipe allows unless it states another
LONGEST_VALUE = 4000
EMPTY: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True)
class FieldGuess:
    """A field, its likely type, and how its values look."""

    name: str
    type: str  # a type of `task.extract`, or `unknown`: no type fits all values
    filled: int
    distinct: int
    longest: int
    example: str
    choices: tuple[str, ...] = ()
    inner: Mapping[str, FieldGuess] = field(default_factory=dict)  # of an object, or of the entries of a list
    longest_list: int = 0

    def spec(self) -> Any:
        """How a recipe declares it."""
        if self.type == "choice":
            return {"type": "choice", "choices": list(self.choices)}
        if self.inner:
            key = "items" if self.type == "list" else "fields"
            spec = {"type": self.type, key: {name: inner.spec() for name, inner in self.inner.items()}}
            return spec | ({"max_items": roomy(self.longest_list, 10)} if self.longest_list > 50 else {})
        if self.longest > LONG_VALUE:
            return {"type": self.type, "max_length": min(LONGEST_VALUE, roomy(self.longest, 100))}
        return self.type

    def left_out(self) -> list[str]:
        """Inner fields that no type fits, as `name.inner`."""
        return [f"{self.name}.{name}" for name, inner in self.inner.items() if inner.type == "unknown"]


def roomy(length: int, step: int) -> int:
    """A quarter more than `length`, rounded up to a multiple of `step`."""
    return math.ceil(length * 1.25 / step) * step


def guess_fields(samples: Sequence[Sample]) -> list[FieldGuess]:
    """The labelled fields in the data's order, those without any value left out."""
    names = dict.fromkeys(str(name) for sample in samples for name in sample.fields)
    guesses = [guess_field(name, [sample.fields.get(name) for sample in samples]) for name in names]
    return [guess for guess in guesses if guess.filled]


def guess_field(name: str, values: Sequence[Any], *, may_choose: bool = True) -> FieldGuess:
    """The likely type of a field with these values (`None` or empty where it is not filled)."""
    filled = [value for value in values if value not in EMPTY]
    texts = list(map(as_written, filled))
    counts = Counter(texts)
    kind, inner = _structure(filled)
    kind = kind or _scalar(filled, texts)
    choices = _choices(counts) if may_choose and kind == "string" else ()
    return FieldGuess(
        name,
        "choice" if choices else kind,
        filled=len(filled),
        distinct=len(counts),
        longest=max(map(len, texts), default=0),
        example=counts.most_common(1)[0][0][:60] if counts else "",
        choices=choices,
        inner=inner,
        longest_list=max((len(value) for value in filled if isinstance(value, list)), default=0),
    )


def _choices(counts: Counter[str]) -> tuple[str, ...]:
    """The values of a field that has few of them, each often; empty for any other field."""
    few = 1 < len(counts) <= min(MAX_CHOICES, counts.total() / 10)
    plain = all(text == text.strip() for text in counts)  # a choice is matched whole, and labels are stripped
    return tuple(sorted(counts)) if few and plain else ()


def _structure(filled: Sequence[Any]) -> tuple[str, dict[str, FieldGuess]]:
    """`list` or `object` with its inner fields; `unknown` for other structures; "" for plain values.

    An object among lists is a list of one.
    """
    if not any(isinstance(value, (list, dict)) for value in filled):
        return "", {}
    as_list = any(isinstance(value, list) for value in filled)
    entries = [entry for value in filled for entry in (value if isinstance(value, list) else [value])]
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        return "unknown", {}
    names = dict.fromkeys(str(name) for entry in entries for name in entry)
    guesses = [guess_field(name, [entry.get(name) for entry in entries], may_choose=False) for name in names]
    inner = {guess.name: guess for guess in guesses if guess.filled and guess.type != "unknown"}
    return ("list" if as_list else "object", inner) if inner else ("unknown", {})


def _is_file_name(text: str) -> bool:
    return media_kind(text) is not None and " " not in text and "://" not in text


def _scalar(filled: Sequence[Any], texts: Sequence[str]) -> str:
    if filled and all(isinstance(value, str) and _is_file_name(value) for value in filled):
        return "unknown"  # masks and the like: nothing that can be read off the sample
    if filled and all(isinstance(value, bool) for value in filled):
        return "boolean"
    # As a number, `10.50` would be learned as `10.5`.
    plain = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in filled)
    if (
        filled
        and plain
        and texts == [repr(float(value)) if isinstance(value, float) else str(value) for value in filled]
    ):
        return "integer" if all(isinstance(value, int) for value in filled) else "number"
    for kind, check in (("date", is_date), ("amount", is_sum)):
        if texts and sum(map(check, texts)) >= MOSTLY * len(texts):
            return kind
    return "string"
