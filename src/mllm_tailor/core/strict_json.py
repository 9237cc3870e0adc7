"""The one definition of JSON: what this package reads, repairs and writes.

Python's own decoder takes the last of repeated keys, numbers beyond double precision and half characters without a
word, so that data would be lost or could not be written again.
"""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DIGITS = 300  # of an integer; beyond 308 it is no floating point number
MAX_DEPTH = 100  # of nested lists and objects; Python's own limit depends on how deep the caller is


def dump_json(value: Any, *, indent: int | None = 1) -> str:
    """Compact, readable JSON that refuses NaN (which is not JSON)."""
    return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False, default=str)


def parse_json(text: str) -> Any:
    """Strict JSON: repeated keys, NaN, infinities, lone surrogates and nesting over `MAX_DEPTH` are refused.

    Raises:
        ValueError: with what is wrong and where.
    """
    value = _decode(_strict_decoder, text)
    escaped = "\\ud" in text or "\\uD" in text  # only an escape can smuggle in a lone surrogate
    if escaped and not is_text(json.dumps(value, ensure_ascii=False)):
        raise ValueError("an escape holds half a character (a lone surrogate)")
    return value


def repair_json(text: str) -> Any:
    """JSON that a model wrote, made into what a file can hold.

    Of a repeated key the last value stays, lone surrogates become U+FFFD, numbers beyond double precision null.

    Raises:
        ValueError: for everything else that `parse_json` refuses.
    """
    return _writable(_decode(_model_decoder, text))


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8: no lone surrogates, no undecodable bytes of a file name."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decode(decoder: json.JSONDecoder, text: str) -> Any:
    try:
        value = decoder.decode(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth_exceeds(value, MAX_DEPTH):
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return value


def _depth_exceeds(value: Any, limit: int) -> bool:
    """Whether lists and objects lie inside each other more than `limit` deep."""
    level = [value]
    for _ in range(limit):
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list)))
        level = [item for items in inner for item in items if isinstance(item, (dict, list))]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"`{repeated}` stands twice in one object")
    return values


class WrittenFloat(float):
    """A number that remembers how it was written, so that the label `10.50` does not become `10.5`."""

    def __new__(cls, text: str) -> WrittenFloat:
        number = super().__new__(cls, text)
        if not math.isfinite(number):
            raise ValueError(f"{text} is not a number JSON can hold")
        number.text = text
        return number

    text: str

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[type[WrittenFloat], tuple[str]]:
        return WrittenFloat, (self.text,)


def as_written(value: Any) -> str:
    """A value of a label as its file writes it: `true` and not `True`, `10.50` and not `10.5`, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return dump_json(value, indent=None) if isinstance(value, (dict, list)) else str(value)


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"{text[:20]}… has {len(text):,} digits, more than a number can have")
    return int(text)


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not a JSON value")


_strict_decoder = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=WrittenFloat, parse_int=_integer, parse_constant=_refuse_constant
)
_model_decoder = json.JSONDecoder(
    parse_int=lambda text: int(text) if len(text) <= MAX_DIGITS else None, parse_constant=_refuse_constant
)


def _writable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_writable(key): _writable(inner) for key, inner in value.items()}
    return [_writable(inner) for inner in value] if isinstance(value, list) else value
