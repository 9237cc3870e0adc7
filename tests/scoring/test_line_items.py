"""Line items: rows aligned by assignment, figures of rows and cells, columns, order; typed fields."""

from __future__ import annotations

import datetime
import io
import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from rich.console import Console

from mllm_tailor.core.errors import DataError, RecipeError
from mllm_tailor.core.sample import Prediction, Sample
from mllm_tailor.reporting.tables import gain_table
from mllm_tailor.scoring import compare, score
from mllm_tailor.scoring.assignment import best_alignment, best_assignment
from mllm_tailor.tasks.extract import Extract
from mllm_tailor.tasks.values import format_amount, read_date

FIGURES = ("row_precision", "row_recall", "row_f1", "cell_precision", "cell_recall", "cell_f1")
KINDS = {"items": "list", "items.price": "amount", "items.name": "string"}

# A receipt in the shape of CORD: nested objects, some cells absent, an object where others have a list.
CORD = {
    "menu": [
        {"nm": "Nasi Campur Bali", "cnt": "1 x", "price": "75,000"},
        {"nm": "Bbk Bengil Nasi", "cnt": "1 x", "price": "125,000"},
        {"nm": "MilkShake Strawberry", "cnt": "1 x", "price": "37,000"},
    ],
    "total": {"total_price": "1,591,600", "cashprice": "0"},
}


def rows(*prices: str) -> list[dict[str, str]]:
    return [{"name": f"item {price}", "price": price} for price in prices]


def figures(label: Any, predicted: Any, kinds: dict[str, str] = KINDS) -> dict[str, float]:
    scores = score([{"items": label}], [Prediction("1", "", {"items": predicted})], FIGURES, ["items"], kinds)
    return {name: round(scores[name].value, 3) for name in FIGURES}


# --- assignment


