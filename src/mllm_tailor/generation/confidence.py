"""What the model's own probabilities say of each value of a reply, before any calibration.

A value is named by its path: a field by its name (`total`), the cell of a list by field, row and column
(`items.0.price`), a member of an object by both names (`seller.name`).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from mllm_tailor.core.sample import RawScores

_DECODER = json.JSONDecoder()
_BLANK = " \t\r\n"
MOST_CANDIDATES = 3  # values besides the one of the reply
DIGITS = 6  # kept of a score, so that stored and fresh scores are calibrated alike

Span = tuple[int, int]  # first and last character (exclusive)
Candidate = tuple[bytes, float]  # a reply, or what is written of it, and the log-probability of its tokens


def value_spans(text: str) -> dict[str, Span]:
    """The (start, end) characters of each value of the first JSON object in `text`, by path, outer before inner.

    A string's quotes are left out, but an empty string is its closing quote: the token by which the model chose to
    write nothing. Lists of objects and objects have a span, and so has each value in them. Parsing stops at the first
    error; the values before it count.

    >>> value_spans('{"a": "xy", "b": ""}')
    {'a': (7, 9), 'b': (18, 19)}
    >>> value_spans('{"l": [{"c": 1}]}')
    {'l': (6, 16), 'l.0.c': (13, 14)}
    """
    spans: dict[str, Span | None] = {}  # None: not finished
    position = text.find("{")
    if position >= 0:
        with suppress(ValueError, IndexError, RecursionError):  # broken or cut off: the values so far count
            _read_object(text, position, "", spans)
    return {path: span for path, span in spans.items() if span is not None}


def _read_object(text: str, position: int, prefix: str, spans: dict[str, Span | None]) -> int:
    """Enter the values of the object that begins at `position`; returns where it ends."""
    position = _skip(text, position + 1)
    while text[position] != "}":
        key, position = _DECODER.raw_decode(text, position)
        position = _skip(text, position)
        if text[position] != ":" or not isinstance(key, str):
            raise ValueError
        position = _skip(text, _read_value(text, _skip(text, position + 1), prefix + key, spans))
        position = _skip(text, position + (text[position] == ","))
    return position + 1


def _read_value(text: str, start: int, path: str, spans: dict[str, Span | None]) -> int:
    if text[start] in "{[":
        spans[path] = None  # outer before inner
        end = (
            _read_object(text, start, f"{path}.", spans) if text[start] == "{" else _read_list(text, start, path, spans)
        )
        spans[path] = (start, end)
        return end
    value, end = _DECODER.raw_decode(text, start)
    quoted = isinstance(value, str)
    spans[path] = (start + quoted, end - quoted) if value != "" else (end - 1, end)
    return end


def _read_list(text: str, position: int, path: str, spans: dict[str, Span | None]) -> int:
    """A list of objects has rows; any other list is one value."""
    row, position = 0, _skip(text, position + 1)
    while text[position] != "]":
        if text[position] == "{":
            position = _read_object(text, position, f"{path}.{row}.", spans)
        else:
            _, position = _DECODER.raw_decode(text, position)
        position = _skip(text, position)
        position = _skip(text, position + (text[position] == ","))
        row += 1
    return position + 1


def _skip(text: str, position: int) -> int:
    """The next position that is not blank."""
    while position < len(text) and text[position] in _BLANK:
        position += 1
    return position


def value_scores(pieces: Sequence[bytes], logprobs: Sequence[float]) -> dict[str, dict[str, float]]:
    """`mean` and `least` of each value of a JSON reply, from the bytes of its tokens and their log-probabilities."""
    return {
        path: token_scores([logprobs[index] for index in value.tokens]) for path, value in values_in(pieces).items()
    }


@dataclass(frozen=True)
class WrittenValue:
    """A value as the reply writes it."""

    text: str  # without its quotes; the JSON of a list or object
    tokens: tuple[int, ...]  # indices of the tokens that hold a part of it


def values_in(pieces: Sequence[bytes]) -> dict[str, WrittenValue]:
    """Each value of a JSON reply by path, from the bytes of its tokens.

    Spans are found in bytes: JSON's syntax is ASCII, so decoding each byte as one letter (Latin-1) keeps it, and a
    token that holds half a character still has an exact position.
    """
    ends = list(accumulate(map(len, pieces)))
    written = b"".join(pieces)
    result = {}
    for path, (start, end) in value_spans(written.decode("latin-1")).items():
        inside = tuple(
            index
            for index, (piece, stop) in enumerate(zip(pieces, ends, strict=True))
            if stop > start and stop - len(piece) < end and piece
        )
        result[_name(path)] = WrittenValue(written[start:end].decode("utf-8", "replace"), inside)
    return result


def _name(path: str) -> str:
    """The path as text, from letters that each hold a byte."""
    return path.encode("latin-1", "replace").decode("utf-8", "replace")


def token_scores(logprobs: Sequence[float]) -> dict[str, float]:
    """Geometric mean and least of probabilities given as logarithms; 0 for an empty list."""
    if not logprobs:
        return {"mean": 0.0, "least": 0.0}
    mean, least = (min(1.0, math.exp(value)) for value in (sum(logprobs) / len(logprobs), min(logprobs)))
    return {"mean": round(mean, DIGITS), "least": round(least, DIGITS)}


def raw_scores(
    fields: Mapping[str, object],
    pieces: Sequence[bytes],
    logprobs: Sequence[float],
    *,
    json_reply: bool,
    candidates: Sequence[Candidate] = (),
) -> RawScores:
    """Scores of the values in the parsed `fields`; without JSON every field gets those of the whole reply.

    `candidates` are all replies that a beam search still held at its end, the chosen one among them.
    """
    if not json_reply:
        return {name: token_scores(logprobs) for name in fields}
    scores = value_scores(pieces, logprobs)
    for path, share in agreement(b"".join(pieces), candidates).items():
        scores[path]["beams"] = round(share, DIGITS)
    known = dict.fromkeys(fields)
    return {path: values for path, values in scores.items() if _field_of(path, known) is not None}


def _field_of(path: str, fields: Mapping[str, object]) -> str | None:
    """The field that a path lies in; names of fields may hold dots."""
    return next((name for name in fields if path == name or path.startswith(f"{name}.")), None)


def agreement(reply: bytes, candidates: Sequence[Candidate]) -> dict[str, float]:
    """For each value of a reply the share of the candidates' probability that has the same value.

    A candidate in which the value is not finished has no say in it.
    """
    if not candidates:
        return {}
    most = max(logprob for _, logprob in candidates)
    same: dict[str, float] = defaultdict(float)
    total: dict[str, float] = defaultdict(float)
    chosen = dict(_values(reply))
    for text, logprob in candidates:
        weight = math.exp(logprob - most)
        for path, value in _values(text):
            total[path] += weight
            same[path] += weight * (value == chosen.get(path))
    return {path: same[path] / total[path] for path in chosen if total.get(path)}


def _values(reply: bytes) -> Iterator[tuple[str, str]]:
    letters = reply.decode("latin-1")
    for path, (start, end) in value_spans(letters).items():
        yield _name(path), letters[start:end]


def other_values(
    chosen: Mapping[str, Any], others: Iterable[Mapping[str, Any]], most: int = MOST_CANDIDATES
) -> dict[str, list[Any]]:
    """For each single value of a reply, what other replies have in its place: distinct ones, in the order given.

    >>> other_values({"a": "1", "l": [{"b": "2"}]}, [{"a": "1", "l": [{"b": "3"}, {"b": "4"}]}, {"a": "5"}])
    {'a': ['5'], 'l.0.b': ['3']}
    """
    mine = dict(_leaves(chosen))
    found: dict[str, list[Any]] = {}
    for fields in others:
        for path, value in _leaves(fields):
            seen = found.setdefault(path, [])
            if path in mine and value != mine[path] and value not in seen and len(seen) < most:
                seen.append(value)
    return {path: values for path, values in found.items() if values}


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield prefix.removesuffix("."), value
        return
    for key, inner in items:
        yield from _leaves(inner, f"{prefix}{key}.")
