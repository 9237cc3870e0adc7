"""How sure the model was of each field: the geometric mean of the probabilities of the tokens that spell its value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

_DECODER = json.JSONDecoder()
_BLANK = " \t\r\n"


def value_spans(text: str) -> dict[str, tuple[int, int]]:
    """Where each value of the first JSON object in `text` stands, as (start, end) characters.

    A string's quotes are left out, except that an empty one is its closing quote: the place where the model chose to
    write nothing. Reading stops at the first fault; the values before it count.

    >>> value_spans('{"a": "xy", "b": ""}')
    {'a': (7, 9), 'b': (18, 19)}
    """
    spans: dict[str, tuple[int, int]] = {}
    place = text.find("{") + 1
    if not place:
        return spans
    try:
        while text[_skip(text, place)] != "}":
            key, place = _DECODER.raw_decode(text, _skip(text, place))
            place = _skip(text, place)
            if text[place] != ":" or not isinstance(key, str):
                break
            start = _skip(text, place + 1)
            value, place = _DECODER.raw_decode(text, start)
            quoted = isinstance(value, str)
            spans[key] = (start + quoted, place - quoted) if value != "" else (place - 1, place)
            place = _skip(text, place)
            place += text[place] == ","
    except (ValueError, IndexError, RecursionError):
        pass  # broken or cut off: what was read so far stands
    return spans


def field_confidence(pieces: Sequence[bytes], logprobs: Sequence[float]) -> dict[str, float]:
    """Confidence 0..1 of each field of a JSON reply, from the bytes of its tokens and their log probabilities.

    Spans are found in bytes: JSON's own signs are ASCII, so reading each byte as one letter (Latin-1) keeps them, and a
    token that holds half a character still has an exact place.
    """
    letters = b"".join(pieces).decode("latin-1")
    ends = list(accumulate(map(len, pieces)))
    found = {}
    for key, (start, end) in value_spans(letters).items():
        name = key.encode("latin-1", "replace").decode("utf-8", "replace")
        inside = [
            logprob
            for piece, stop, logprob in zip(pieces, ends, logprobs, strict=True)
            if stop > start and stop - len(piece) < end and piece
        ]
        found[name] = mean_probability(inside)
    return found


def mean_probability(logprobs: Sequence[float]) -> float:
    """Geometric mean of probabilities given as logarithms; 0 for none at all."""
    return min(1.0, math.exp(sum(logprobs) / len(logprobs))) if logprobs else 0.0


def _skip(text: str, place: int) -> int:
    """The next place that is not blank."""
    while place < len(text) and text[place] in _BLANK:
        place += 1
    return place


def confidence_of(
    fields: Mapping[str, object], pieces: Sequence[bytes], logprobs: Sequence[float], *, json_reply: bool
) -> dict[str, float]:
    """Confidence of the parsed `fields`; in free text every field stands for the whole reply."""
    if not json_reply:
        return dict.fromkeys(fields, mean_probability(logprobs))
    found = field_confidence(pieces, logprobs)
    return {name: found[name] for name in fields if name in found}