@given(st.integers(0, 4), st.integers(0, 4), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_assignment_is_the_best_of_all(height: int, width: int, random: Any) -> None:
    similarity = np.array([[random.choice([0, 0, 1, 2, 2.5]) for _ in range(width)] for _ in range(height)])
    similarity = similarity.reshape(height, width)
    pairs = best_assignment(similarity)
    small, large = min(height, width), max(height, width)
    table = similarity if height <= width else similarity.T
    best = max(sum(table[i, order[i]] for i in range(small)) for order in itertools.permutations(range(large), small))
    assert sum(similarity[pair] for pair in pairs) == pytest.approx(best)
    for side in zip(*pairs, strict=True):
        assert len(set(side)) == len(side)


@given(st.integers(1, 4), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_alignment_is_the_best_in_order(height: int, width: int, random: Any) -> None:
    similarity = np.array([[random.choice([0, 0, 1, 2, 2.5]) for _ in range(width)] for _ in range(height)])
    pairs = best_alignment(similarity)
    assert pairs == sorted(pairs) and [b for _, b in pairs] == sorted(b for _, b in pairs)
    best = max(
        sum(similarity[i, j] for i, j in zip(first, second, strict=True))
        for size in range(min(height, width) + 1)
        for first in itertools.combinations(range(height), size)
        for second in itertools.combinations(range(width), size)
    )
    assert sum(similarity[pair] for pair in pairs) == pytest.approx(best)


# --- figures by hand


def test_one_wrong_cell_costs_one_cell() -> None:
    label = [{"a": "1", "b": "2", "c": "3"}, {"a": "4", "b": "5", "c": "6"}, {"a": "7", "b": "8", "c": "9"}]
    wrong = [dict(row) for row in label]
    wrong[1]["b"] = "x"
    result = figures(label, wrong)
    assert result["cell_f1"] == pytest.approx(100 * 8 / 9, abs=0.01)
    assert result["row_f1"] == pytest.approx(100 * 2 / 3, abs=0.01)


def test_missing_and_invented_rows_cost_recall_and_precision() -> None:
    result = figures(rows("1.00", "2.00", "3.00", "4.00"), rows("2.00", "4.00", "9.00"))
    assert result["row_precision"] == pytest.approx(66.667) and result["row_recall"] == 50
    assert result["row_f1"] == pytest.approx(100 * 2 * 2 / 7, abs=0.01)
    assert figures(rows("1.00"), []) == {"row_precision": 0, "row_recall": 0, "row_f1": 0} | {
        "cell_precision": 0, "cell_recall": 0, "cell_f1": 0
    }  # fmt: skip
    assert figures([], rows("1.00"))["row_precision"] == 0
    assert (
        score([{"items": []}], [Prediction("1", "", {"items": []})], ["row_f1"], ["items"], KINDS)["row_f1"].count == 0
    )


def test_order_counts_only_where_it_is_declared() -> None:
    label, swapped = rows("1.00", "2.00", "3.00"), rows("3.00", "1.00", "2.00")
    assert figures(label, swapped)["row_f1"] == 100
    assert figures(label, swapped, KINDS | {"items": "ordered_list"})["row_f1"] == pytest.approx(66.667)


def test_cells_are_normalised_by_their_kind() -> None:
    assert figures([{"name": "Tea", "price": "2.00"}], [{"name": "TEA ", "price": "RM2"}])["row_f1"] == 100
    assert figures([{"name": "Tea", "price": "2.00"}], [{"name": "TEA ", "price": "RM3"}])["cell_f1"] == 50


def test_cells_that_are_empty_in_both_are_not_counted() -> None:
    assert figures([{"a": "1", "b": ""}], [{"a": "1", "b": None}])["cell_f1"] == 100
    assert figures([{"a": "1", "b": ""}], [{"a": "1", "b": "x"}])["cell_precision"] == 50


def test_columns_are_scored_and_compared() -> None:
    label = rows("1.00", "2.00")
    worse = [label[0], {"name": "item 2.00", "price": "7.00"}]
    scores = [
        score(
            [{"items": label}] * 3,
            [Prediction(str(i), "", {"items": said}) for i in range(3)],
            FIGURES,
            ["items"],
            KINDS,
        )
        for said in (worse, label)
    ]
    assert scores[0]["cell_f1"].by_field == {"items": 75, "items.name": 100, "items.price": 50}
    assert scores[0]["row_f1"].by_field == {"items": 50}
    gains = compare(*scores)["cell_f1"]
    assert gains.by_field["items.price"].difference.value == 50
    stream = io.StringIO()
    Console(file=stream, width=80).print(gain_table(gains.by_field, "cell f1 by field"))
    assert "items.price" in stream.getvalue()


def test_rows_shaped_as_in_cord() -> None:
    reply = {
        "menu": [
            CORD["menu"][2],
            {"nm": "Nasi Campur Bali", "price": "75,000"},
        ],  # another order, a cell and a row short
        "total": [{"total_price": "1.591.600", "cashprice": "0"}],  # a list where the label has a lone object
    }
    scores = score([CORD], [Prediction("1", "", reply)], FIGURES, ["menu", "total"], {"total.total_price": "amount"})
    assert scores["cell_recall"].by_field["menu"] == pytest.approx(100 * 5 / 9)
    assert scores["cell_precision"].by_field["menu"] == 100
    assert scores["row_recall"].by_field == {"menu": pytest.approx(100 / 3), "total": 100}
    assert scores["cell_f1"].by_field["menu.cnt"] == pytest.approx(100 * 2 / 4)


def test_replies_that_are_no_table_score_nothing_and_crash_nothing() -> None:
    for reply in ("text", 5, None, {"name": "x"}, ["a"], [[1]], [{"name": {"deep": [1]}}]):
        assert 0 <= figures(rows("1.00"), reply)["cell_f1"] < 100


def test_a_thousand_rows_are_aligned() -> None:
    many = rows(*(f"{number}.00" for number in range(300)))
    assert figures(many, many[::-1])["row_f1"] == 100


# --- typed fields

TYPED = {
    "date": {"format": "iso"},
    "total": {"decimals": 2},
    "code": {"pattern": "[A-Z]{2}-[0-9]+"},
    "items": {"items": {"name": "string", "price": {"decimals": 2}}},
}


def test_typed_labels_and_replies_are_normalised_alike() -> None:
    task = Extract(TYPED)
    printed = {
        "date": "30 DEC 2017", "total": "RM1,234.5", "code": "AB-1", "items": [{"name": "Tea", "price": "$2"}]
    }  # fmt: skip
    labels = task.labels(Sample("a", fields=printed))
    assert labels == {
        "date": "2017-12-30", "total": "1234.50", "code": "AB-1", "items": [{"name": "Tea", "price": "2.00"}]
    }  # fmt: skip
    assert dict(task.parse(json.dumps(printed)).fields) == labels
    assert dict(task.parse(json.dumps(labels)).fields) == labels
    assert task.parse('{"total": 12, "date": "someday"}').fields == {"total": "12.00", "date": "someday"}


def test_the_plain_form_stays_as_printed() -> None:
    task = Extract({"date": "date", "total": "amount"})
    assert task.labels(Sample("a", fields={"date": "30 DEC 2017", "total": "RM9"})) == {
        "date": "30 DEC 2017", "total": "RM9"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"date": "12/01/2018"}, "f:1: field `date`: '12/01/2018' is an ambiguous date — set `order`"),
        ({"date": "soon"}, "cannot be read as a date"),
        ({"total": "nine"}, "is no amount"),
        ({"total": "9.1234"}, "has more than 2 decimals"),
        ({"code": "x"}, "does not match"),
        ({"items": [{"price": "x"}]}, "field `items`.price: 'x' is no amount"),
    ],
)
def test_labels_that_do_not_fit_name_their_row(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        Extract(TYPED).labels(Sample("a", fields=fields, source="f:1"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "field",
    [{"type": "string", "decimals": 2}, {"type": "amount", "format": "iso"}, {"pattern": "("}, {"order": "dmy"},
     {"pattern": "(?=a)b"}, {"type": "string", "ordered": True}, {"type": "number", "pattern": "1"}],
)  # fmt: skip
def test_forms_that_make_no_sense_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Extract({"x": field})


def test_the_grammar_allows_exactly_the_form() -> None:
    tokenizer = LLTokenizer("byte")
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(Extract(TYPED).schema()))

    def allowed(**changes: Any) -> bool:
        reply = {"date": "2018-03-13", "total": "9.00", "code": "AB-12", "items": [{"name": "x", "price": "1.50"}]}
        matcher, tokens = LLMatcher(tokenizer, grammar), tokenizer.tokenize_str(json.dumps(reply | changes))
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    assert allowed() and allowed(date="") and allowed(total="-0.50") and allowed(items=[])
    refused = [
        {"date": "13/03/2018"}, {"date": "2018-13-01"}, {"total": "9.0"}, {"total": "RM9.00"}, {"total": "007.00"},
        {"code": "AB"}, {"items": [{"name": "x", "price": "1.5"}]},
    ]  # fmt: skip
    assert not any(allowed(**changes) for changes in refused)


@given(st.dates(min_value=datetime.date(1970, 1, 1), max_value=datetime.date(2069, 12, 31)))
def test_dates_are_read_in_every_order(date: Any) -> None:
    for order, form in (("dmy", "%d/%m/%Y"), ("mdy", "%m-%d-%Y"), ("ymd", "%Y.%m.%d"), ("dmy", "%d.%m.%y")):
        assert read_date(date.strftime(form), order) == date
    for form in ("%d %b %Y", "%d-%B-%Y", "%B %d, %Y", "%Y-%m-%d"):
        assert read_date(date.strftime(form)) == date
    if date.day > 12:
        assert read_date(date.strftime("%d/%m/%Y")) == date


@given(st.decimals(min_value=-(10**9), max_value=10**9, places=2))
def test_amounts_in_their_form_stay(amount: Any) -> None:
    text = f"{amount:.2f}"
    text = "0.00" if text == "-0.00" else text
    assert format_amount(text, 2) == text
    assert format_amount(f"RM {abs(amount):,.2f}", 2) == f"{abs(amount):.2f}"


def test_objects_have_typed_columns_too() -> None:
    task = Extract({"total": {"fields": {"sum": {"decimals": 2}, "due": {"format": "iso", "order": "dmy"}}}})
    assert task.kinds == {"total": "object", "total.sum": "amount", "total.due": "date"}
    labels = task.labels(Sample("a", fields={"total": {"sum": "RM 5", "due": "01/02/2018"}}))
    assert labels == {"total": {"sum": "5.00", "due": "2018-02-01"}}
    assert task.parse('{"total": {"sum": 5, "due": "1.2.2018"}}').fields == labels
