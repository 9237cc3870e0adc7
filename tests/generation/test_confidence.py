"""Raw scores: each value is found in the reply's bytes, and its tokens' probabilities are averaged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_tailor.core.sample import Prediction
from mllm_tailor.generation.confidence import (
    agreement,
    other_values,
    raw_scores,
    token_scores,
    value_scores,
    value_spans,
)

NAMES = st.text(alphabet='ab"\\\\é ,:{}[]𝄞\n', max_size=6)  # no dots: they part the names of a path
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)


def paths(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that has a span, outer before inner."""
    for name, value in fields.items():
        yield prefix + name, value
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{name}.")
        for row, cells in enumerate(value if isinstance(value, list) else ()):
            if isinstance(cells, dict):
                yield from paths(cells, f"{prefix}{name}.{row}.")


@pytest.mark.slow
@given(st.dictionaries(NAMES, VALUES, max_size=4), st.text(alphabet="abc \n"), st.booleans())
def test_spans_hold_exactly_the_values(fields, preamble, plain):
    text = preamble + json.dumps(fields, ensure_ascii=plain)
    spans, expected = value_spans(text), dict(paths(fields))
    assert list(spans) == list(expected)
    for path, (start, end) in spans.items():
        if expected[path] == "":
            assert text[start - 1 : end] == '""'
        elif isinstance(expected[path], str):
            assert json.loads(f'"{text[start:end]}"') == expected[path]
        else:
            assert json.loads(text[start:end]) == expected[path]


@given(st.text(alphabet='{}[]":,\\ ab1é', max_size=40))
def test_spans_of_anything_never_raise(text):
    value_spans(text)


def test_a_cut_reply_keeps_what_was_whole():
    assert value_spans('{"a": "x", "b": "unfinis') == {"a": (7, 8)}
    assert list(value_spans('{"l": [{"c": 1, "d": "unf')) == ["l.0.c"]
    assert value_spans("no object") == {}


def test_hand_made_distribution():
    pieces = [b'{"', b"total", b'": "', b"9", b".0", b'0"', b', "note": "', b'"', b', "n": ', b"12", b"}"]
    chances = [0.9, 0.9, 0.9, 0.5, 0.25, 0.125, 0.9, 0.75, 0.9, 0.3, 0.9]
    scores = value_scores(pieces, [math.log(chance) for chance in chances])
    mean = round((0.5 * 0.25 * 0.125) ** (1 / 3), 6)
    assert scores == {
        "total": {"mean": mean, "least": 0.125},  # `0"` spells the last digit, so it counts
        "note": {"mean": 0.75, "least": 0.75},  # the closing quote is where nothing was said
        "n": {"mean": 0.3, "least": 0.3},
    }


def test_cells_of_a_list_have_their_own():
    pieces = [b'{"items": [{"name": "', b"TEA", b'", "price": "', b"9", b'"}, {"name": "', b"EGG", b'"}]}']
    scores = value_scores(pieces, [0.0, math.log(0.5), 0.0, math.log(0.25), 0.0, math.log(0.75), 0.0])
    assert list(scores) == ["items", "items.0.name", "items.0.price", "items.1.name"]
    assert [scores[path]["least"] for path in scores] == [0.25, 0.5, 0.25, 0.75]
    assert scores["items"]["mean"] == pytest.approx((0.5 * 0.25 * 0.75) ** (1 / 7), abs=1e-6)


def test_escapes_and_characters_split_between_tokens():
    text = json.dumps({"név": 'é"\\é', "b": "x"}, ensure_ascii=False).encode()
    pieces = [text[index : index + 1] for index in range(len(text))]
    start = text.index(b'": "') + 4
    inside = range(start, start + len('é\\"\\\\é'.encode()))
    logprobs = [math.log(0.5) if index in inside else math.log(0.9) for index in range(len(text))]
    assert {path: scores["mean"] for path, scores in value_scores(pieces, logprobs).items()} == {"név": 0.5, "b": 0.9}


def test_special_tokens_spell_nothing_and_free_text_is_one_value():
    scores = value_scores([b'{"a": "', b"", b"x", b'"}'], [0.0, -9.0, math.log(0.5), 0.0])
    assert scores == {"a": {"mean": 0.5, "least": 0.5}}
    free = raw_scores({"answer": "no"}, [b"n", b"o"], [math.log(0.5), math.log(0.125)], json_reply=False)
    assert free == {"answer": {"mean": 0.25, "least": 0.125}}
    assert token_scores([]) == {"mean": 0.0, "least": 0.0}


def test_what_the_model_never_said_has_no_probability():
    assert value_scores([b'{"a": "', b'"}'], [0.0, -math.inf]) == {"a": {"mean": 0.0, "least": 0.0}}


def test_agreement_weighs_candidates_and_passes_over_unfinished_values():
    reply = b'{"a": "x", "b": "y"}'
    candidates = [
        (reply, math.log(0.4)),
        (b'{"a": "x", "b": "z"}', math.log(0.2)),
        (b'{"a": "q", "b": "y', math.log(0.2)),
    ]
    assert agreement(reply, candidates) == {"a": pytest.approx(0.75), "b": pytest.approx(2 / 3)}
    assert agreement(reply, []) == {}
    raw = raw_scores({"a": "x", "b": "y"}, [reply], [-0.1], json_reply=True, candidates=candidates)
    assert raw["a"]["beams"] == 0.75


def test_invented_keys_have_no_scores():
    pieces = [b'{"a": "x", "other": "y"}']
    assert list(raw_scores({"a": "x"}, pieces, [-0.1], json_reply=True)) == ["a"]


def test_other_beams_are_candidates_of_each_value() -> None:
    chosen = {"total": "9.00", "items": [{"name": "TEA"}], "date": None}
    others = [{"total": "9.80", "items": [{"name": "TEA"}, {"name": "BUN"}]}, {"total": "9.00"}, {"total": "6.00"}, {}]
    assert other_values(chosen, others) == {"total": ["9.80", "6.00"]}
    row = Prediction("a", "", candidates={"total": ["9.80"]}).row()
    assert row["candidates"] == {"total": ["9.80"]} and Prediction.from_row(row).candidates == row["candidates"]
    assert "candidates" not in Prediction("a", "").row()
