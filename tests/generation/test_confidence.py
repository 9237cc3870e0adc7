"""Confidence: each field's value is found in the reply's bytes, and its tokens' probabilities are averaged."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_tailor.generation.confidence import confidence_of, field_confidence, mean_probability, value_spans

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.text(alphabet="abc \n"), st.booleans())
def test_spans_hold_exactly_the_values(fields, preamble, plain):
    text = preamble + json.dumps(fields, ensure_ascii=plain)
    spans = value_spans(text)
    assert list(spans) == list(fields)
    for name, (start, end) in spans.items():
        if fields[name] == "":
            assert text[start - 1 : end] == '""'
        elif isinstance(fields[name], str):
            assert json.loads(f'"{text[start:end]}"') == fields[name]
        else:
            assert json.loads(text[start:end]) == fields[name]


@given(st.text(alphabet='{}[]":,\\ ab1é', max_size=40))
def test_spans_of_anything_never_raise(text):
    value_spans(text)


def test_a_cut_reply_keeps_what_was_whole():
    assert value_spans('{"a": "x", "b": "unfinis') == {"a": (7, 8)}
    assert value_spans("no object") == {}


def test_hand_made_distribution():
    pieces = [b'{"', b"total", b'": "', b"9", b".0", b'0"', b', "note": "', b'"', b', "n": ', b"12", b"}"]
    chances = [0.9, 0.9, 0.9, 0.5, 0.25, 0.125, 0.9, 0.75, 0.9, 0.3, 0.9]
    found = field_confidence(pieces, [math.log(chance) for chance in chances])
    assert found == {
        "total": pytest.approx((0.5 * 0.25 * 0.125) ** (1 / 3)),  # `0"` spells the last digit, so it counts
        "note": pytest.approx(0.75),  # the closing quote is where nothing was said
        "n": pytest.approx(0.3),
    }


def test_escapes_and_characters_split_between_tokens():
    text = json.dumps({"név": 'é"\\é', "b": "x"}, ensure_ascii=False).encode()
    pieces = [text[place : place + 1] for place in range(len(text))]
    start = text.index(b'": "') + 4
    inside = range(start, start + len('é\\"\\\\é'.encode()))
    logprobs = [math.log(0.5) if place in inside else math.log(0.9) for place in range(len(text))]
    found = field_confidence(pieces, logprobs)
    assert found == {"név": pytest.approx(0.5), "b": pytest.approx(0.9)}


def test_special_tokens_spell_nothing_and_free_text_is_one_value():
    found = field_confidence([b'{"a": "', b"", b"x", b'"}'], [0.0, -9.0, math.log(0.5), 0.0])
    assert found == {"a": pytest.approx(0.5)}
    assert confidence_of({"answer": "no"}, [b"n", b"o"], [math.log(0.5)] * 2, json_reply=False) == {
        "answer": pytest.approx(0.5)
    }
    assert mean_probability([]) == 0.0


def test_what_the_model_never_said_has_no_confidence():
    assert field_confidence([b'{"a": "', b'"}'], [0.0, -math.inf]) == {"a": 0.0}
