"""Confidence of a field: the geometric mean of the probabilities of the tokens of its value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

_DECODER = json.JSONDecoder()
_BLANK = " \t\r\n"


def value_spans(text: str) -> dict[str, tuple[int, int]]:
    """The (start, end) characters of each value of the first JSON object in `text`.

    A string's quotes are left out, but an empty string is its closing quote: the token by which the model chose to
    write nothing. Parsing stops at the first error; the values before it count.

    >>> value_spans('{"a": "xy", "b": ""}')
    {'a': (7, 9), 'b': (18, 19)}
    """
    spans: dict[str, tuple[int, int]] = {}
    position = text.find("{") + 1
    if not position:
        return spans
    try:
        while text[_skip(text, position)] != "}":
            key, position = _DECODER.raw_decode(text, _skip(text, position))
            position = _skip(text, position)
            if text[position] != ":" or not isinstance(key, str):
                break
            start = _skip(text, position + 1)
            value, position = _DECODER.raw_decode(text, start)
            quoted = isinstance(value, str)
            spans[key] = (start + quoted, position - quoted) if value != "" else (position - 1, position)
            position = _skip(text, position)
            position += text[position] == ","
    except (ValueError, IndexError, RecursionError):
        pass  # broken or cut off: the values so far count
    return spans


def field_confidence(pieces: Sequence[bytes], logprobs: Sequence[float]) -> dict[str, float]:
    """Confidence 0..1 of each field of a JSON reply, from the bytes of its tokens and their log-probabilities.

    Spans are found in bytes: JSON's syntax is ASCII, so decoding each byte as one letter (Latin-1) keeps it, and a
    token that holds half a character still has an exact position.
    """
    letters = b"".join(pieces).decode("latin-1")
    ends = list(accumulate(map(len, pieces)))
    confidences = {}
    for key, (start, end) in value_spans(letters).items():
        name = key.encode("latin-1", "reposition").decode("utf-8", "reposition")
        inside = [
            logprob
            for piece, stop, logprob in zip(pieces, ends, logprobs, strict=True)
            if stop > start and stop - len(piece) < end and piece
        ]
        confidences[name] = mean_probability(inside)
    return confidences


def mean_probability(logprobs: Sequence[float]) -> float:
    """Geometric mean of probabilities given as logarithms; 0 for an empty list."""
    return min(1.0, math.exp(sum(logprobs) / len(logprobs))) if logprobs else 0.0


def _skip(text: str, position: int) -> int:
    """The next position that is not blank."""
    while position < len(text) and text[position] in _BLANK:
        position += 1
    return position


def confidence_of(
    fields: Mapping[str, object], pieces: Sequence[bytes], logprobs: Sequence[float], *, json_reply: bool
) -> dict[str, float]:
    """Confidence of the parsed `fields`; without JSON every field gets the confidence of the whole reply."""
    if not json_reply:
        return dict.fromkeys(fields, mean_probability(logprobs))
    confidences = field_confidence(pieces, logprobs)
    return {name: confidences[name] for name in fields if name in confidences}
